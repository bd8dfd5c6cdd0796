"""Compares the curves of runs in pairs, by how far runs of one kind lie from each other.

    python tools/compare_runs.py --stage=one_forcing --runs f32-0 f32-1 f32-2 --against bf16-0 bf16-1 bf16-2

It prints for each metric its mean over the last third of the iterations in either kind, and the standard
deviation of that mean among the runs. Then come the mean distance, iteration by iteration, of the two runs
of a pair, and the standard deviation among the runs. A change is noise where it stays below the latter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.training.metrics import RATES, ROWS, read_rows

COLUMNS = ("metric", "runs", "against", "sd", "distance of pairs", "sd of runs")


def read(run: Path, stage: str) -> dict[tuple[int, str], float]:
    """The metrics of one stage by iteration and name.

    Raises:
      MissingInput: the run has no such stage.
    """
    rows = read_rows(run / stage)
    if not rows:
        raise MissingInput(
            f"expected a run with the stage {stage!r}, found no {run / stage / ROWS}, or no row in it"
        )
    return {
        (row["iteration"], name): value
        for row in rows
        for name, value in row.items()
        if name != "iteration" and not name.startswith(RATES)
    }


def compare(runs: Sequence[Path], against: Sequence[Path], stage: str) -> list[tuple[Any, ...]]:
    """A row for each metric, as `COLUMNS` names it.

    Raises:
      InputError: fewer than two pairs, or runs of other metrics and iterations.
    """
    if len(runs) != len(against) or len(runs) < 2:
        raise InputError(
            f"expected two runs or more and as many against them, found {len(runs)} and {len(against)}"
        )
    read_all = [[read(run, stage) for run in kind] for kind in (runs, against)]
    points = sorted(read_all[0][0])
    for found, run in zip(sum(read_all, []), (*runs, *against), strict=True):
        if sorted(found) != points:
            raise InputError(
                f"expected the iterations and metrics of {runs[0]} in {run}, found others; run both alike"
            )
    rows = []
    for name in sorted({name for _, name in points}):
        of = [point for point in points if point[1] == name]
        a, b = (np.array([[run[point] for point in of] for run in kind]) for kind in read_all)
        late = slice(-max(len(of) // 3, 1), None)
        ends = a[:, late].mean(1)
        distance, spread = np.abs(a - b).mean(), a.std(0, ddof=1).mean()
        rows.append((name, ends.mean(), b[:, late].mean(), ends.std(ddof=1), distance, spread))
    return rows


def table(rows: Sequence[tuple[Any, ...]]) -> str:
    """The rows as text."""
    width = max(len(row[0]) for row in rows)
    head = f"{COLUMNS[0]:<{width}}  " + "  ".join(f"{name:>17}" for name in COLUMNS[1:])
    lines = [f"{r[0]:<{width}}  " + "  ".join(f"{value:17.4f}" for value in r[1:]) for r in rows]
    return "\n".join((head, *lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compare_runs", description=__doc__, formatter_class=Help)
    parser.add_argument("--stage", required=True, help="of the runs' config")
    parser.add_argument("--runs", nargs="+", required=True, type=any_path, help="work directories")
    parser.add_argument(
        "--against", nargs="+", required=True, type=any_path, help="in the same order"
    )
    given = parser.parse_args(arguments)
    with ending("nothing was written"):
        print(table(compare(given.runs, given.against, given.stage)))


if __name__ == "__main__":
    main()
