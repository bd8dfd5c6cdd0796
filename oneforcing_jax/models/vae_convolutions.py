"""Convolutions of the Wan video VAEs: over space, and over the last frames in time.

All are convolutions of single images, channels last, in the layout of their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import sharding

Array = jax.Array
Cache = Any
Frames = tuple[Array, ...]


def placed(x: Array, columns: str | None = "columns") -> Array:
    """A frame [b, y, x, c] on the mesh in use: videos and columns split where the mesh divides them."""
    axes = ("batch", None, columns, None)
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else sharding.constrain(x, *sharding.dividing(mesh, x.shape, axes))


def conv(x: Array, kernel: Array, stride: int = 1, pad: tuple[int, int] | None = None) -> Array:
    """Convolution of a frame: [b, y, x, c], kernel [k, k, in, out]; its border is padded by k // 2."""
    side = kernel.shape[0]
    if side == 1:
        return x @ kernel[0, 0]
    pad = pad or (side // 2, side // 2)
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=layout
    )


def side_by_side(frames: Sequence[Array], kernel: Array) -> Array:
    """The taps in time as one convolution of as many times the channels.

    Args:
      frames: one [b, y, x, c] for each tap.
      kernel: [taps, k, k, in, out].
    """
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    return conv(jnp.concatenate(frames, axis=-1), flat)


def pair(frames: Sequence[Array], kernel: Array) -> tuple[Array, Array]:
    """Three taps in time at two frames, by four convolutions where six would be.

    This is the minimal filtering F(2, 3) of Winograd over time: exact but for rounding.

    Args:
      frames: four [b, y, x, c], the two frames and the two before them.
      kernel: [3, k, k, in, out].
    """
    a, b, c, d = (frame.astype(jnp.float32) for frame in frames)
    wide = kernel.astype(jnp.float32)
    outer, inner = (wide[0] + wide[2]) / 2, wide[1] / 2
    plus, minus = ((outer + sign * inner).astype(kernel.dtype) for sign in (1, -1))
    given = ((a - c, kernel[0]), (b + c, plus), (c - b, minus), (b - d, kernel[2]))
    m = [conv(x.astype(k.dtype), k).astype(jnp.float32) for x, k in given]
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def causal(frames: Sequence[Array], past: Cache, kernel: Array) -> Frames:
    """Three taps in time, the last on the frame itself.

    Args:
      frames: [b, y, x, c] each.
      past: the two frames before them; None at the start of a video.
      kernel: [3, k, k, in, out].
    """
    window, made = [*before(frames, past), *frames], []
    # With few channels the time depends on what is written, not on the products.
    alone = len(frames) % 2 if 3 * kernel.shape[-2] > kernel.shape[-1] else len(frames)
    for i in range(alone):
        if i == 0 and past is None:
            made.append(conv(frames[0], kernel[2]))
        else:
            made.append(side_by_side(window[i : i + 3], kernel))
    for i in range(alone, len(frames), 2):
        made += pair(window[i : i + 4], kernel)
    return tuple(made)


def narrowing(frames: Sequence[Array], past: Cache, kernel: Array) -> tuple[Frames, Cache]:
    """`causal` for few output channels: a frame is convolved once with all taps.

    It keeps the products [b, y, x, 3 out] of the last two frames, and takes them as `past`.
    """
    flat = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], -1)
    found = tuple(conv(frame, flat) for frame in frames)
    window = [jnp.split(x.astype(jnp.float32), 3, -1) for x in (*before(found, past), *found)]
    made = [window[i][0] + window[i + 1][1] + window[i + 2][2] for i in range(len(frames))]
    return tuple(made), last(found, past)


def before(frames: Sequence[Array], past: Cache) -> Frames:
    """The two frames before a chunk; zeros at the start of a video."""
    return (placed(jnp.zeros_like(frames[0])),) * 2 if past is None else past


def last(frames: Sequence[Array], past: Cache) -> Frames:
    """What a layer with three taps in time keeps: its last two frames."""
    return tuple(placed(frame) for frame in [*before(frames, past), *frames][-2:])


def enlarged(x: Array, kernel: Array) -> Array:
    """3x3 convolution of a frame whose rows and columns are doubled: [b, y, x, c] -> [b, 2y, 2x, out].

    Each of the four positions made from one sees 2x2 of the frame. Taps that fall on the same position
    are added up, and the enlarged frame is never made.
    """
    wide = kernel.astype(jnp.float32)

    def merged(k: Array, axis: int, second: int) -> Array:
        a, b, c = (jax.lax.index_in_dim(k, i, axis) for i in range(3))
        return jnp.concatenate([a + b, c] if second else [a, b + c], axis)

    places = [(i, j) for i in (0, 1) for j in (0, 1)]
    kernels = [merged(merged(wide, 0, i), 1, j).astype(kernel.dtype) for i, j in places]
    # Position (i, j) sees the frame from (i - 1, j - 1) on.
    found = conv(x, jnp.concatenate(kernels, -1))
    b, y, width, _ = x.shape
    parts = [
        part[:, i : i + y, j : j + width]
        for (i, j), part in zip(places, jnp.split(found, 4, axis=-1), strict=True)
    ]
    rows = [jnp.stack(parts[:2], axis=3), jnp.stack(parts[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * y, 2 * width, -1)
