"""Attention in plain operations of XLA, which every device takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.models.kernels import Kernel
from oneforcing_jax.models.kernels.groups import Group, by_groups
from oneforcing_jax.shapes import flat

# Logits (per head, float32) above which the queries are computed in chunks.
_LOGITS = 1 << 24
# Logits (per head) of a whole structure up to which it is one call with a mask.
_MASKED = 1 << 16


def kernel(device_kind: str) -> Kernel:
    """The kernel of devices that have none of their own."""
    return Kernel(attend, structured)


def lengths(q: jax.Array, length: Any) -> jax.Array | None:
    """A number of keys, as JAX's own attention takes it: [b] int32."""
    return None if length is None else jnp.full(q.shape[:1], length, jnp.int32)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, length: Any = None) -> jax.Array:
    """See `Kernel`. Keys beyond `length` are computed and hidden. Long queries go in chunks, recomputed in
    the backward pass."""
    with jax.named_scope("attention_xla"):
        return _attend(q, k, v, lengths(q, length))


def structured(q: jax.Array, k: jax.Array, v: jax.Array, groups: tuple[Group, ...]) -> jax.Array:
    """See `Kernel`. Few tokens are one call with a mask, for there each call costs more than hidden keys."""
    t, s = (x.shape[1] * x.shape[2] for x in (q, k))
    if len(groups) == 1 or t * s > _MASKED:
        return by_groups(attend, q, k, v, groups)
    seen = np.zeros((q.shape[1], k.shape[1]), bool)
    for (start, stop), keys in groups:
        for first, end in keys:
            seen[start:stop, first:end] = True
    mask = seen.repeat(q.shape[2], 0).repeat(k.shape[2], 1)[None, None]
    with jax.named_scope("attention_xla"):
        out = jax.nn.dot_product_attention(
            flat(q), flat(k), flat(v), mask=jnp.asarray(mask), implementation="xla"
        )
    return out.reshape(q.shape)


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
