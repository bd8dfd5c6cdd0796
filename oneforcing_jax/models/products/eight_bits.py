"""Matrices of eight bits for serving: y = (x W) scale, with a scale for each column of W.

What is multiplied with stays in the dtype of the arithmetic, and so does the product, which reads the matrix
as it lies: whole numbers up to 127 and floats of eight bits are exact in bfloat16.

google/qwix quantises by catching the calls of a module while it is traced, and wraps arrays in types of its
own; beside a record that says how a layer multiplies it would be more code than these functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.products import Axes, Leaf, Leaves, Product, plain
from oneforcing_jax.sharding import gathered

# The dtypes of the matrices, and the greatest number of each that a column uses.
KINDS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
MOST = {"int8": 127.0, "fp8": 448.0}
# Those of a transformer's layers, by their names without the number of a layer.
MATRICES = tuple(
    [f"{part}.{name}" for part in ("self_attn", "cross_attn") for name in "qkvo"]
    + ["ffn.0", "ffn.2"]
)
# A column of zeros has a scale, too.
LEAST = 1e-12


@dataclasses.dataclass(frozen=True)
class EightBits:
    """Which matrices have eight bits.

    Attributes:
      kind: one of `KINDS`.
      keep: names out of `MATRICES` that stay as they are.
    """

    kind: str
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not set(self.keep) <= set(MATRICES):
            raise InputError(
                f"precision: expected {' or '.join(KINDS)}, and after a colon names among "
                f"{','.join(MATRICES)} that keep their precision, found {self}; change it"
            )

    @classmethod
    def of(cls, text: str) -> EightBits:
        """ "KIND" or "KIND:NAME,NAME", of an option."""
        kind, colon, names = text.partition(":")
        return cls(kind, tuple(names.split(",")) if colon else ())

    def __str__(self) -> str:
        return ":".join([self.kind, *([",".join(self.keep)] if self.keep else [])])

    def chosen(self, name: str) -> bool:
        """Whether the matrix of that name has eight bits."""
        return name in MATRICES and name not in self.keep


@functools.cache
def product(eight: EightBits) -> Product:
    """The plain product but for the matrices of eight bits. Its parameters come from `quantised`."""
    dtype = KINDS[eight.kind]

    def leaves(init: Any, shape: tuple[int, int], axes: Axes, name: str) -> Mapping[str, Leaf]:
        if not eight.chosen(name):
            return plain.leaves(init, shape, axes, name)
        kernel = Leaf(lambda key, shape: jnp.zeros(shape, dtype), shape, axes)
        return {"kernel": kernel, "scale": Leaf(jax.nn.initializers.ones, shape[1:], axes[1:])}

    return Product(leaves, multiply, merged)


def multiply(x: jax.Array, leaves: Leaves, axes: Axes) -> jax.Array:
    """(x @ kernel) scale in the dtype of x; the scale is applied in float32."""
    if "scale" not in leaves:
        return plain.multiply(x, leaves, axes)
    y = plain.matmul(x, gathered(leaves["kernel"], axes).astype(x.dtype))
    return (y * leaves["scale"]).astype(x.dtype)


def merged(leaves: Leaves) -> Any:
    """The kernel in float32, of one layer or stacked."""
    kernel = leaves["kernel"]
    if "scale" not in leaves:
        return kernel
    return kernel.astype(jnp.float32) * leaves["scale"][..., None, :]


def quantised(params: Any, eight: EightBits) -> Any:
    """Parameters of a plain network, for one with the product of `eight`. Layers may be stacked or apart."""
    return _changed(params, eight, lambda kernel: _rounded(kernel, eight.kind))


def rounded(params: Any, eight: EightBits) -> Any:
    """Parameters of a plain network with the values that eight bits can hold."""

    def change(kernel: jax.Array) -> dict[str, jax.Array]:
        return {"kernel": merged(_rounded(kernel, eight.kind)).astype(kernel.dtype)}

    return _changed(params, eight, change)


def _changed(
    params: Any, eight: EightBits, change: Callable[[jax.Array], dict[str, jax.Array]]
) -> Any:
    """Parameters in which leaves take the place of each chosen kernel."""

    def layer(part: Any, *names: str) -> Any:
        if "kernel" not in part:
            return {
                name: layer(inner, *names, name) if isinstance(inner, Mapping) else inner
                for name, inner in part.items()
            }
        return {**part, **change(part["kernel"])} if eight.chosen(".".join(names)) else part

    blocks = params["blocks"]
    apart = isinstance(blocks, tuple)
    return params | {"blocks": tuple(map(layer, blocks)) if apart else layer(blocks)}


@functools.partial(jax.jit, static_argnames="kind")
def _rounded(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """Kernels [..., d, e] as they will lie, and their scales [..., e] float32."""
    kernel, most = kernel.astype(jnp.float32), MOST[kind]
    scale = jnp.maximum(jnp.abs(kernel).max(-2), LEAST) / most
    # The quotient of the greatest may be rounded up, beyond what the dtype holds.
    parts = jnp.clip(kernel / scale[..., None, :], -most, most)
    parts = jnp.round(parts) if kind == "int8" else parts
    return {"kernel": parts.astype(KINDS[kind]), "scale": scale}
