"""The key/value cache of a causal rollout: static shapes, so that `lax.scan` can carry it.

Slots are frames. A growing cache has one slot for every frame; a rolling one has `window` slots, of which
the first `sink` keep the first frames and the rest is a ring. Keys are stored rotated and attention does
not depend on the order of keys, so nothing is ever shifted, and the slots in use are always a prefix.

It has two forms, as the layers of the model lie. Where it is stacked, a forward gives the new frames back and
they are written afterwards. In a tuple of one cache a layer, each layer updates and reads its own in place.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax.errors import InputError
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import Attend, KeyValue, WanConfig
from oneforcing_jax.sharding import constrain


class Cache(NamedTuple):
    """Rotated keys and values, [l, b, slots, n, h, k] each; of one layer without l."""

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
            raise InputError(
                f"window: expected 0 <= sink < size, found sink {self.sink} and size {self.size}"
            )

    def slots(self, num_frames: int) -> int:
        """Slots that a clip of `num_frames` needs."""
        return num_frames if self.size is None else min(self.size, num_frames)

    def rolls(self, slots: int) -> bool:
        """Whether a cache of `slots` is a ring, or grows only."""
        return self.size is not None and slots >= self.size

    def check_block(self, frames: int) -> None:
        """Raises InputError if a block of `frames` does not fit beside the sink."""
        if self.size is not None and frames > self.size - self.sink:
            raise InputError(
                f"window: expected blocks of at most size - sink = {self.size - self.sink} frames, "
                f"found a block of {frames}"
            )


Caches = Cache | tuple[Cache, ...]


def init(
    config: WanConfig, batch: int, slots: int, frame_tokens: int, stacked: bool = True
) -> Caches:
    """An empty cache in the model's compute dtype, laid out by heads over the mesh in use."""
    shape = (batch, slots, frame_tokens, config.num_heads, config.head_dim)
    axes = ("batch", None, None, "whole_heads", None)

    def empty(*layers: int) -> jax.Array:
        x = jnp.zeros((*layers, *shape), config.dtype)
        return constrain(x, *(None for _ in layers), *axes)

    if stacked:
        return Cache(empty(config.num_layers), empty(config.num_layers))
    return tuple(Cache(empty(), empty()) for _ in range(config.num_layers))


def num_slots(cache: Caches) -> int:
    """Slots of a cache."""
    return cache.k.shape[2] if isinstance(cache, Cache) else cache[0].k.shape[1]


def _put(
    slots_axis: int, stored: jax.Array, new: jax.Array, start: jax.Array, window: Window
) -> jax.Array:
    """Writes consecutive frames, the first of them number `start`, to their slots."""
    slots = stored.shape[slots_axis]
    update = jax.lax.dynamic_update_slice_in_dim
    if not window.rolls(slots):
        return update(stored, new, start, slots_axis)
    for i in range(new.shape[slots_axis]):
        ring = window.sink + (start + i - window.sink) % (slots - window.sink)
        where = jnp.where(start + i < slots, start + i, ring)
        one = jax.lax.slice_in_dim(new, i, i + 1, axis=slots_axis)
        stored = update(stored, one, where, slots_axis)
    return stored


def _put_both(stored: Cache, new: Cache, start: jax.Array, window: Window) -> Cache:
    """`_put` of the keys and values of one layer."""
    return Cache(_put(1, stored.k, new.k, start, window), _put(1, stored.v, new.v, start, window))


def write(cache: Cache, new: Cache, start: jax.Array, window: Window) -> Cache:
    """Stores the frames `new` [l, b, f, n, h, k] that begin with frame `start`."""
    return Cache(_put(2, cache.k, new.k, start, window), _put(2, cache.v, new.v, start, window))


def cached(
    parts: tuple[int, ...], start: jax.Array, window: Window, limit: int, in_place: bool = False
) -> Attend:
    """An `attend` for consecutive blocks that follow the frames in the cache.

    Each block sees the cache, the blocks given before it, and itself: with parts (1, 1), a clean frame
    and the noisy frame after it share one forward.

    Args:
      parts: frames of each block, in order.
      start: number of the first frame, traced.
      window: what a block sees.
      limit: static bound on start + sum(parts); a growing cache is read up to here only.
      in_place: give back the cache with all parts in it, for layers that own theirs. A noisy block writes
        where its clean pass will write again, and nobody reads those slots in between.

    Returns:
      attend(q, k, v, memory), where memory is one layer's Cache [b, slots, n, h, k] and the second
      result the new frames in the same form, or with `in_place` all slots.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Cache) -> tuple[jax.Array, Cache]:
        new, all_slots = Cache(k, v), memory.k.shape[1]
        stored = (
            memory if limit >= all_slots or in_place else Cache(*(x[:, :limit] for x in memory))
        )
        frame_tokens, done, out = k.shape[2], 0, []
        # A growing cache takes all parts at once, for a block's `length` hides those after it. In a ring
        # they would take the places of frames that it sees.
        at_once = in_place and not window.rolls(all_slots)
        if at_once:
            stored = _put_both(stored, new, start, window)
        for size in parts:
            frames = slice(done, done + size)
            if not at_once:
                stored = _put_both(
                    stored, Cache(*(x[:, frames] for x in new)), start + done, window
                )
            asked, done = q[:, frames], done + size
            length = jnp.minimum(start + done, all_slots) * frame_tokens
            keys, values = (attention.flat(x[:, :limit]) for x in stored)
            out.append(attention.softmax_attention(attention.flat(asked), keys, values, length))
            if in_place:
                # The read must come before the next part is written, or XLA would copy what is read.
                out[-1], stored = jax.lax.optimization_barrier((out[-1], stored))
        return jnp.concatenate(out, 1).reshape(q.shape), stored if in_place else new

    return attend


def frames(key_value: KeyValue | Any, start: int, stop: int) -> Cache:
    """Frames [start, stop) of stacked keys and values [l, b, f, n, h, k]."""
    return Cache(*(x[:, :, start:stop] for x in key_value))
