"""Attention structures of causal video as data: which frames see which.

A structure is a tuple of `Group`: frames that ask, and the ranges of frames that they see. Everything in a
group sees everything that the group sees. So no kernel needs a mask, no array of tokens x tokens exists on an
accelerator, and no work is done on hidden keys.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp

from oneforcing_jax import sharding
from oneforcing_jax.models import levels, splash
from oneforcing_jax.models.attention import flat, gives_sums, softmax_attention
from oneforcing_jax.models.cudnn import KERNEL, Kernel
from oneforcing_jax.models.wan import Attend

# Structures that are kept: the same few are asked for again and again, and a long clip has many groups.
KEPT = 8
Rest = ParamSpec("Rest")

Range = tuple[int, int]


class Group(NamedTuple):
    """Frames [start, stop) that ask, and the ranges of frames whose keys they see."""

    queries: Range
    keys: tuple[Range, ...]


def _kept(
    make: Callable[Concatenate[Sequence[int], Rest], tuple[Group, ...]],
) -> Callable[Concatenate[Sequence[int], Rest], tuple[Group, ...]]:
    """A function of a layout that keeps what it gave for the last ones."""
    kept: Callable[..., tuple[Group, ...]] = functools.lru_cache(KEPT)(make)

    def of(layout: Sequence[int], /, *args: Rest.args, **options: Rest.kwargs) -> tuple[Group, ...]:
        return kept(tuple(layout), *args, **options)

    functools.update_wrapper(of, make)
    return of


def earlier(start: int, stop: int, window: int | None = None, sink: int = 0) -> tuple[Range, ...]:
    """Ranges of the frames before a block [start, stop) that it sees.

    Args:
      start, stop: the block's frames.
      window: frames that a block sees in all, its own included; None: all.
      sink: the first frames of the clip, always seen, part of `window`.
    """
    if window is None or stop <= window:
        return ((0, start),) if start else ()
    recent = stop - (window - sink)
    ranges = ((0, min(sink, start)), (min(recent, start), start))
    return tuple(r for r in ranges if r[0] < r[1])


def _bounds(layout: Sequence[int]) -> list[Range]:
    ends = itertools.accumulate(layout)
    return [(end - size, end) for size, end in zip(layout, ends, strict=True)]


@_kept
def block_causal(
    layout: Sequence[int], window: int | None = None, sink: int = 0
) -> tuple[Group, ...]:
    """Each block sees itself and the blocks before it."""
    return tuple(Group(block, (*earlier(*block, window, sink), block)) for block in _bounds(layout))


@_kept
def noisy_after_clean(
    layout: Sequence[int], window: int | None = None, sink: int = 0, first: int = 0
) -> tuple[Group, ...]:
    """Each noisy block sees itself and the clean blocks before it.

    The keys are [clean frames of the whole layout, noisy frames of the blocks from `first` on], and
    the queries those noisy frames.
    """
    clean, blocks = sum(layout), _bounds(layout)[first:]
    offset = blocks[0][0]
    return tuple(
        Group(
            (start - offset, stop - offset),
            (*earlier(start, stop, window, sink), (clean + start - offset, clean + stop - offset)),
        )
        for start, stop in blocks
    )


@_kept
def teacher_forcing(
    layout: Sequence[int], window: int | None = None, sink: int = 0
) -> tuple[Group, ...]:
    """Structure of the sequence [clean, noisy], both queries and keys."""
    clean = sum(layout)
    noisy = noisy_after_clean(layout, window, sink)
    moved = tuple(Group((g.queries[0] + clean, g.queries[1] + clean), g.keys) for g in noisy)
    return block_causal(layout, window, sink) + moved


class Stretch(NamedTuple):
    """Consecutive groups that each see a prefix of the keys, and a block of their own at a fixed distance
    from its end: what one kernel with a computed mask can do.

    Attributes:
      queries: frames of all the groups.
      prefixes: for each of these frames, the number of key frames in its prefix.
      distance, size: the own block of frames begins `distance` after the prefix's end.
    """

    queries: Range
    prefixes: tuple[int, ...]
    distance: int
    size: int


def stretches(groups: tuple[Group, ...]) -> tuple[Stretch, ...] | None:
    """The groups as stretches; None if some see more than a prefix and a block, as in a rolling window."""
    single: list[Stretch] = []
    for (start, stop), keys in groups:
        if len(keys) > 2 or (len(keys) == 2 and keys[0][0]):
            return None
        prefix, (own, end) = (keys[0][1] if len(keys) == 2 else 0), keys[-1]
        single.append(Stretch((start, stop), (prefix,) * (stop - start), own - prefix, end - own))
    alike = [list(run) for _, run in itertools.groupby(single, lambda stretch: stretch[2:])]
    return tuple(
        Stretch(
            (run[0].queries[0], run[-1].queries[1]),
            tuple(itertools.chain.from_iterable(stretch.prefixes for stretch in run)),
            *run[0][2:],
        )
        for run in alike
    )


def even_blocks(stretch: Stretch) -> int:
    """The number of a stretch's blocks, where each has as many frames of queries as of keys, and sees what
    those before it end at. Otherwise 0."""
    (start, stop), size, first = stretch.queries, stretch.size, stretch.prefixes[0]
    blocks = (stop - start) // size
    steps = tuple(first + i * size for i in range(blocks) for _ in range(size))
    return blocks if stretch.prefixes == steps and stretch.distance >= 0 else 0


def by_levels(
    kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, stretch: Stretch
) -> jax.Array:
    """Attention of a stretch of even blocks, all of them in each call (`models/levels.py`).

    Args:
      q: [b, f, n, h, k], the frames of the stretch.
      k, v: [b, F, m, h, k], all frames.

    Returns:
      [b, f n, h, k].
    """
    blocks, first = even_blocks(stretch), stretch.prefixes[0]

    def cut(x: jax.Array, start: int, count: int, frames: int) -> jax.Array:
        x = x[:, start : start + count * frames]
        return x.reshape(x.shape[0], count, -1, *x.shape[3:])

    def pair(start: int, count: int, frames: int) -> levels.KeyValue:
        return cut(k, start, count, frames), cut(v, start, count, frames)

    seen = levels.Seen(
        own=pair(first + stretch.distance, blocks, stretch.size),
        before=pair(first, blocks, stretch.size) if blocks > 1 else None,
        all=pair(0, 1, first) if first else None,
    )
    return flat(levels.attention(kernel, cut(q, 0, blocks, stretch.size), seen))


def _pays(stretch: Stretch, q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN takes a stretch by levels, and in fewer calls than it has blocks. Of odd numbers of
    tokens it gives no gradient."""
    blocks, first = even_blocks(stretch), stretch.prefixes[0]
    counts = (stretch.size * q.shape[2], stretch.size * k.shape[2], first * k.shape[2])
    return len(levels.calls(blocks, first > 0)) < blocks and not any(n % 2 for n in counts)


