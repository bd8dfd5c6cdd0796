"""cuDNN's flash attention with the log-sum-exp of each query's logits, by which answers over several sets of
keys become one.

`jax.nn.dot_product_attention` gives it too, rounded to the dtype of the answers: near 10 it is then off by
0.03 in bfloat16, and so is a weight. Its backward pass cannot be asked alone at all. So the operations behind
it are bound here, which JAX does not promise to keep. Where a version has them otherwise, `known` says so,
and callers do without.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What the operations are told besides scale and mask, as versions 0.10 to 0.12 of JAX name it.
_SETTINGS: dict[str, Any] = {
    "seed": 42,
    "dropout_rate": 0.0,
    "variadic_args": (False, False),
    "layout": 0,  # [b, t, h, k]
    "sliding_window_length": None,
    "score_mod": None,
}
_TOLD = {"scale", "mask_type", "is_training", *_SETTINGS}


class _Operations(NamedTuple):
    """Forward and backward pass, their settings, and the masks by name."""

    forward: Any
    backward: Any
    settings: dict[str, Any]
    masks: Any


@functools.cache
def _operations() -> _Operations | None:
    try:
        from jax._src.cudnn import fused_attention_stablehlo as found

        names = list(inspect.signature(found._dot_product_attention_fwd_impl).parameters)
        told = [
            name for name in names[names.index("page_table_v") + 1 :] if name != "score_mod_args"
        ]
        if not set(told) <= _TOLD:
            return None
        return _Operations(
            found._dot_product_attention_fwd_p_wrapper,
            found._dot_product_attention_bwd_p_wrapper,
            {name: value for name, value in _SETTINGS.items() if name in told},
            found.MaskType,
        )
    except (ImportError, AttributeError, ValueError):
        return None


def known() -> bool:
    """Whether this version of JAX has the operations as they are bound here."""
    return _operations() is not None


def _bind(q: jax.Array, *arrays: jax.Array, forward: bool, lengths: jax.Array | None) -> Any:
    operations = _operations()
    assert operations is not None
    mask = operations.masks.NO_MASK if lengths is None else operations.masks.PADDING
    settings = operations.settings | {"scale": q.shape[-1] ** -0.5, "mask_type": mask}
    unused = jnp.zeros(0, q.dtype)
    counts = () if lengths is None else (jnp.full_like(lengths, q.shape[1]), lengths)
    # Bias, lengths, offsets and tables of pages.
    rest = [unused, *(counts or (unused, unused)), *[unused] * 4]
    k, v, *results = arrays
    if forward:
        return operations.forward.bind(q, k, v, *rest, is_training=True, **settings)
    return operations.backward.bind(q, k, v, *rest, *results, **settings)


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(k)) v, and the log-sum-exp of the logits. It cannot be differentiated.

    Args:
      q: [b, t, h, k].
      k, v: [b, s, h, k].
      lengths: [b] int32, the number of first keys that count; None: all.

    Returns:
      [b, t, h, k] in q's dtype, and [b, h, t] float32.
    """
    out, total = _bind(q, k, v, forward=True, lengths=lengths)
    return out, total


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, total: jax.Array, given: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v from what `forward` gave and the gradient of its answer."""
    q_bar, k_bar, v_bar = _bind(q, k, v, total, out, given, forward=False, lengths=None)
    return q_bar, k_bar, v_bar


class Kernel(NamedTuple):
    """A kernel's two passes: `forward` and `backward` of this module, or what computes the same."""

    forward: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


KERNEL = Kernel(forward, backward)
