"""Curves as SVG, without a library: a panel is a few paths that a page can hide and colour."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from oneforcing_jax.evaluation.curves import Curve, span

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 34
# Points of a line; of more rows each stands for its neighbours by their mean.
POINTS = 240
TICKS = 5


def panel(title: str, lines: Mapping[int, Sequence[Curve]]) -> str:
    """A figure: one line for each method, the mean over its runs, within the span of the runs.

    Args:
      title: of the panel.
      lines: curves of the runs of a method, by the method's number, which is its class.
    """
    drawn = {n: span([_thinned(curve) for curve in curves]) for n, curves in lines.items()}
    drawn = {n: rows for n, rows in drawn.items() if rows.size}
    if not drawn:
        return ""
    every = np.concatenate(list(drawn.values()), 1)
    ticks_x = _ticks(float(every[0].min()), float(every[0].max()))
    ticks_y = _ticks(float(every[2].min()), float(every[3].max()))

    def x(at: float) -> float:
        share = (at - ticks_x[0]) / (ticks_x[-1] - ticks_x[0])
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(value: float) -> float:
        share = (value - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    def path(at: np.ndarray, values: np.ndarray) -> str:
        return "L".join(f"{x(a)},{y(v)}" for a, v in zip(at, values, strict=True))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for tick in ticks_y:
        parts.append(f'<path class="grid" d="M{LEFT},{y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:.4g}</text>'
        )
    for tick in ticks_x:
        place = min(x(tick), WIDTH - RIGHT - 6)
        parts.append(
            f'<text x="{place}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:.6g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">iteration</text>')
    for n, (at, mean, low, high) in drawn.items():
        band = f'<path class="band" d="M{path(at, low)}L{path(at[::-1], high[::-1])}Z"/>'
        several = band if len(lines[n]) > 1 else ""
        parts.append(f'<g class="m{n}">{several}<path class="line" d="M{path(at, mean)}"/></g>')
    figure = "".join([*parts, "</svg>"])
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{figure}</figure>"


def _thinned(curve: Curve) -> Curve:
    """POINTS at most; values that are no numbers are left out."""
    rows = np.stack(curve).astype(float) if len(curve[0]) else np.zeros((2, 0))
    rows = rows[:, np.isfinite(rows).all(0)]
    parts = np.array_split(rows, min(POINTS, max(1, rows.shape[1])), axis=1)
    at, values = np.stack([part.mean(1) for part in parts], 1) if rows.size else rows
    return at, values


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold a range."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]
