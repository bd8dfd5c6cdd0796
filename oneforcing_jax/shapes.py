"""The axis vocabulary, and the check of shapes where arrays enter.

One letter an axis, everywhere in this project:

    b  batch                 t  query tokens        h  attention heads
    f  latent frames         s  key tokens          k  head size
    c  channels              n  tokens of a frame   d  width of the model
    y  x  rows and columns   l  layers (stacked parameters and caches)

Latents are [b, f, c, y, x], as in the PyTorch implementations; tokens are in (f, y, x) order.
"""

from __future__ import annotations

from typing import Any

import jax

from oneforcing_jax.errors import InputError


def check(name: str, array: Any, axes: str, **known: int) -> dict[str, int]:
    """Sizes by axis letter of an array whose axes are `axes` ("b f c y x").

    Raises:
      InputError: wrong rank, or an axis in `known` has another size.
    """
    letters = axes.split()
    shape = tuple(array.shape)
    if len(shape) != len(letters):
        raise InputError(f"{name}: expected axes [{axes}], found shape {shape}")
    sizes = dict(zip(letters, shape, strict=True))
    wrong = [f"{a}={known[a]}" for a in letters if a in known and known[a] != sizes[a]]
    if wrong:
        raise InputError(f"{name}: expected {', '.join(wrong)} in [{axes}], found shape {shape}")
    return sizes


def flat(x: jax.Array) -> jax.Array:
    """[b, f, n, ...] -> [b, t, ...], t = f n."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def trailing(leaf: jax.Array, x: jax.Array) -> jax.Array:
    """A leaf over the last axes of `x`, with axes of size 1 before them; broadcasting adds these unsaid."""
    return leaf.reshape((1,) * (x.ndim - leaf.ndim) + leaf.shape)
