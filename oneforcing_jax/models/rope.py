"""Rotary position embedding over (frame, row, column), as in Wan2.1."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _angles(positions: jax.Array, size: int, theta: float) -> jax.Array:
    """[p, size / 2] angles of `size` features at integer positions."""
    frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return positions.astype(jnp.float32)[:, None] * frequencies


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
      [t, head_size / 2] float32, t = f rows columns.
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
    return jnp.concatenate(parts, -1).reshape(-1, head_size // 2)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates adjacent pairs of features of `x` [b, t, h, k] by `angles` [t, k / 2], in float32."""
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return rotated.reshape(x.shape).astype(x.dtype)
