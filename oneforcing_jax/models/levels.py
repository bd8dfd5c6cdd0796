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
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from oneforcing_jax.models.cudnn import Kernel
from oneforcing_jax.models.splash import ANSWERS

KeyValue = tuple[jax.Array, jax.Array]


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(kernel: Kernel, q: jax.Array, seen: Seen) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v of each block over what it sees, [b, blocks, t, h, k] as `q` is.

    Rematerialisation can keep it, and what its gradient needs besides, by the name `splash.ANSWERS`.
    """
    return _forward(kernel, q, seen)[0]


def _forward(kernel: Kernel, q: jax.Array, seen: Seen) -> Any:
    outs, totals = [], []
    for call in calls(q.shape[1], seen.all is not None):
        k, v = getattr(seen, call.seen)
        out, total = kernel.forward(call.queries.of(q), call.keys.of(k), call.keys.of(v))
        outs.append(call.queries.back(out, q))
        totals.append(call.queries.back(jnp.moveaxis(total, 1, 2), q, -jnp.inf))
    joint = functools.reduce(jnp.logaddexp, totals)  # [b, blocks, t, h]
    shares = (jnp.exp(total - joint)[..., None] for total in totals)
    out = _sum([share * out for share, out in zip(shares, outs, strict=True)], q.dtype)
    out, joint = (checkpoint_name(x, ANSWERS) for x in (out, joint))
    return out, (q, seen, out, joint)


def _backward(kernel: Kernel, kept: Any, given: jax.Array) -> Any:
    q, seen, out, joint = kept
    q_bars: list[jax.Array] = []
    bars: dict[str, list[list[jax.Array]]] = {}
    for call in calls(q.shape[1], seen.all is not None):
        asked, keys = call.queries.of, getattr(seen, call.seen)
        found = kernel.backward(
            asked(q),
            *(call.keys.of(x) for x in keys),
            asked(out),
            jnp.moveaxis(asked(joint), 2, 1),
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
