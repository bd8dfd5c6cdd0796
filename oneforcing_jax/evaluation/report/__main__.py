"""Writes one HTML file about runs and studies: scores, curves, videos side by side, configs.

    python -m oneforcing_jax.evaluation.report runs/toy --out=report.html
    python -m oneforcing_jax.evaluation.report runs/study --out=study.html

The file holds its videos and needs no network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from oneforcing_jax.evaluation.report.collect import collect
from oneforcing_jax.evaluation.report.page import page
from oneforcing_jax.system.command import Help, any_path, count, ending
from oneforcing_jax.system.files import write_whole


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.report"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=any_path,
        metavar="RUN_OR_STUDY",
        help="work directories or studies",
    )
    add("--out", required=True, type=any_path, help="the HTML file")
    add(
        "--prompts",
        type=count,
        default=24,
        help="at most so many prompts' videos; they make it large",
    )
    args = parser.parse_args(arguments)
    with ending("nothing was written; the same command begins anew"):
        found = collect(args.folders)
        title = ", ".join(folder.resolve().name for folder in args.folders)
        content = page(found, title, args.prompts).encode()
        write_whole(args.out, content)
        for note in found.notes:
            print(f"note: {note}")
        print(f"{args.out}: {len(found.runs)} runs, {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
