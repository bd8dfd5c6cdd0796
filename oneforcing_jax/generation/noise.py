"""Noise of videos that are made as streams: from seeds, or recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.causal.plan import Block, BlockDraws, ClipDraws
from oneforcing_jax.errors import InputError

# Noise of the block whose first frame has the given number.
Noise = Callable[[int, Block], BlockDraws]


def sample_keys(seeds: Sequence[int], numbers: Sequence[int]) -> jax.Array:
    """[b] random keys, of sample `number` of a prompt whose seed is `seed`; InputError for a seed that is
    negative or has more than 32 bits."""
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise InputError(f"seed: expected a number from 0 to 2^32 - 1, found {wrong[0]}")
    keys: jax.Array = jax.vmap(
        lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)
    )(np.array(seeds, np.uint32), np.array(numbers, np.uint32))
    return keys


def seeded(keys: jax.Array, shape: tuple[int, int, int]) -> Noise:
    """Noise that belongs to the number of a frame: neither blocks nor the video's length change it.

    Args:
      keys, shape: [b], one a sample, and (c, y, x) of a latent frame.
    """
    return lambda start, block: _drawn(keys, start, block.frames, len(block.sigmas), shape)


@functools.partial(jax.jit, static_argnames=("frames", "steps", "shape"))
def _drawn(
    keys: jax.Array, start: Any, frames: int, steps: int, shape: tuple[int, ...]
) -> BlockDraws:
    def one(key: jax.Array, frame: jax.Array, step: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, frame), step), shape)

    samples = jax.vmap(jax.vmap(one, (None, 0, None)), (0, None, None))
    draws = [samples(keys, start + jnp.arange(frames), step) for step in range(steps)]
    return BlockDraws(draws[0], jnp.stack(draws[1:], 1) if steps > 1 else None, None)


def recorded(draws: ClipDraws, first: int = 0) -> Noise:
    """Noise of a clip that was drawn whole, the first of its frames being number `first`."""
    if draws.context is not None:
        raise InputError("stream: expected draws without context noise, which training alone has")

    def noise(start: int, block: Block) -> BlockDraws:
        frames = slice(start - first, start - first + block.frames)
        more = draws.renoise if len(block.sigmas) > 1 else None
        return BlockDraws(
            draws.start[:, frames], None if more is None else more[:, :, frames], None
        )

    return noise
