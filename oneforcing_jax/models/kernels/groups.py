"""Which frames see which, as kernels are told: groups, and the stretches of them that one call can take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax.shapes import flat

Range = tuple[int, int]


class Group(NamedTuple):
    """Frames [start, stop) that ask, and the ranges of frames whose keys they see."""

    queries: Range
    keys: tuple[Range, ...]


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


def of_group(
    attend: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, group: Group
) -> jax.Array:
    """Attention of one group in a call of `Kernel.attend`: q [b, f, n, h, k], k and v [b, F, m, h, k], all
    frames -> [b, t, h, k]."""

    def frames(x: jax.Array, ranges: tuple[Range, ...]) -> jax.Array:
        parts = [x[:, start:stop] for start, stop in ranges]
        return flat(parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1))

    return attend(frames(q, (group.queries,)), frames(k, group.keys), frames(v, group.keys))


def whole(parts: list[jax.Array], q: jax.Array) -> jax.Array:
    """Answers [b, t, h, k] of consecutive queries as one, in the shape of q."""
    return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)).reshape(q.shape)


def by_groups(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    groups: tuple[Group, ...],
) -> jax.Array:
    """`Kernel.structured` in a call of `Kernel.attend` for each group."""
    return whole([of_group(attend, q, k, v, group) for group in groups], q)
