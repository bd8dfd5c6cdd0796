"""The key/value cache of a causal rollout: static shapes, so that `lax.scan` can carry it.

Slots are frames. A growing cache has one slot for every frame; a rolling one has `window` slots, of which
the first `sink` keep the first frames and the rest is a ring. Keys are stored rotated and attention does
not depend on the order of keys, so nothing is ever shifted, and the slots in use are always a prefix.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import Attend, KeyValue, WanConfig


class Cache(NamedTuple):
    """Rotated keys and values, [l, b, slots, n, h, k] each."""

    k: jax.Array
    v: jax.Array


@dataclasses.dataclass(frozen=True)
class Window:
    """How far back a block sees.

    Attributes:
      size: frames that a block sees, its own included; None: all.
      sink: first frames of the clip that stay visible, counted in `size`.
    """

    size: int | None = None
    sink: int = 0

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.size is not None and self.sink >= self.size):
            raise ValueError(
                f"window: expected 0 <= sink < size, found sink {self.sink} and size {self.size}"
            )

    def slots(self, num_frames: int) -> int:
        """Slots that a clip of `num_frames` needs."""
        return num_frames if self.size is None else min(self.size, num_frames)

    def check_block(self, frames: int) -> None:
        """Raises ValueError if a block of `frames` does not fit beside the sink."""
        if self.size is not None and frames > self.size - self.sink:
            raise ValueError(
                f"window: expected blocks of at most size - sink = {self.size - self.sink} frames, "
                f"found a block of {frames}"
            )


def init(config: WanConfig, batch: int, slots: int, frame_tokens: int) -> Cache:
    """An empty cache in the model's compute dtype."""
    shape = (config.num_layers, batch, slots, frame_tokens, config.num_heads, config.head_dim)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def _put(
    slots_axis: int, stored: jax.Array, new: jax.Array, start: jax.Array, window: Window
) -> jax.Array:
    """Writes consecutive frames, the first of them number `start`, to their slots."""
    slots = stored.shape[slots_axis]
    if window.size is None or slots < window.size:
        return jax.lax.dynamic_update_slice_in_dim(stored, new, start, slots_axis)
    frames = start + jnp.arange(new.shape[slots_axis])
    where = jnp.where(
        frames < slots, frames, window.sink + (frames - window.sink) % (slots - window.sink)
    )
    return stored.at[(slice(None),) * slots_axis + (where,)].set(new)


def write(cache: Cache, new: Cache, start: jax.Array, window: Window) -> Cache:
    """Stores the frames `new` [l, b, f, n, h, k] that begin with frame `start`."""
    return Cache(_put(2, cache.k, new.k, start, window), _put(2, cache.v, new.v, start, window))


def cached(
    parts: tuple[int, ...], start: jax.Array, frame_tokens: int, window: Window, limit: int
) -> Attend:
    """An `attend` for consecutive blocks that follow the frames in the cache.

    Each block sees the cache, the blocks given before it, and itself: with parts (1, 1), a clean frame
    and the noisy frame after it share one forward.

    Args:
      parts: frames of each block, in order.
      start: number of the first frame, traced.
      frame_tokens: tokens of a frame.
      window: what a block sees.
      limit: static bound on start + sum(parts); a growing cache is read up to here only.

    Returns:
      attend(q, k, v, memory), where memory is one layer's Cache [b, slots, n, h, k] and the second
      result the new frames in the same form. The cache itself is not changed.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Cache) -> tuple[jax.Array, Cache]:
        new = Cache(*(x.reshape(x.shape[0], -1, frame_tokens, *x.shape[2:]) for x in (k, v)))
        stored = Cache(*(x[:, :limit] for x in memory))
        slots, done, out = stored.k.shape[1], 0, []
        for size in parts:
            frames = slice(done, done + size)
            stored = Cache(
                *(
                    _put(1, old, x[:, frames], start + done, window)
                    for old, x in zip(stored, new, strict=True)
                )
            )
            done += size
            keys, values = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in stored)
            asked = q[:, (done - size) * frame_tokens : done * frame_tokens]
            length = jnp.minimum(start + done, slots) * frame_tokens
            out.append(attention.attend(asked, keys, values, length))
        return jnp.concatenate(out, 1), new

    return attend


def context(
    straight_through: bool, groups: tuple[attention.Group, ...], frame_tokens: int, first: int
) -> Attend:
    """An `attend` for the parallel replay of noisy blocks against a stored context.

    Memory is one layer's clean keys and values of all frames, Cache [b, F, n, h, k]; the queries are the
    noisy frames from number `first` on. With `straight_through` the context inside the replayed frames
    is k_noisy + stop_gradient(k_clean - k_noisy): clean in value, noisy in gradient.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Cache) -> tuple[jax.Array, None]:
        def keys(clean: jax.Array, noisy: jax.Array) -> jax.Array:
            clean = jax.lax.stop_gradient(clean.reshape(clean.shape[0], -1, *clean.shape[3:]))
            if straight_through:
                before, inside = jnp.split(clean, [first * frame_tokens], axis=1)
                clean = jnp.concatenate([before, noisy + jax.lax.stop_gradient(inside - noisy)], 1)
            return jnp.concatenate([clean, noisy], 1)

        out = attention.attend_groups(q, keys(memory.k, k), keys(memory.v, v), groups, frame_tokens)
        return out, None

    return attend


def frames(key_value: KeyValue | Any, start: int, stop: int) -> Cache:
    """Frames [start, stop) of stacked keys and values [l, b, f, n, h, k]."""
    return Cache(*(x[:, :, start:stop] for x in key_value))