def attend_groups(q: jax.Array, k: jax.Array, v: jax.Array, groups: tuple[Group, ...]) -> jax.Array:
    """Attention by structure: q [b, f, n, h, k], k and v [b, F, m, h, k] -> [b, f, n, h, k].

    `groups` cover the frames of the queries in order. A frame of queries may have fewer tokens than one
    of keys: those that this device has.
    """

    def frames(x: jax.Array, ranges: tuple[Range, ...]) -> jax.Array:
        parts = [x[:, start:stop] for start, stop in ranges]
        return flat(parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1))

    def plain(group: Group) -> jax.Array:
        return softmax_attention(
            frames(q, (group.queries,)), frames(k, group.keys), frames(v, group.keys)
        )

    device, together = sharding.target(), stretches(groups)
    if device.platform == "tpu" and together:
        with jax.named_scope("attention_splash"):
            out = [
                splash.structured_attention(
                    frames(q, (stretch.queries,)),
                    flat(k),
                    flat(v),
                    splash.Structure(
                        stretch.prefixes, stretch.distance, stretch.size, q.shape[2], k.shape[2]
                    ),
                    splash.tiles_of(device.device_kind),
                )
                for stretch in together
            ]
    elif together and gives_sums(q):
        out = []
        for stretch in together:
            start, stop = stretch.queries
            if _pays(stretch, q, k):
                with jax.named_scope("attention_cudnn"):
                    out.append(by_levels(KERNEL, q[:, start:stop], k, v, stretch))
            else:
                out += [plain(group) for group in groups if start <= group.queries[0] < stop]
    else:
        out = [plain(group) for group in groups]
    whole = out[0] if len(out) == 1 else jnp.concatenate(out, 1)
    return whole.reshape(q.shape)


def structured(groups: tuple[Group, ...]) -> Attend:
    """An `attend` for a whole clip with the given structure."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Any) -> tuple[jax.Array, None]:
        return attend_groups(q, k, v, groups), None

    return attend
