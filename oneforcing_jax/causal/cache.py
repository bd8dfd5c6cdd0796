"""The key/value cache of a causal rollout: static shapes, so that `lax.scan` can carry it.

Slots are frames. A growing cache has one slot for every frame; a rolling one has `window` slots, of which
the first `sink` keep the first frames and the rest is a ring. Keys are stored rotated and attention does
not depend on the order of keys, so nothing is ever shifted, and the slots in use are always a prefix.

It has two forms, as the layers of the model lie. Where it is stacked, a forward gives the new frames back and
they are written afterwards. In a tuple of one cache a layer, each layer updates and reads its own in place.
Where the kernel reads the keys of a head as rows, the caches of the second form lie so, filled up to
the kernel's tiles: to turn and fill them for every call took longer than attention.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.models import kernels, rope
from oneforcing_jax.models.kernels.answers import NOTHING, Answer, after, joined
from oneforcing_jax.models.stack import Attend, KeyValue
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.shapes import flat
from oneforcing_jax.sharding import STORED, constrain


class Cache(NamedTuple):
    """Rotated keys and values, [l, b, slots, n, h, k] each; of one layer without l, or rows [b, h, s, k]
    with the tokens of slot after slot."""

    k: jax.Array
    v: jax.Array


@dataclasses.dataclass(frozen=True)
class Window:
    """How far back a block sees.

    Attributes:
      size: frames that a block sees, its own included; None: all.
      sink: first frames of the clip that stay visible, counted in `size`.
      relative: whether the sink's rotary positions follow the window, so that it always lies right before
        the oldest of the other frames; else it is as far away as the video is long.
    """

    size: int | None = None
    sink: int = 0
    relative: bool = False

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
    heads, size = config.num_heads, config.head_dim
    shape: tuple[int, ...] = (batch, slots, frame_tokens, heads, size)
    rows = kernels.chosen().rows
    if not stacked and rows:
        shape = (batch, heads, rows(slots * frame_tokens), size)

    def empty(*layers: int) -> jax.Array:
        x = jnp.zeros((*layers, *shape), config.dtype)
        return constrain(x, *(None for _ in layers), *STORED[len(shape)])

    if stacked:
        return Cache(empty(config.num_layers), empty(config.num_layers))
    return tuple(Cache(empty(), empty()) for _ in range(config.num_layers))


def size(config: WanConfig, batch: int, slots: int, frame_tokens: int) -> int:
    """Bytes of a cache, over all devices that hold it."""
    tokens = batch * slots * frame_tokens
    return 2 * config.num_layers * tokens * config.dim * jnp.dtype(config.dtype).itemsize


def _place(number: jax.Array, slots: int, window: Window) -> jax.Array:
    """The slot of a frame in a ring."""
    ring = window.sink + (number - window.sink) % (slots - window.sink)
    return jnp.where(number < slots, number, ring)


def _put(
    axis: int,
    stored: jax.Array,
    new: jax.Array,
    start: jax.Array,
    window: Window,
    size: int = 1,
) -> jax.Array:
    """Writes consecutive frames, the first of them number `start`, to their slots, which take `size` places
    of `axis` each."""
    slots = window.slots(stored.shape[axis] // size)
    update = jax.lax.dynamic_update_slice_in_dim
    if not window.rolls(slots):
        return update(stored, new, start * size, axis)
    for i in range(new.shape[axis] // size):
        where = _place(start + i, slots, window)
        one = jax.lax.slice_in_dim(new, i * size, (i + 1) * size, axis=axis)
        stored = update(stored, one, where * size, axis)
    return stored


def _put_both(stored: Cache, new: Cache, start: jax.Array, window: Window) -> Cache:
    """`_put` of the keys and values of one layer."""
    return Cache(_put(1, stored.k, new.k, start, window), _put(1, stored.v, new.v, start, window))


def write(cache: Cache, new: Cache, start: jax.Array, window: Window) -> Cache:
    """Stores the frames `new` [l, b, f, n, h, k] that begin with frame `start`."""
    return Cache(_put(2, cache.k, new.k, start, window), _put(2, cache.v, new.v, start, window))


def _near(
    axis: int, stored: Cache, end: Any, window: Window, theta: float, size: int = 1
) -> tuple[Cache, jax.Array | None]:
    """The cache of a layer with the sink's keys turned to lie before the ring, whose newest frame is before
    frame `end`, and these keys as they were, which `_far` puts back; None: they stay as they are."""
    slots = stored.k.shape[axis] // size
    if not (window.relative and window.sink and window.rolls(slots)):
        return stored, None
    sink = jax.lax.slice_in_dim(stored.k, 0, window.sink * size, axis=axis)
    # The slice must be there before it is written over, or XLA would copy the cache to keep it.
    sink, stored = jax.lax.optimization_barrier((sink, stored))
    angles = rope.later(jnp.maximum(end - window.slots(slots), 0), sink.shape[-1], theta)
    return _far(axis, stored, rope.rotate(sink, rope.turns(angles))), sink


def _far(axis: int, stored: Cache, sink: jax.Array | None) -> Cache:
    """The cache with other keys of the sink; None: it stays as it is."""
    if sink is None:
        return stored
    return Cache(jax.lax.dynamic_update_slice_in_dim(stored.k, sink, 0, axis), stored.v)


def cached(
    parts: tuple[int, ...],
    start: jax.Array,
    window: Window,
    limit: int,
    in_place: bool = False,
    theta: float = 10000.0,
    frozen: bool = False,
) -> Attend:
    """An `attend` for consecutive blocks that follow the frames in the cache.

    Each block sees the cache, the blocks given before it, and itself: with parts (1, 1), a clean frame
    and the noisy frame after it share one forward.

    Args:
      parts: frames of each block, in order.
      start: number of the first frame, traced.
      window: what a block sees.
      limit: static bound on start + sum(parts); a growing cache is read up to here only.
      in_place: give back the cache with the parts in it, for layers that own theirs. A noisy block writes
        where its clean pass will write again, and nobody reads those slots in between; so what they hold
        then is left open.
      theta: base of the rotary frequencies, by which the keys of a `relative` sink turn.
      frozen: no gradient passes.

    Returns:
      attend(q, k, v, memory), where memory is one layer's Cache [b, slots, n, h, k] and the second
      result the new frames in the same form, or with `in_place` all slots; those may be rows.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Cache) -> tuple[jax.Array, Cache]:
        if memory.k.ndim == 4:
            return _attend_rows(parts, start, window, theta, q, k, v, memory)
        kernel, new, all_slots = kernels.chosen(), Cache(k, v), memory.k.shape[1]
        if in_place and kernel.sums(q) and _share(parts, window, all_slots):
            return _attend_once(parts[0], start, window, limit, q, new, memory)
        if frozen and not in_place and kernel.sums(q) and not window.rolls(all_slots):
            return _attend_beside(parts, start, limit, q, new, memory), new
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
            stored, sink = _near(1, stored, start + done, window, theta)
            length = jnp.minimum(start + done, all_slots) * frame_tokens
            keys, values = (flat(x[:, :limit]) for x in stored)
            out.append(kernel.attend(flat(asked), keys, values, length))
            if in_place:
                # The read must come before the next part is written, or XLA would copy what is read.
                out[-1], stored = jax.lax.optimization_barrier((out[-1], stored))
            stored = _far(1, stored, sink)
        return jnp.concatenate(out, 1).reshape(q.shape), stored if in_place else new

    return attend


