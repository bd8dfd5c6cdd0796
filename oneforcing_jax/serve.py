"""Serves a page in which a prompt becomes a video while it is watched.

    python -m oneforcing_jax.serve --demo
    python -m oneforcing_jax.serve --checkpoint runs/toy/one_forcing
    python -m oneforcing_jax.serve --checkpoint weights/framewise --encoders weights/wan --host 0.0.0.0

docs/live.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from oneforcing_jax import demos
from oneforcing_jax.errors import MissingPackage
from oneforcing_jax.generation import origins, pretrained
from oneforcing_jax.generation.loading import Loading
from oneforcing_jax.generation.making import STREAMED, add_model
from oneforcing_jax.generation.scene import Look
from oneforcing_jax.live.studio import Studio
from oneforcing_jax.setup.ranges import Amount, Positive, options
from oneforcing_jax.system import compiled
from oneforcing_jax.system.command import Help, ending


@dataclasses.dataclass(frozen=True)
class Serving:
    """The options that say how sessions are served.

    Attributes:
      most_frames: of a video.
      sessions: that wait or run at once.
      seconds: that a session may hold the device.
    """

    most_frames: Amount
    sessions: Amount
    seconds: Positive


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    add_model(parser)
    # fmt: off
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; others than this machine's need the token")
    add("--port", type=int, default=8000, help="0 is any free one")
    add("--token", help="that every request needs where others can ask; default: made, and printed")
    add("--most_frames", type=int, default=6000, help="pixel frames that a video may have")
    add("--sessions", type=int, default=64, help="that may wait or run at once")
    add("--seconds", type=float, default=600.0, help="that a session may hold the device")
    # fmt: on
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.serve") -> None:
    """The command line."""
    args = _parser(prog).parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with ending("viewers were told; the same command serves again"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Serves until it is interrupted. The address goes to standard output, events to standard error."""
    try:
        from oneforcing_jax.live import journal, queue, server
        from oneforcing_jax.system import web
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f'serve needs the package {error.name}: pip install "oneforcing_jax[serve]"'
        ) from error
    given: dict[str, Any] = STREAMED | vars(args)
    serving, look, loading = options(Serving, given), options(Look, given), options(Loading, given)
    token = secrets.token_urlsafe(16) if args.token is None else web.checked(args.token, "--token")
    token = "" if web.is_local(args.host) else token
    said = journal.Journal()
    if args.demo:
        said.said("demo", note=demos.find(args.demo).knows)
    with (
        web.listen(args.host, args.port) as listening,
        compiled.kept(args.programs, lambda line: said.said("programs", note=line)) as programs,
    ):
        studio = make_studio(loading, look, serving.most_frames)
        said.said("steps", note=origins.in_words(origins.blocks(studio.settings)))

        def warmed() -> None:
            programs.seal()
            said.said("programs", loaded=programs.loaded, compiled=programs.compiled)

        sessions = queue.Queue(studio, serving.sessions, said, warmed)
        print(web.link(args.host, listening, token), flush=True)
        app = server.Server(sessions, serving.seconds, token, said)
        server.process(app).run(sockets=[listening])


def make_studio(loading: Loading, look: Look, most_frames: int) -> Studio:
    """The model; without a window it sees as far back as it was trained to, for memory is to be constant."""
    if loading.window is None:
        source = pretrained.find(loading.checkpoint, loading.ema, loading.dtype, loading.shift)
        loading = dataclasses.replace(loading, window=source.frames)
    model = loading.model(together=False)
    fps = look.fps or model.source.fps
    settings = look.settings(model.source, model.encoders.codec)
    return Studio(model, settings, fps, most_frames, loading.sight())


if __name__ == "__main__":
    main()
