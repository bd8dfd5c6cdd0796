"""A study in which people compare clips of models, pair by pair (paper, section 4.4).

    python -m oneforcing_jax.evaluation.raters draw --prompts=VBench_full_info.json --out=runs/raters \\
        --ours One-Forcing=videos/ours --baseline "Self Forcing=videos/sf" --baseline ASD=videos/asd
    python -m oneforcing_jax.evaluation.raters serve runs/raters
    python -m oneforcing_jax.evaluation.raters analyse runs/raters

docs/human_study.md explains how a study is run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.evaluation.raters import analysis, draw, prompts
from oneforcing_jax.evaluation.raters.votes import Votes
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system.command import Help, any_path, count, ending, named
from oneforcing_jax.system.files import write_whole

ANALYSIS = "analysis.json"


def run_draw(args: argparse.Namespace) -> None:
    """Draws a study."""
    settings = options(draw.Settings, vars(args))
    names = [args.ours[0], *(name for name, _ in args.baseline)]
    if len(set(names)) < len(names):
        raise InputError(f"models: expected different names, found {names}; rename one")
    found = prompts.read(args.prompts)
    drawn = draw.make(found, args.ours, dict(args.baseline), settings, args.out)
    dimensions = len({prompt.dimension for prompt in drawn.prompts})
    print(
        f"{len(drawn.prompts)} prompts of {dimensions} dimensions, {len(drawn.pairs)} pairs, of which "
        f"{len(drawn.checks)} are attention checks\ndraw {drawn.hash}"
    )


def run_serve(args: argparse.Namespace) -> None:
    """Serves a study."""
    try:
        from oneforcing_jax.evaluation.raters import server
    except ImportError as error:
        raise MissingPackage(
            'the page needs starlette and uvicorn: pip install "oneforcing_jax[serve]"'
        ) from error
    drawn = draw.read(args.study)
    draw.check_clips(args.study, drawn)
    server.serve(args.study, drawn, args.host, args.port)


def run_analyse(args: argparse.Namespace) -> None:
    """Writes and prints the figures of a study."""
    drawn = draw.read(args.study)
    found = analysis.analyse(drawn, Votes(args.study, drawn).all())
    write_whole(args.study / ANALYSIS, (json.dumps(found, indent=1) + "\n").encode())
    print(analysis.page(found))


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.raters"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser(
        "draw", help="fixes prompts, pairs and sides, and gathers the clips", formatter_class=Help
    )
    verb.set_defaults(run=run_draw)
    add = verb.add_argument
    add("--prompts", required=True, type=any_path, help=prompts.FORMS)
    add("--ours", required=True, type=named, metavar="NAME=FOLDER", help="clips of our model")
    add("--baseline", required=True, type=named, metavar="NAME=FOLDER", action="append",
        help="clips of another one; give it again for the next")  # fmt: skip
    add("--count", type=count, default=50, help="prompts")
    add("--raters", type=count, default=3, help="votes of each pair")
    add("--checks", type=int, default=5, help="attention checks, which every rater sees")
    add("--seed", type=int, default=0, help="of prompts, sides and order")
    add("--out", required=True, type=any_path, help="folder of the study")
    verb = verbs.add_parser(
        "serve", help="serves the page; the same command goes on", formatter_class=Help
    )
    verb.set_defaults(run=run_serve)
    verb.add_argument("study", type=any_path, help="folder of the study")
    verb.add_argument("--host", default="127.0.0.1", help="other addresses than this need a token")
    verb.add_argument("--port", type=int, default=8000, help="0 is any free one")
    verb = verbs.add_parser(
        "analyse", help="Table 2, with intervals and agreement", formatter_class=Help
    )
    verb.set_defaults(run=run_analyse)
    verb.add_argument("study", type=any_path, help="folder of the study")
    args = parser.parse_args(arguments)
    with ending("all votes are kept, and the same command goes on"):
        args.run(args)


if __name__ == "__main__":
    main()
