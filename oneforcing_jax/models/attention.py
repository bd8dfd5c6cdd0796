"""Softmax attention on one device.

`softmax_attention` is the one function that computes it. The device that a program is made for picks the
kernel: cuDNN flash attention on GPU, Pallas splash attention on TPU, XLA elsewhere. `causal/structures.py`
says which frames see which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import sharding
from oneforcing_jax.models import cudnn, splash

# Logits (per head, float32) above which the XLA path computes the queries in chunks.
_XLA_LOGITS = 1 << 24
# Parts into which the keys are cut where queries, over all heads, are no more than `_FEW`.
KEY_PARTS, _FEW = 3, 132 * 4 * 128
# A log of a sum of no weights, which is finite so that differences are numbers.
NOTHING = -1e30


def flat(x: jax.Array) -> jax.Array:
    """[b, f, n, ...] -> [b, t, ...], t = f n."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def softmax_attention(
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
    device = sharding.target()
    if device.platform == "tpu":
        with jax.named_scope("attention_splash"):
            return splash.softmax_attention(q, k, v, length, splash.tiles_of(device.device_kind))
    if _takes_cudnn(q):
        with jax.named_scope("attention_cudnn"):
            return _cudnn(q, k, v, length)
    with jax.named_scope("attention_xla"):
        return _xla(q, k, v, _lengths(q, length))


def stores_rows() -> bool:
    """Whether the target's kernel reads the keys of each head as rows that fill its tiles. A cache that lies
    so is read where it is; any other is turned and copied before every call."""
    return sharding.target().platform == "tpu"


def stored_rows(s: int) -> int:
    """Rows of a head for s keys."""
    return splash.padded_keys(s, splash.tiles_of(sharding.target().device_kind))


def attention_over_rows(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array) -> jax.Array:
    """`softmax_attention` over stored rows: q [b, t, h, k], k and v [b, h, s, k]. `length` [t] says how many
    of the first keys each query sees."""
    device = sharding.target()
    if device.platform == "tpu":
        with jax.named_scope("attention_splash"):
            return splash.attention_over_rows(q, k, v, length, splash.tiles_of(device.device_kind))
    with jax.named_scope("attention_xla"):
        shown = jnp.arange(k.shape[2]) < length[:, None]
        k, v = (jnp.moveaxis(x, 1, 2) for x in (k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=shown, implementation="xla")


def _takes_cudnn(q: jax.Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return sharding.target().platform in ("gpu", "cuda") and half and q.shape[-1] % 8 == 0


def gives_sums(q: jax.Array) -> bool:
    """Whether the target's kernel gives the sums of weights that `joined` takes, at no cost. Then keys that
    several blocks see are best read once for the queries of all."""
    return _takes_cudnn(q) and cudnn.known()


class Answer(NamedTuple):
    """Attention over some of the keys.

    Attributes:
      out: [b, t, h, k], float32 where it was joined.
      total: log of the sum of the exponentials of all logits, [b, h, t] float32; `NOTHING` where no key is
        seen, and then `out` may be anything.
    """

    out: jax.Array
    total: jax.Array


def summed_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array | int | None = None
) -> Answer:
    """`softmax_attention` with its sum of weights, for programs that take no gradient.

    Few queries fill a GPU badly: 3,120 of 12 heads are 2.2 tiles for each of 132 processors. With the keys in
    `KEY_PARTS` samples they are 6.7, which took 1.15 ms for 21 frames of Wan's on an H200, where it was 1.35.
    """
    b, s = k.shape[:2]
    if not _takes_cudnn(q):
        with jax.named_scope("attention_xla"):
            return _by_parts(1, _summed, q, k, v, s if length is None else length)
    with jax.named_scope("attention_cudnn"):
        if length is None:
            return Answer(*cudnn.forward(q, k, v))
        few = b * q.shape[1] * q.shape[2] <= _FEW and s % KEY_PARTS == 0
        return _by_parts(KEY_PARTS if few else 1, cudnn.forward, q, k, v, length)


def _by_parts(
    parts: int,
    kernel: Callable[..., tuple[jax.Array, jax.Array]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: Any,
) -> Answer:
    """The keys cut into parts, which are samples of one call of kernel(q, k, v, lengths)."""
    b, s = k.shape[:2]
    size = s // parts
    k, v = (x.reshape(b * parts, size, *x.shape[2:]) for x in (k, v))
    lengths = jnp.tile(jnp.clip(length - size * jnp.arange(parts), 0, size), b)
    # A kernel may give no number for a query without keys.
    out, total = kernel(jnp.repeat(q, parts, 0), k, v, jnp.maximum(lengths, 1).astype(jnp.int32))
    total = jnp.where(lengths[:, None, None] > 0, total, NOTHING)
    out, total = (x.reshape(b, parts, *x.shape[1:]) for x in (out, total))
    return joined([Answer(out[:, i], total[:, i]) for i in range(parts)])


def _summed(q: jax.Array, k: jax.Array, v: jax.Array, length: Any) -> Answer:
    """`summed_attention` in plain operations; `length` may have one for each sample."""
    logits = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    shown = jnp.arange(k.shape[1]) < jnp.reshape(length, (-1, 1, 1, 1))
    logits = jnp.where(shown, logits * q.shape[-1] ** -0.5, -jnp.inf)
    total = jax.nn.logsumexp(logits, -1)
    weights = jnp.exp(logits - total[..., None]).astype(v.dtype)
    return Answer(jnp.einsum("bhts,bshk->bthk", weights, v), total)


def joined(answers: Sequence[Answer]) -> Answer:
    """Attention of the same queries over all keys, from answers over some each."""
    if len(answers) == 1:
        return answers[0]
    total = functools.reduce(jnp.logaddexp, (one.total for one in answers))
    shares = (jnp.moveaxis(jnp.exp(one.total - total), 1, 2)[..., None] for one in answers)
    parts = (w * one.out for w, one in zip(shares, answers, strict=True))
    return Answer(functools.reduce(jnp.add, parts), total)


def after(answer: Answer, queries: int) -> Answer:
    """An answer with so many queries before its own, which see nothing."""
    out = jnp.pad(answer.out, ((0, 0), (queries, 0), (0, 0), (0, 0)))
    before = ((0, 0), (0, 0), (queries, 0))
    return Answer(out, jnp.pad(answer.total, before, constant_values=NOTHING))


def is_answer(primitive: Any, *shapes: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint` that keeps the answers of accelerators' kernels where keys are at least as
    many as queries. These take the longest to compute again, and the least memory to keep."""
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

    It is two products of a matrix and a vector, for which no kernel is made. Tokens may lie on several
    devices, which then exchange a maximum, a sum and a vector for each head.
    """
    logits = jnp.einsum("bhk,bfnhk->bhfn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=(-2, -1)).astype(v.dtype)
    return jnp.einsum("bhfn,bfnhk->bhk", weights, v)


def _lengths(q: jax.Array, length: Any) -> jax.Array | None:
    return None if length is None else jnp.full(q.shape[:1], length, jnp.int32)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, length: Any) -> jax.Array:
    """cuDNN flash attention. JAX refuses odd lengths under differentiation, so they get one more token,
    which is hidden as a key and dropped as a query."""
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
