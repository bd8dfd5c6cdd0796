"""The plain product: a kernel, and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from oneforcing_jax.models.products import Axes, Leaf, Leaves, Product
from oneforcing_jax.sharding import gathered, sharded_tokens, target


def leaves(init: Any, shape: tuple[int, int], axes: Axes, name: str) -> Mapping[str, Leaf]:
    """The kernel alone."""
    return {"kernel": Leaf(init, shape, axes)}


def multiply(x: jax.Array, leaves: Leaves, axes: Axes) -> jax.Array:
    """x @ kernel in the dtype of x."""
    return matmul(x, gathered(leaves["kernel"].astype(x.dtype), axes))


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., d] @ kernel [d, e]; on CPU with one batch axis, which is twice as fast there."""
    if target().platform != "cpu" or sharded_tokens():
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def merged(leaves: Leaves) -> Any:
    """The kernel as it is."""
    return leaves["kernel"]


PLAIN = Product(leaves, multiply, merged)
