"""Scores beside each other and beside the paper's, as a Markdown table that a terminal shows well, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from oneforcing_jax.evaluation.vbench.score import DIMENSIONS, Score, normalised


class Published(NamedTuple):
    """A row of the paper's Table 1, in percent; `first` where its first block takes four steps."""

    name: str
    steps: int
    total: float
    quality: float
    semantic: float
    first: bool = False


PAPER = (
    Published("MAGI-1", 64, 79.18, 82.04, 67.74),
    Published("Wan2.1", 50, 84.26, 85.30, 80.09),
    Published("SkyReels-V2", 30, 82.67, 84.70, 74.53),
    Published("NOVA", 25, 80.12, 80.39, 79.05),
    Published("LTX-Video", 20, 80.00, 82.30, 70.79),
    Published("Pyramid Flow", 20, 81.72, 84.74, 69.62),
    Published("CausVid", 4, 81.18, 84.41, 68.30),
    Published("Self Forcing", 4, 83.46, 84.77, 78.24),
    Published("Self Forcing", 1, 77.18, 79.40, 68.34),
    Published("Causal-Forcing", 1, 78.39, 80.67, 69.25),
    Published("ASD", 1, 79.12, 81.35, 70.19, first=True),
    Published("One-Forcing, chunkwise", 1, 81.60, 83.65, 73.41, first=True),
    Published("One-Forcing, framewise", 1, 83.76, 85.22, 77.91, first=True),
)
MISSING = "missing"


def report(scores: Mapping[str, Score]) -> str:
    """Markdown: totals beside the paper's, and the 16 dimensions of each model, all in percent."""
    parts = [
        _table(["%", "steps", "total", "quality", "semantic"], [*_totals(scores), *_paper()]),
        "The rows with steps are the paper's (Table 1); 1*: the first block takes four.",
        _table(["raw (normalised), %", *scores], [_row(name, scores) for name in DIMENSIONS]),
    ]
    for name, its in scores.items():
        if its.missing:
            counted = "counts as a raw value of 0" if its.total is not None else "no total"
            parts.append(f"{name} misses {', '.join(its.missing)}: {counted}.")
    return "\n\n".join(parts) + "\n"


def _totals(scores: Mapping[str, Score]) -> list[list[str]]:
    return [
        [name, "", *(_percent(x) for x in (its.total, its.quality, its.semantic))]
        for name, its in scores.items()
    ]


def _paper() -> list[list[str]]:
    return [
        [row.name, f"{row.steps}{'*' if row.first else ''}",
         *(f"{x:.2f}" for x in (row.total, row.quality, row.semantic))]
        for row in PAPER
    ]  # fmt: skip


def _row(name: str, scores: Mapping[str, Score]) -> list[str]:
    cells = []
    for its in scores.values():
        if name not in its.rows:
            cells.append(MISSING)
        else:
            zero = f", {MISSING}" if name in its.missing else ""
            raw = its.rows[name]
            cells.append(f"{100 * raw:.2f} ({100 * normalised(name, raw):.2f}){zero}")
    return [name.replace("_", " "), *cells]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of one width; numbers stand at the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [header, *rows]]
    first, *rest = (max(map(len, column)) for column in zip(*cells, strict=True))

    def line(name: str, *values: str) -> str:
        right = [f"{value:>{width}}" for value, width in zip(values, rest, strict=True)]
        return f"| {' | '.join([f'{name:<{first}}', *right])} |"

    rule = line("-" * first, *("-" * (width - 1) + ":" for width in rest))
    head, *lines = (line(*row) for row in cells)
    return "\n".join([head, rule, *lines])