def _share(parts: tuple[int, ...], window: Window, slots: int) -> bool:
    """Whether `_attend_once` knows the keys that two parts see. In a ring that is so for frame after frame
    only, and a relative sink turns from one to the next."""
    if window.rolls(slots):
        return parts == (1, 1) and slots > 1 and not (window.relative and window.sink)
    return len(parts) == 2 and parts[0] == parts[1]


def _attend_once(
    size: int, start: jax.Array, window: Window, limit: int, q: jax.Array, new: Cache, stored: Cache
) -> tuple[jax.Array, Cache]:
    """What `cached` does in place for two blocks of `size` frames where `_share` says so. The keys that both
    see are read once for the queries of both, and those that one sees besides in another call: the second's
    own, and of a ring the frame that the first still sees. The second is not written.
    """
    summed, tokens = kernels.chosen().summed, new.k.shape[2]
    slots, count = stored.k.shape[1], start + size
    stored = _put_both(stored, Cache(*(x[:, :size] for x in new)), start, window)
    second = Cache(*(x[:, size:] for x in new))
    if window.rolls(slots):
        seen, stored = _set_aside(stored, second, count, window)
        own = _paired(q, seen, count >= slots)
        count = jnp.minimum(count, slots - 1)
    else:
        own = summed(*(flat(x) for x in (q[:, size:], *second)))
        own = after(own, size * q.shape[2])
    keys, values = (flat(x[:, :limit]) for x in stored)
    shared = summed(flat(q), keys, values, count * tokens)
    out = joined([shared, own]).out.astype(q.dtype)
    # What is read here is read before the next block is written, or it would be copied.
    out, stored = jax.lax.optimization_barrier((out, stored))
    return out.reshape(q.shape), stored


