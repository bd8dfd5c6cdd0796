"""cuDNN's flash attention, the kernel of GPUs; also with the log-sum-exp of each query's logits, by which
answers over several sets of keys become one.

`jax.nn.dot_product_attention` gives it too, rounded to the dtype of the answers: near 10 it is then off by
0.03 in bfloat16, and so is a weight. Its backward pass cannot be asked alone at all. So the operations behind
it are bound here, which JAX does not promise to keep. Where a version has them otherwise, `known` says so,
and the kernel does without.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax.models.kernels import Kernel, levels, named_answers, xla
from oneforcing_jax.models.kernels.answers import NOTHING, Answer, joined
from oneforcing_jax.models.kernels.groups import (
    Group,
    Stretch,
    by_groups,
    of_group,
    stretches,
    whole,
)

# Parts into which the keys are cut where queries, over all heads, are no more than `_FEW`.
KEY_PARTS, _FEW = 3, 132 * 4 * 128

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


def forward(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> Answer:
    """softmax(q k^T / sqrt(k)) v, and the log-sum-exp of the logits. It cannot be differentiated.

    Args:
      q: [b, t, h, k].
      k, v: [b, s, h, k].
      lengths: [b] int32, the number of first keys that count; None: all.

    Returns:
      [b, t, h, k] in q's dtype, and [b, t, h] float32.
    """
    out, total = _bind(q, k, v, forward=True, lengths=lengths)
    return Answer(out, jnp.moveaxis(total, 1, 2))


def backward(
    q: jax.Array, k: jax.Array, v: jax.Array, out: jax.Array, total: jax.Array, given: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v from what `forward` gave and the gradient of its answer."""
    total = jnp.moveaxis(total, 2, 1)
    q_bar, k_bar, v_bar = _bind(q, k, v, total, out, given, forward=False, lengths=None)
    return q_bar, k_bar, v_bar


PASSES = levels.Passes(forward, backward)


def kernel(device_kind: str) -> Kernel:
    """The kernel of GPUs. Queries that cuDNN does not take have XLA's, and nothing is joined."""
    return Kernel(attend, structured, sums, summed, skips=True, keeps=keeps)


def _takes(q: jax.Array) -> bool:
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0


def attend(q: jax.Array, k: jax.Array, v: jax.Array, length: Any = None) -> jax.Array:
    """See `Kernel`. JAX refuses odd lengths under differentiation, so they get one more token, which is
    hidden as a key and dropped as a query."""
    if not _takes(q):
        return xla.attend(q, k, v, length)
    with jax.named_scope("attention_cudnn"):
        t, s = q.shape[1], k.shape[1]
        if s % 2 and length is None:
            length = s
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        out = jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=xla.lengths(q, length), implementation="cudnn"
        )
        return out[:, :t]


def structured(q: jax.Array, k: jax.Array, v: jax.Array, groups: tuple[Group, ...]) -> jax.Array:
    """See `Kernel`: stretches by levels where these pay, and a call a group elsewhere."""
    together = stretches(groups)
    if not together or not sums(q):
        return by_groups(attend, q, k, v, groups)
    out = []
    for stretch in together:
        start, stop = stretch.queries
        if levels.pays(stretch) and _even(stretch, q, k):
            with jax.named_scope("attention_cudnn"):
                out.append(levels.of_stretch(PASSES, q[:, start:stop], k, v, stretch))
        else:
            own = (group for group in groups if start <= group.queries[0] < stop)
            out += [of_group(attend, q, k, v, group) for group in own]
    return whole(out, q)


def _even(stretch: Stretch, q: jax.Array, k: jax.Array) -> bool:
    """Whether the calls of a stretch have even numbers of tokens; of odd ones cuDNN gives no gradient."""
    frames, first = stretch.size, stretch.prefixes[0]
    return not any(n % 2 for n in (frames * q.shape[2], frames * k.shape[2], first * k.shape[2]))


def sums(q: jax.Array) -> bool:
    """See `Kernel`."""
    return _takes(q) and known()


def summed(q: jax.Array, k: jax.Array, v: jax.Array, length: Any = None) -> Answer:
    """See `Kernel`.

    Few queries fill a GPU badly: 3,120 of 12 heads are 2.2 tiles for each of 132 processors. With the keys in
    `KEY_PARTS` samples they are 6.7, which took 1.15 ms for 21 frames of Wan's on an H200, where it was 1.35.
    """
    b, s = k.shape[:2]
    with jax.named_scope("attention_cudnn"):
        if length is None:
            return forward(q, k, v)
        few = b * q.shape[1] * q.shape[2] <= _FEW and s % KEY_PARTS == 0
        return by_parts(KEY_PARTS if few else 1, forward, q, k, v, length)


def by_parts(
    parts: int,
    kernel: Callable[..., Answer],
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


def keeps(primitive: Any, *shapes: Any, **params: Any) -> bool:
    """See `Kernel`: cuDNN's own answers [b, t, h, k], and those of levels by name."""
    if primitive.name == "dot_product_attention_fwd_wrapper":
        return bool(shapes[1].shape[1] >= shapes[0].shape[1])
    return named_answers(primitive, *shapes, **params)
