"""Planes and frames at another size: antialiased bicubic, and colour at a part of the resolution.

Both are linear along an axis, so a size is a matrix. It is made once, and applied in float32, block by block:
a row of it sees a few neighbours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Rows of a picture that are made at once; and the multiplications up to which OpenBLAS stays on the thread
# that calls it. On all cores, these small products wait for each other, and on a busy machine for seconds.
_STRIP, _ALONE = 32, 1 << 18


class Sited(NamedTuple):
    """Where samples of a plane of colour lie along an axis: sample i at pixel step * i + first."""

    step: int
    first: float


# A plane that has a sample for every pixel.
EVERY = Sited(1, 0.0)


class _Part(NamedTuple):
    start: int
    stop: int
    weights: np.ndarray  # [<= block, stop - start]


class Axis(NamedTuple):
    """An axis of a plane and of its picture.

    Attributes:
      before: pixels of the frame.
      after: pixels that are wanted.
      samples: of the plane, `before` where it has one for every pixel.
      sited: where they lie.
    """

    before: int
    after: int
    samples: int
    sited: Sited = EVERY


class Sampled(NamedTuple):
    """A plane of a frame, numbers [y, x] of any kind, and how its axes become those of a picture."""

    samples: np.ndarray
    rows: Axis
    columns: Axis


def strips(planes: Sequence[Sampled]) -> Iterator[tuple[slice, np.ndarray]]:
    """Planes at another size, a few rows at a time, for which a processor's cache has room.

    Yields:
      Which rows of the picture, and float32 [planes, rows, columns].
    """
    height, width = planes[0].rows.after, planes[0].columns.after
    for number, top in enumerate(range(0, height, _STRIP)):
        where = slice(top, min(top + _STRIP, height))
        made = np.empty((len(planes), where.stop - top, width), np.float32)
        for plane, done in zip(planes, made, strict=True):
            _columns(_rows(plane, where, number), plane.columns, done)
        yield where, made


def _rows(plane: Sampled, where: slice, number: int) -> np.ndarray:
    """A strip of rows of a picture, of which all columns are as they were."""
    parts = _parts(plane.rows, _STRIP)
    if not parts:
        return plane.samples[where].astype(np.float32)
    part = parts[number]
    seen = plane.samples[part.start : part.stop].astype(np.float32)
    made = np.empty((len(part.weights), seen.shape[1]), np.float32)
    step = max(1, _ALONE // part.weights.size)
    for left in range(0, seen.shape[1], step):
        at = slice(left, left + step)
        np.matmul(part.weights, seen[:, at], out=made[:, at])
    return made


def _columns(rows: np.ndarray, axis: Axis, made: np.ndarray) -> None:
    """Writes a strip of rows with the columns that are wanted."""
    # A matrix of n columns sees about n * samples / after of those that there are.
    size = max(8, math.isqrt(_ALONE * axis.after // (_STRIP * axis.samples)) // 8 * 8)
    parts = _parts(axis, size)
    if not parts:
        made[:] = rows
    for i, part in enumerate(parts):
        at = slice(i * size, i * size + len(part.weights))
        np.matmul(rows[:, part.start : part.stop], part.weights.T, out=made[:, at])


@functools.lru_cache(256)
def _parts(axis: Axis, size: int) -> tuple[_Part, ...]:
    """The matrix of an axis, [after, samples], cut into blocks of rows; none where it changes nothing."""
    if axis.after == axis.before and axis.sited == EVERY:
        return ()
    matrix = _bicubic(axis.before, axis.after)
    if axis.sited != EVERY:
        matrix = matrix @ _bilinear(axis)
    parts = []
    for i in range(0, axis.after, size):
        block = matrix[i : i + size]
        seen = np.flatnonzero(np.any(block != 0, 0))
        start, stop = int(seen[0]), int(seen[-1]) + 1
        parts.append(_Part(start, stop, block[:, start:stop].astype(np.float32)))
    return tuple(parts)


def _bicubic(before: int, after: int) -> np.ndarray:
    """Keys' kernel with a = -1/2, widened where pixels become fewer; [after, before].

    Outside a frame nothing is weighed, as Pillow and PyTorch do.
    """
    if before == after:
        return np.eye(before)
    scale = before / after
    centre = (np.arange(after)[:, None] + 0.5) * scale
    x = np.abs(np.arange(before) + 0.5 - centre) / max(scale, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def _bilinear(axis: Axis) -> np.ndarray:
    """Samples of colour to one for every pixel, [before, samples]; beyond the ends they are repeated."""
    at = (np.arange(axis.before) - axis.sited.first) / axis.sited.step
    at = at.clip(0, axis.samples - 1)
    below = np.minimum(at.astype(int), max(axis.samples - 2, 0))
    matrix = np.zeros((axis.before, axis.samples))
    pixel = np.arange(axis.before)
    matrix[pixel, below] = 1 - (at - below)
    if axis.samples > 1:
        matrix[pixel, below + 1] = at - below
    return matrix


def resized(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A frame uint8 [y, x, 3] at another size, uint8 [rows, columns, 3]."""
    y, x, _ = frame.shape
    if (y, x) == (rows, columns):
        return frame
    axes, made = (Axis(y, rows, y), Axis(x, columns, x)), np.empty((rows, columns, 3), np.uint8)
    for where, strip in strips([Sampled(frame[..., c], *axes) for c in range(3)]):
        put(strip, made[where])
    return made


def enlarged(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame uint8 [y, x, 3], smoothly larger by a whole number: its longer side has `side` pixels or less.

    One of that size or larger stays as it is.
    """
    times = max(1, side // max(frame.shape[:2]))
    return resized(frame, frame.shape[0] * times, frame.shape[1] * times)


def put(colours: np.ndarray, frame: np.ndarray) -> None:
    """Writes colours [3, y, x] of 0..255, which it spoils, into a frame uint8 [y, x, 3]."""
    whole = np.add(colours, 0.5, out=colours).clip(0, 255, out=colours).astype(np.uint8)
    for c in range(3):  # several times as fast as one transposed copy
        frame[..., c] = whole[c]


def cover(rows: int, columns: int, least: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns to which a frame is scaled so that it just covers others."""
    scale = max(least[0] / rows, least[1] / columns)
    return max(least[0], round(rows * scale)), max(least[1], round(columns * scale))


def middle(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The middle of a frame [y, x, c] that is as large or larger."""
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    return frame[top : top + rows, left : left + columns]
