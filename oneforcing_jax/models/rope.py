"""Rotary position embedding over (frame, row, column), as in Wan2.1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.shapes import trailing

# Positions below this are exact as they are; what of a position is beyond turns by whole multiples of it.
_PERIOD = 4096


def _angles(positions: jax.Array, size: int, theta: float) -> jax.Array:
    """[p, size / 2] angles of `size` features at integer positions, up to whole turns.

    In float32 an angle of position 10^6 is known to 0.06 only. Multiples of `_PERIOD` have angles of their
    own, below a turn, so that a stream may go on for days.
    """
    frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    exact = _PERIOD * np.float64(theta) ** (-np.arange(0, size, 2) / size)
    periods = jnp.asarray(np.mod(exact, 2 * np.pi), jnp.float32)
    below = (positions % _PERIOD).astype(jnp.float32)[:, None] * frequencies[None]
    return below + (positions // _PERIOD).astype(jnp.float32)[:, None] * periods[None]


def rotations(
    frames: jax.Array, rows: int, columns: int, head_size: int, theta: float
) -> jax.Array:
    """Angles of every token of a clip.

    Args:
      frames: [f] absolute frame numbers; they may be traced and need not be consecutive.
      rows, columns: tokens of a frame.
      head_size: split into head_size - 4 (head_size // 6) features for time and 2 (head_size // 6)
        each for row and column.
      theta: base of the frequencies.

    Returns:
      [f, n, head_size / 2] float32, n = rows columns.
    """
    part = 2 * (head_size // 6)
    of_time = _angles(frames, head_size - 2 * part, theta)
    of_row = _angles(jnp.arange(rows), part, theta)
    of_column = _angles(jnp.arange(columns), part, theta)
    grid = (frames.shape[0], rows, columns)
    parts = [
        jnp.broadcast_to(of_time[:, None, None], (*grid, of_time.shape[-1])),
        jnp.broadcast_to(of_row[None, :, None], (*grid, of_row.shape[-1])),
        jnp.broadcast_to(of_column[None, None, :], (*grid, of_column.shape[-1])),
    ]
    return jnp.concatenate(parts, -1).reshape(grid[0], rows * columns, head_size // 2)


def later(frames: jax.Array, head_size: int, theta: float) -> jax.Array:
    """Angles [head_size / 2] by which a key turns that is to lie so many frames later, traced."""
    part = 2 * (head_size // 6)
    of_time = _angles(frames[None], head_size - 2 * part, theta)[0]
    return jnp.pad(of_time, (0, part))


def turns(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines [..., 1, k] of angles [..., k / 2], for every feature of a head.

    They are made once a forward, not once a layer.
    """
    sines = jnp.sin(angles)
    cos, sin = jnp.repeat(jnp.cos(angles), 2, -1), jnp.stack([-sines, sines], -1)
    return cos[..., None, :], sin.reshape(cos.shape)[..., None, :]


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates adjacent pairs of features of `x` [..., h, k] by `turns` [..., 1, k], in float32.

    The partner of a feature is its neighbour, which a rotation of the axis brings. Pairs on an axis of
    their own, of size 2, would fill only a 64th of a TPU's lanes.
    """
    wide = x.astype(jnp.float32)
    cos, sin = (trailing(part, wide) for part in turn)
    even = jax.lax.broadcasted_iota(jnp.int32, wide.shape, wide.ndim - 1) % 2 == 0
    partner = jnp.where(even, jnp.roll(wide, -1, -1), jnp.roll(wide, 1, -1))
    return (wide * cos + partner * sin).astype(x.dtype)
