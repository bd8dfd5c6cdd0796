"""Attention of many blocks, each over all blocks before it and over itself, in few calls of a kernel without
masks.

Block i sees the blocks before it as the bits of i say: for every power of two s, the blocks from an odd
multiple of s to the next multiple see the s blocks before them. Such pairs are the samples of one call. So
n blocks take some log2(n) calls, of queries in thousands, in place of n with keys of n lengths.

The answers of all calls become one by their log-sum-exp. The backward pass asks the kernel's once a call,
with the joint answer and the joint log-sum-exp, which is exact: a weight is exp(logit - log-sum-exp).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from oneforcing_jax.models.kernels import ANSWERS
from oneforcing_jax.models.kernels.answers import NOTHING, Answer, joined
from oneforcing_jax.models.kernels.groups import Stretch
from oneforcing_jax.shapes import flat

KeyValue = tuple[jax.Array, jax.Array]


class Passes(NamedTuple):
    """A kernel's two passes.

    Attributes:
      forward: forward(q, k, v), of q [b, t, h, k] and k, v [b, s, h, k].
      backward: backward(q, k, v, out, total, given) gives the gradients of q, k and v, from what `forward`
        gave and the gradient of its answer.
    """

    forward: Callable[[jax.Array, jax.Array, jax.Array], Answer]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


class Seen(NamedTuple):
    """Keys and values, each [b, blocks, tokens, h, k]. There are as many blocks as of queries in `own` and
    `before`, and one in `all`.

    Attributes:
      own: what each block of queries sees alone.
      before: what the later ones see of each block; None: there is one block.
      all: what all see; None: nothing.
    """

    own: KeyValue
    before: KeyValue | None
    all: KeyValue | None


class Span(NamedTuple):
    """Blocks that one call takes: of `runs` runs of `period` blocks from number `first` on, the `length`
    blocks after the first `skip` of each. Runs are samples."""

    first: int
    runs: int
    period: int
    skip: int
    length: int

    def of(self, x: jax.Array) -> jax.Array:
        """[b, blocks, t, ...] -> [b runs, length t, ...]."""
        b, _, t, *rest = x.shape
        x = x[:, self.first : self.first + self.runs * self.period]
        x = x.reshape(b, self.runs, self.period, t, *rest)[
            :, :, self.skip : self.skip + self.length
        ]
        return x.reshape(b * self.runs, self.length * t, *rest)

    def back(self, x: jax.Array, like: jax.Array, fill: float = 0.0) -> jax.Array:
        """The reverse of `of`, for what has the blocks of `like`, and `fill` in all others."""
        b, blocks, t = like.shape[:3]
        rest = x.shape[2:]
        around = (self.skip, self.period - self.skip - self.length)
        x = x.reshape(b, self.runs, self.length, t, *rest)
        x = _pad(x, 2, around, fill).reshape(b, -1, t, *rest)
        return _pad(x, 1, (self.first, blocks - self.first - x.shape[1]), fill)


def _pad(x: jax.Array, axis: int, around: tuple[int, int], fill: float) -> jax.Array:
    return jnp.pad(
        x, [around if i == axis else (0, 0) for i in range(x.ndim)], constant_values=fill
    )


class Call(NamedTuple):
    """The blocks of queries and keys of one call; the keys are those of an attribute of `Seen`."""

    seen: str
    queries: Span
    keys: Span


def calls(blocks: int, shared: bool) -> list[Call]:
    """The calls for so many blocks of queries; `shared`: there are keys that all see.

    The first gives every query an answer.
    """
    each, whole = Span(0, blocks, 1, 0, 1), Span(0, 1, 1, 0, 1)
    found = [Call("own", each, each)]
    if shared:
        found.append(Call("all", Span(0, 1, blocks, 0, blocks), whole))
    s = 1
    while s < blocks:
        pairs = blocks // (2 * s)
        rest = blocks - pairs * 2 * s - s
        if pairs:
            spans = (Span(0, pairs, 2 * s, skip, s) for skip in (s, 0))
            found.append(Call("before", *spans))
        if rest > 0:  # the last pair, whose second half is not whole
            first = pairs * 2 * s
            spans = (Span(first, 1, s + rest, skip, n) for skip, n in ((s, rest), (0, s)))
            found.append(Call("before", *spans))
        s *= 2
    return found


def even_blocks(stretch: Stretch) -> int:
    """The number of a stretch's blocks, where each has as many frames of queries as of keys, and sees what
    those before it end at. Otherwise 0."""
    (start, stop), size, first = stretch.queries, stretch.size, stretch.prefixes[0]
    blocks = (stop - start) // size
    steps = tuple(first + i * size for i in range(blocks) for _ in range(size))
    return blocks if stretch.prefixes == steps and stretch.distance >= 0 else 0


def pays(stretch: Stretch) -> bool:
    """Whether a stretch takes fewer calls than it has blocks."""
    blocks = even_blocks(stretch)
    return len(calls(blocks, stretch.prefixes[0] > 0)) < blocks


def of_stretch(
    passes: Passes, q: jax.Array, k: jax.Array, v: jax.Array, stretch: Stretch
) -> jax.Array:
    """Attention of a stretch of even blocks, all of them in each call.

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

    def pair(start: int, count: int, frames: int) -> KeyValue:
        return cut(k, start, count, frames), cut(v, start, count, frames)

    seen = Seen(
        own=pair(first + stretch.distance, blocks, stretch.size),
        before=pair(first, blocks, stretch.size) if blocks > 1 else None,
        all=pair(0, 1, first) if first else None,
    )
    return flat(attention(passes, cut(q, 0, blocks, stretch.size), seen))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(passes: Passes, q: jax.Array, seen: Seen) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v of each block over what it sees, [b, blocks, t, h, k] as `q` is.

    Rematerialisation can keep it, and what its gradient needs besides, by the name `ANSWERS`.
    """
    return _forward(passes, q, seen)[0]


def _forward(passes: Passes, q: jax.Array, seen: Seen) -> Any:
    answers = []
    for call in calls(q.shape[1], seen.all is not None):
        k, v = getattr(seen, call.seen)
        out, total = passes.forward(call.queries.of(q), call.keys.of(k), call.keys.of(v))
        answers.append(Answer(call.queries.back(out, q), call.queries.back(total, q, NOTHING)))
    out, joint = joined(answers)
    out, joint = (checkpoint_name(x, ANSWERS) for x in (out.astype(q.dtype), joint))
    return out, (q, seen, out, joint)


def _backward(passes: Passes, kept: Any, given: jax.Array) -> Any:
    q, seen, out, joint = kept
    q_bars: list[jax.Array] = []
    bars: dict[str, list[list[jax.Array]]] = {}
    for call in calls(q.shape[1], seen.all is not None):
        asked, keys = call.queries.of, getattr(seen, call.seen)
        found = passes.backward(
            asked(q),
            *(call.keys.of(x) for x in keys),
            asked(out),
            asked(joint),
            asked(given),
        )
        q_bars.append(call.queries.back(found[0], q))
        pair = [call.keys.back(bar, x) for bar, x in zip(found[1:], keys, strict=True)]
        bars.setdefault(call.seen, []).append(pair)
    sums: dict[str, Any] = dict.fromkeys(Seen._fields)
    for name, pairs in bars.items():
        sums[name] = tuple(_sum(parts, q.dtype) for parts in zip(*pairs, strict=True))
    return _sum(q_bars, q.dtype), Seen(**sums)


def _sum(parts: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """The sum, added up in float32 or finer."""
    exact = jnp.promote_types(dtype, jnp.float32)
    return functools.reduce(operator.add, (x.astype(exact) for x in parts)).astype(dtype)


attention.defvjp(_forward, _backward)
