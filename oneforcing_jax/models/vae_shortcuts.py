"""What Wan2.2's VAE has beside Wan2.1's: patches of pixels, and shortcuts over whole stages.

None of them has parameters or keeps anything of the past. Where a shortcut changes sizes, it numbers what a
place has of the other side by channels first, then by frames, rows and columns.
"""

from __future__ import annotations

import jax.numpy as jnp

from oneforcing_jax.models.vae_convolutions import Array, Frames, placed


def patched(x: Array, side: int) -> Array:
    """Pixels [..., y, x, c] to patches [..., y / side, x / side, c side^2]: colours, columns, then rows."""
    if side == 1:
        return x
    *lead, rows, columns, c = x.shape
    x = x.reshape(*lead, rows // side, side, columns // side, side, c)
    x = jnp.moveaxis(x, (-4, -2, -1), (-1, -2, -3))
    return x.reshape(*lead, rows // side, columns // side, c * side**2)


def unpatched(x: Array, side: int, rows_first: bool = False) -> Array:
    """The inverse of `patched`; with `rows_first`, of patches that lie as colours, rows, then columns."""
    if side == 1:
        return x
    *lead, rows, columns, c = x.shape
    x = x.reshape(*lead, rows, columns, c // side**2, side, side)
    row, column = (-2, -1) if rows_first else (-1, -2)
    x = jnp.moveaxis(x, (row, column, -3), (-4, -2, -1))
    return x.reshape(*lead, rows * side, columns * side, c // side**2)


def averaged(frames: Frames, features: int, time: int, space: int) -> Frames:
    """Each `time` frames [b, y, x, c] as one [b, y / space, x / space, features].

    What the blocks of a place hold is cut into runs of equal length, and a run's mean is a channel. Before
    frames that `time` does not divide (the first one of a video) lie zeros.
    """
    zeros = (jnp.zeros_like(frames[0]),) * (-len(frames) % time)
    frames, made = (*zeros, *frames), []
    for i in range(0, len(frames), time):
        window = jnp.stack(frames[i : i + time], axis=-1)
        b, rows, columns, c, _ = window.shape
        window = window.reshape(b, rows // space, space, columns // space, space, c, time)
        window = window.transpose(0, 1, 3, 5, 6, 2, 4)
        made.append(placed(window.reshape(*window.shape[:3], features, -1).mean(-1)))
    return tuple(made)


def repeated(frames: Frames, features: int, time: int, space: int, first: bool) -> Frames:
    """Each frame [b, y, x, c] as `time` of them [b, y space, x space, features].

    Every channel is repeated as often as fills them. Of a video's first frame (`first`) the last is kept.
    """
    made = []
    for frame in frames:
        b, rows, columns, c = frame.shape
        x = jnp.repeat(frame, features * time * space**2 // c, axis=-1)
        x = x.reshape(b, rows, columns, features, time, space, space).transpose(4, 0, 1, 5, 2, 6, 3)
        made += [placed(each.reshape(b, rows * space, columns * space, features)) for each in x]
    return tuple(made[time - 1 :] if first else made)
