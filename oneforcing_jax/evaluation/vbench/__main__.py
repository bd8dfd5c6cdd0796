"""VBench, from a model's weights to its score.

    python -m oneforcing_jax.evaluation.vbench make --vbench VBench --checkpoint weights/wan --out videos
    python -m oneforcing_jax.evaluation.vbench check --vbench VBench --videos videos
    python -m oneforcing_jax.evaluation.vbench run --vbench VBench --videos videos --out results
    python -m oneforcing_jax.evaluation.vbench score results --out score.json

The same command continues an interrupted one. docs/vbench.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from oneforcing_jax.data.video import Clip
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.vbench import check, evaluate, make, record, results, tables
from oneforcing_jax.evaluation.vbench import score as scores
from oneforcing_jax.evaluation.vbench import suite as suites
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS, Score
from oneforcing_jax.families.wan21 import VIDEO
from oneforcing_jax.generation import making
from oneforcing_jax.setup.ranges import Amount, Rate, options
from oneforcing_jax.system import processes
from oneforcing_jax.system.command import Help, any_path, count, size
from oneforcing_jax.system.files import write_whole

# What Wan makes, and the models of its family.
WAN = Clip(VIDEO.frames, VIDEO.rows, VIDEO.columns, VIDEO.fps)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True)

    def verb(name: str, run: Any, words: str, listed: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name, help=words, description=words, formatter_class=Help, allow_abbrev=False
        )
        added.set_defaults(run=run)
        if listed:
            add = added.add_argument
            add("--vbench", required=True, type=any_path, help=suites.EXPECTED)
            add("--dimension", nargs="+", choices=DIMENSIONS, default=(), help="default: all")
            add("--samples", type=count, default=suites.SAMPLES, help="videos of each prompt")
        return added

    # fmt: off
    added = verb("make", make.run, "makes the videos")
    words = "a line for each of the list, embedded in its place"
    added.add_argument("--rewritten", type=any_path, help=words)
    added.add_argument("--out", required=True, type=any_path, help="folder; OUT.record.json describes it")
    added.add_argument("--dry_run", action="store_true", help="name the missing videos, make nothing")
    making.add_options(added)

    added = verb("check", _check, "compares a folder with the list")
    added.add_argument("--videos", required=True, type=any_path, help="folder")
    added.add_argument("--frames", type=count, help="of each video; default: as recorded, or Wan's")
    added.add_argument("--size", type=size, help="rows x columns; default: as recorded, or Wan's")
    added.add_argument("--fps", type=float, help="frames a second; default: as recorded, or Wan's 16")

    added = verb("run", _run, "runs VBench's evaluator, one dimension after the other")
    added.add_argument("--videos", required=True, type=any_path, help="folder")
    added.add_argument("--out", required=True, type=any_path, help="folder of results")
    added.add_argument("--python", default=sys.executable, help="of the environment that has VBench")
    added.add_argument("--device", default="cuda", help="for VBench, as PyTorch names it")
    added.add_argument("--partial", action="store_true", help="evaluate although videos are missing")

    added = verb("score", _score, "turns results into the score", listed=False)
    added.add_argument("results", nargs="+", type=any_path, help="folder, .zip or .json of a model")
    added.add_argument("--leaderboard_zero", action="store_true", help="a missing dimension counts as 0")
    added.add_argument("--out", required=True, type=any_path, help=".json; the table is a .md beside it")
    # fmt: on
    return parser


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.vbench"
) -> None:
    """The command line."""
    args = _parser(prog).parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with processes.ending("the same command continues after what is finished"):
        args.run(args)


@dataclasses.dataclass(frozen=True)
class Expected:
    """The options that say what is expected of a folder."""

    samples: Amount
    frames: Amount | None
    fps: Rate | None


def _check(args: argparse.Namespace) -> None:
    given, suite = options(Expected, vars(args)), suites.read(args.vbench)
    clip = record.clip(args.videos) or WAN
    rows, columns = args.size or (clip.rows, clip.columns)
    clip = Clip(given.frames or clip.frames, rows, columns, given.fps or clip.fps)
    wanted = suite.prompts(args.dimension)
    found = check.check(suite, wanted, given.samples, args.videos, clip)
    print(*found.lines(), sep="\n")
    if not found.is_whole:
        raise InputError(
            "some videos are not as expected; remove the wrong ones, and `make` makes what is missing"
        )


def _run(args: argparse.Namespace) -> None:
    evaluate.run(
        suites.read(args.vbench), args.dimension, args.videos, args.out, samples=args.samples,
        python=args.python, device=args.device, partial=args.partial,
    )  # fmt: skip


def _score(args: argparse.Namespace) -> None:
    if args.out.suffix != ".json":
        raise InputError(f"--out: expected a .json file, found {args.out}; name one")
    found: dict[str, Score] = {}
    for path in args.results:
        name = path.resolve().name if path.is_dir() else path.stem
        if name in found:
            raise InputError(
                f"results: expected a name for each model, found {name!r} twice; rename a folder"
            )
        found[name] = scores.score(results.read(path), args.leaderboard_zero)
    table = tables.report(found)
    content = {name: its.as_json() for name, its in found.items()}
    write_whole(args.out, json.dumps(content, indent=1).encode())
    write_whole(args.out.with_suffix(".md"), table.encode())
    print(table, end="")


if __name__ == "__main__":
    main()
