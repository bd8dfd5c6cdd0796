"""Softmax attention, and the attention structures of causal video as data.

`attend` is the one function that computes attention, and picks the kernel: cuDNN flash attention on GPU,
Pallas splash attention on TPU, XLA elsewhere. A structure is a tuple of `Group`: frames that ask, and the
ranges of frames that they see. Within a group everything sees everything, so that no backend ever needs
a mask, no array of tokens x tokens exists on an accelerator, and no work is done on hidden keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax.sharding import constrain, shard_heads

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


def attend_groups(
    q: jax.Array, k: jax.Array, v: jax.Array, groups: tuple[Group, ...], frame_tokens: int
) -> jax.Array:
    """Attention by structure: q [b, t, h, k], k and v [b, s, h, k] -> [b, t, h, k].

    `groups` cover the queries in order; frames are `frame_tokens` tokens long.
    """

    def tokens(x: jax.Array, ranges: tuple[Range, ...]) -> jax.Array:
        parts = [x[:, a * frame_tokens : b * frame_tokens] for a, b in ranges]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)

    out = [
        attend(tokens(q, (group.queries,)), tokens(k, group.keys), tokens(v, group.keys))
        for group in groups
    ]
    return out[0] if len(out) == 1 else jnp.concatenate(out, 1)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: jax.Array | int | None = None,
    backend: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v over the first `length` keys.

    Args:
      q: [b, t, h, k].
      k, v: [b, s, h, k].
      length: number of keys that count, may be traced; None: all.
      backend: "cudnn", "splash" or "xla"; None: the best for the default device and dtype.

    Returns:
      [b, t, h, k] in q's dtype; the softmax is float32.
    """
    backend = backend or _backend(q.dtype)
    lengths = None if length is None else jnp.full(q.shape[:1], length, jnp.int32)
    if backend == "splash":
        return shard_heads(functools.partial(_splash, interpret=False), q, k, v, lengths)
    q, k, v = (constrain(x, "batch", None, "heads_full", None) for x in (q, k, v))
    if backend == "cudnn":
        return jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    return _xla(q, k, v, lengths)


def _backend(dtype: Any) -> str:
    platform = jax.default_backend()
    half = dtype in (jnp.bfloat16, jnp.float16)
    return (
        {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")
        if half or platform == "tpu"
        else "xla"
    )


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


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, interpret: bool
) -> jax.Array:
    """Pallas splash attention on one device; padding to the kernel's tiles is hidden by segments."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (b, t, h, size), s = q.shape, k.shape[1]
    tile = 128
    t_pad, s_pad = -t % tile, -s % tile

    def padded(x: jax.Array, extra: int) -> jax.Array:
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))), 2, 1)

    mask = splash.MultiHeadMask([splash.FullMask((t + t_pad, s + s_pad))] * h)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    ends = jnp.full((b,), s, jnp.int32) if lengths is None else lengths
    hidden = (jnp.arange(s + s_pad)[None] >= ends[:, None]).astype(jnp.int32)
    segments = splash.SegmentIds(q=jnp.zeros((b, t + t_pad), jnp.int32), kv=hidden)
    out = jax.vmap(kernel)(
        padded(q * size**-0.5, t_pad), padded(k, s_pad), padded(v, s_pad), segments
    )
    return jnp.moveaxis(out, 1, 2)[:, :t].astype(q.dtype)
