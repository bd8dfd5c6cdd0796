"""Makes videos from prompts.

    python -m oneforcing_jax.generate --demo --prompt "a circle moving left" --out circle.mp4
    python -m oneforcing_jax.generate --checkpoint weights/framewise --encoders weights/wan \\
        --prompt "a cat on a beach" --out cat.mp4
    python -m oneforcing_jax.generate --checkpoint runs/toy/one_forcing --prompts prompts.txt --out videos

The same command continues an interrupted one: finished files are skipped. docs/generate.md says more;
oneforcing_jax.Pipeline does it from Python.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

from oneforcing_jax import demos
from oneforcing_jax.generation import jobs as listing
from oneforcing_jax.generation import making
from oneforcing_jax.generation.jobs import Listing
from oneforcing_jax.generation.making import Making
from oneforcing_jax.live import display as displays
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system import compiled, processes
from oneforcing_jax.system.command import Help, any_path


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    # fmt: off
    add, several = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    several.add_argument("--prompt", help="what to show")
    several.add_argument("--prompts", type=any_path, help="a prompt a line, or .jsonl of prompt and seed")
    add("--rewritten_prompts", type=any_path, help="a line for each of --prompts: embedded in its place")
    add("--image", type=any_path, help="first frame of every video")
    add("--video", type=any_path, help="first frames of every video, which continues them")
    add("--out", required=True, type=any_path, help="folder, or for a single video a .mp4 file")
    add("--naming", choices=listing.NAMINGS, default="prompt", help="PROMPT-K.mp4 or LINE-K.mp4")
    add("--samples", type=int, default=1, help="videos of each prompt")
    add("--noise_file", type=any_path, help=".npz: noise [n, f, c, y, x], renoise [n, steps - 1, f, ...]")
    add("--prompt_embeds", type=any_path, help=".npy [prompts, s, d], read in place of the text encoder")
    add("--save_latents", action="store_true", help="float32 [f, c, y, x] beside each video, .npy")
    # fmt: on
    making.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.generate") -> None:
    """The command line."""
    args = _parser(prog).parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with processes.ending("the same command continues after the finished videos"):
        processes.join(args)
        run(args)


def run(args: argparse.Namespace) -> None:
    """Makes the videos that are missing."""
    given = vars(args)
    if args.demo:
        print(demos.find(args.demo).knows)
    wanted, made = options(Listing, given), Making.of(given)
    jobs = wanted.jobs()
    origins = made.origins()
    begun, todo = time.perf_counter(), wanted.missing(jobs, origins.of)
    if todo:
        made = made.fitted(len(todo))
        display = displays.make(args.watch) if args.watch and processes.is_first() else None
        with compiled.kept(args.programs):
            making.write(made.scene(jobs), todo, made.writing, origins, display)
    processes.say_rates("generation", len(todo), time.perf_counter() - begun, "video")


if __name__ == "__main__":
    main()