def _attend_beside(
    parts: tuple[int, ...], start: jax.Array, limit: int, q: jax.Array, new: Cache, stored: Cache
) -> jax.Array:
    """What `cached` answers where a cache grows and stays as it is: a call over what all blocks see of it,
    and one for the keys of each block, which it sees and the blocks after it. To write these into a layer's
    cache first is to copy that."""
    summed = kernels.chosen().summed
    keys, values = (flat(x[:, :limit]) for x in stored)
    answers = [summed(flat(q), keys, values, start * new.k.shape[2])]
    for done, size in zip(itertools.accumulate(parts, initial=0), parts, strict=False):
        own = (flat(x) for x in (q[:, done:], *(x[:, done : done + size] for x in new)))
        answers.append(after(summed(*own), done * q.shape[2]))
    return joined(answers).out.astype(q.dtype).reshape(q.shape)


def _paired(q: jax.Array, seen: Cache, first: jax.Array) -> Answer:
    """Each of two blocks over the frames that it alone sees, in one call where they are samples; whether the
    `first` sees any is traced."""
    batch = len(q)
    pairs = (x.reshape(2 * batch, -1, *x.shape[3:]) for x in (q, *seen))
    out, total = (x.reshape(batch, 2, *x.shape[1:]) for x in kernels.chosen().summed(*pairs))
    shown = jnp.array([False, True]) | first
    total = jnp.where(shown[:, None, None], total, NOTHING)
    return Answer(out.reshape(batch, -1, *out.shape[3:]), total.reshape(batch, -1, total.shape[-1]))


def _set_aside(
    stored: Cache, noisy: Cache, number: jax.Array, window: Window
) -> tuple[Cache, Cache]:
    """A ring whose first slots, all but the last, hold what frame `number` sees of it; and the frame that it
    no longer sees, followed by its own.

    The frame that it does not see lies where it would be written, so the last slot's is put there. If it is
    the last, it stays. In a ring with free slots this is one of them, and nothing that is seen changes.
    """
    place = _place(number, stored.k.shape[1], window)
    gone = (jax.lax.dynamic_slice_in_dim(x, place, 1, 1) for x in stored)
    others = Cache(*(jnp.concatenate(x, 1) for x in zip(gone, noisy, strict=True)))
    last = Cache(*(x[:, -1:] for x in stored))
    # The slices must be there before they are written over, or XLA would copy the cache to keep them.
    others, last, stored = jax.lax.optimization_barrier((others, last, stored))
    update = jax.lax.dynamic_update_slice_in_dim
    return others, Cache(*(update(x, y, place, 1) for x, y in zip(stored, last, strict=True)))


def _attend_rows(
    parts: tuple[int, ...],
    start: jax.Array,
    window: Window,
    theta: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    stored: Cache,
) -> tuple[jax.Array, Cache]:
    """What `cached` does in place, for a cache of rows."""
    tokens, asked, done, out = k.shape[2], q.shape[2], 0, list[jax.Array]()
    slots = window.slots(stored.k.shape[2] // tokens)
    # A growing cache takes all parts at once, and one call reads it for all of them. In a ring later parts
    # would take the places of frames that earlier ones see.
    for group in [(part,) for part in parts] if window.rolls(slots) else [parts]:
        frames = slice(done, done + sum(group))
        new = Cache(*(_rows(x[:, frames]) for x in (k, v)))
        put = functools.partial(_put, 2, start=start + done, window=window, size=tokens)
        stored = Cache(put(stored.k, new.k), put(stored.v, new.v))
        stored, sink = _near(2, stored, start + frames.stop, window, theta, tokens)
        ends = start + done + np.repeat(np.cumsum(group), np.array(group) * asked)
        length = jnp.minimum(ends, slots) * tokens
        answer = kernels.chosen().prefixes(flat(q[:, frames]), *stored, length)
        if window.rolls(slots):
            # What is read here is read before the next part is written, or it would be copied.
            answer, stored = jax.lax.optimization_barrier((answer, stored))
        stored = _far(2, stored, sink)
        out, done = [*out, answer], frames.stop
    return jnp.concatenate(out, 1).reshape(q.shape), stored


def _rows(x: jax.Array) -> jax.Array:
    """[b, f, n, h, k] -> [b, h, f n, k]."""
    return jnp.moveaxis(flat(x), 1, 2)


def frames(key_value: KeyValue | Any, start: int, stop: int) -> Cache:
    """Frames [start, stop) of stacked keys and values [l, b, f, n, h, k]."""
    return Cache(*(x[:, :, start:stop] for x in key_value))
