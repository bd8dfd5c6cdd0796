"""Attention in plain operations of XLA, which every device takes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax.models.kernels import Kernel
from oneforcing_jax.models.kernels.groups import by_groups

# Logits (per head, float32) above which the queries are computed in chunks.
_LOGITS = 1 << 24


def kernel(device_kind: str) -> Kernel:
    """The kernel of devices that have none of their own."""
    return Kernel(attend, functools.partial(by_groups, attend))


def lengths(q: jax.Array, length: Any) -> jax.Array | None:
    """A number of keys, as JAX's own attention takes it: [b] int32."""
    return None if length is None else jnp.full(q.shape[:1], length, jnp.int32)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, length: Any = None) -> jax.Array:
    """See `Kernel`. Keys beyond `length` are computed and hidden. Long queries go in chunks, recomputed in
    the backward pass."""
    with jax.named_scope("attention_xla"):
        return _attend(q, k, v, lengths(q, length))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, counts: jax.Array | None) -> jax.Array:
    def once(chunk: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            chunk, k, v, key_value_seq_lengths=counts, implementation="xla"
        )

    t, s = q.shape[1], k.shape[1]
    chunks = next((c for c in range(1, t + 1) if t % c == 0 and t // c * s <= _LOGITS), t)
    if chunks == 1:
        return once(q)
    parts = jnp.moveaxis(q.reshape(q.shape[0], chunks, t // chunks, *q.shape[2:]), 1, 0)
    out = jax.lax.map(jax.checkpoint(once), parts)
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)
