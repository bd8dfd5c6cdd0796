"""Softmax attention, and the attention structures of causal video as data.

`attend` is the one function that computes attention, for arrays of one device. The device that a program
is made for picks the kernel: cuDNN flash attention on GPU, Pallas splash attention on TPU, XLA elsewhere.
A structure is a tuple of `Group`: frames that ask, and the ranges of frames that they see. Within a group
everything sees everything, so that no backend ever needs a mask, no array of tokens x tokens exists on an
accelerator, and no work is done on hidden keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import sharding
from oneforcing_jax.models import splash

Range = tuple[int, int]

# Logits (per head, float32) above which the XLA path computes the queries in chunks.
_XLA_LOGITS = 1 << 24


class Group(NamedTuple):
    """Frames [start, stop) that ask, and the ranges of frames whose keys they see."""

    queries: Range
    keys: tuple[Range, ...]


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
    ends = [sum(layout[: i + 1]) for i in range(len(layout))]
    return [(end - size, end) for size, end in zip(layout, ends, strict=True)]


def block_causal(
    layout: Sequence[int], window: int | None = None, sink: int = 0
) -> tuple[Group, ...]:
    """Each block sees itself and the blocks before it."""
    return tuple(Group(block, (*earlier(*block, window, sink), block)) for block in _bounds(layout))


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


def teacher_forcing(
    layout: Sequence[int], window: int | None = None, sink: int = 0
) -> tuple[Group, ...]:
    """Structure of the sequence [clean, noisy], both queries and keys."""
    clean = sum(layout)
    noisy = noisy_after_clean(layout, window, sink)
    moved = tuple(Group((g.queries[0] + clean, g.queries[1] + clean), g.keys) for g in noisy)
    return block_causal(layout, window, sink) + moved


def flat(x: jax.Array) -> jax.Array:
    """[b, f, n, ...] -> [b, t, ...], t = f n."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


class Run(NamedTuple):
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


def runs(groups: tuple[Group, ...]) -> tuple[Run, ...] | None:
    """The groups as runs; None if some see more than a prefix and a block (those of a rolling window)."""
    made: list[Run] = []
    for (start, stop), keys in groups:
        if len(keys) > 2 or (len(keys) == 2 and keys[0][0]):
            return None
        prefix, (own, end) = (keys[0][1] if len(keys) == 2 else 0), keys[-1]
        here = Run((start, stop), (prefix,) * (stop - start), own - prefix, end - own)
        if made and made[-1][2:] == here[2:]:
            last = made.pop()
            here = Run((last.queries[0], stop), last.prefixes + here.prefixes, *here[2:])
        made.append(here)
    return tuple(made)


def attend_groups(q: jax.Array, k: jax.Array, v: jax.Array, groups: tuple[Group, ...]) -> jax.Array:
    """Attention by structure: q [b, f, n, h, k], k and v [b, F, m, h, k] -> [b, f, n, h, k].

    `groups` cover the frames of the queries in order. A frame of queries may have fewer tokens than one
    of keys: those that this device has.
    """

    def frames(x: jax.Array, ranges: tuple[Range, ...]) -> jax.Array:
        parts = [x[:, start:stop] for start, stop in ranges]
        return flat(parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1))

    device, together = sharding.target(), runs(groups)
    if device.platform == "tpu" and together:
        with jax.named_scope("attention_splash"):
            out = [
                splash.attend_run(
                    frames(q, (run.queries,)),
                    flat(k),
                    flat(v),
                    splash.Structure(run.prefixes, run.distance, run.size, q.shape[2], k.shape[2]),
                    splash.tiles_of(device.device_kind),
                )
                for run in together
            ]
    else:
        out = [
            attend(frames(q, (group.queries,)), frames(k, group.keys), frames(v, group.keys))
            for group in groups
        ]
    whole = out[0] if len(out) == 1 else jnp.concatenate(out, 1)
    return whole.reshape(q.shape)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array | int | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v over the first `length` keys, on one device.

    Kernels of accelerators skip the keys beyond `length`; XLA computes and hides them.

    Args:
      q: [b, t, h, k].
      k, v: [b, s, h, k].
      length: number of keys that count, may be traced; None: all.

    Returns:
      [b, t, h, k] in q's dtype; the softmax is float32.
    """
    if isinstance(length, int):
        k, v, length = k[:, :length], v[:, :length], None
    device, half = sharding.target(), q.dtype in (jnp.bfloat16, jnp.float16)
    if device.platform == "tpu":
        with jax.named_scope("attention_splash"):
            return splash.attend(q, k, v, length, splash.tiles_of(device.device_kind))
    if device.platform in ("gpu", "cuda") and half and q.shape[-1] % 8 == 0:
        with jax.named_scope("attention_cudnn"):
            return _cudnn(q, k, v, length)
    with jax.named_scope("attention_xla"):
        return _xla(q, k, v, _lengths(q, length))


def is_answer(primitive: Any, *shapes: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint` that keeps the answers of the kernels of accelerators where there are at
    least as many keys as queries: they take the longest to compute again, and least memory to keep."""
    if primitive.name == "name":
        return params["name"] == splash.ANSWERS
    if primitive.name == "dot_product_attention_fwd_wrapper":  # cuDNN's, [b, t, h, k]
        return shapes[1].shape[1] >= shapes[0].shape[1]
    return False


def skips_hidden_keys() -> bool:
    """Whether the target's kernel takes no time for keys beyond `length`; if not, it pays to give it a
    static part of them."""
    return sharding.target().platform != "cpu"


def one_query(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of one query over the tokens of a clip: q [b, h, k], k and v [b, f, n, h, k] -> [b, h, k].

    Two products of a matrix and a vector: no kernel is made for it. Tokens may lie on several devices,
    which then exchange a maximum, a sum and a vector for each head.
    """
    logits = jnp.einsum("bhk,bfnhk->bhfn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=(-2, -1)).astype(v.dtype)
    return jnp.einsum("bhfn,bfnhk->bhk", weights, v)


def _lengths(q: jax.Array, length: Any) -> jax.Array | None:
    return None if length is None else jnp.full(q.shape[:1], length, jnp.int32)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, length: Any) -> jax.Array:
    """cuDNN flash attention. JAX refuses odd lengths under differentiation: they get one more token,
    which as a key is hidden and as a query is dropped."""
    t, s = q.shape[1], k.shape[1]
    if s % 2 and length is None:
        length = s
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=_lengths(q, length), implementation="cudnn"
    )
    return out[:, :t]


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Plain attention; long queries go in chunks, recomputed in the backward pass."""

    def once(chunk: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            chunk, k, v, key_value_seq_lengths=lengths, implementation="xla"
        )

    t, s = q.shape[1], k.shape[1]
    chunks = next((c for c in range(1, t + 1) if t % c == 0 and t // c * s <= _XLA_LOGITS), t)
    if chunks == 1:
        return once(q)
    parts = jnp.moveaxis(q.reshape(q.shape[0], chunks, t // chunks, *q.shape[2:]), 1, 0)
    out = jax.lax.map(jax.checkpoint(once), parts)
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)
