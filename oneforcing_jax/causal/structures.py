"""Attention structures of causal video as data: which frames see which.

A structure is a tuple of `Group`: frames that ask, and the ranges of frames that they see. Everything in a
group sees everything that the group sees. So no kernel needs a mask, no array of tokens x tokens exists on an
accelerator, and no work is done on hidden keys.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

import jax

from oneforcing_jax.models import kernels
from oneforcing_jax.models.kernels.groups import Group, Range
from oneforcing_jax.models.stack import Attend

# Structures that are kept: the same few are asked for again and again, and a long clip has many groups.
KEPT = 8
Rest = ParamSpec("Rest")


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


def structured(groups: tuple[Group, ...]) -> Attend:
    """An `attend` for a whole clip with the given structure."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Any) -> tuple[jax.Array, None]:
        return kernels.chosen().structured(q, k, v, groups), None

    return attend
