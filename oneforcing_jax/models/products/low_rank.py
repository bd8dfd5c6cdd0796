"""Low-rank adapters beside matrices of a network, which alone are trained: y = x W + scale (x down) up."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.products import Axes, Leaf, Leaves, Product, plain
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.setup.ranges import Natural, NotNegative
from oneforcing_jax.sharding import gathered

DOWN, UP = "down", "up"


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Adapters of a network.

    Attributes:
      rank: of the adapters; 0: there are none, and the network is trained whole.
      alpha: they are multiplied by alpha / rank; 0: by 1.
      where: which matrices have one: regular expressions of their names, or of the end of these after a dot.
        The names are Wan's, without the number of a layer: "self_attn.q", "cross_attn.o", "ffn.0",
        "time_projection".
    """

    rank: Natural = 0
    alpha: NotNegative = 0.0
    where: tuple[str, ...] = ("[qkvo]", "ffn.[02]")

    def __post_init__(self) -> None:
        for pattern in self.where:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"where: expected regular expressions, found {pattern!r} ({error}); mend it"
                ) from None

    @property
    def scale(self) -> float:
        """What the adapters are multiplied by."""
        return self.alpha / self.rank if self.alpha else 1.0

    def chosen(self, name: str) -> bool:
        """Whether the matrix of that name has an adapter."""
        return any(re.search(rf"(^|\.)({pattern})$", name) for pattern in self.where)


@functools.cache
def product(adapters: LowRank, base: Product = PLAIN) -> Product:
    """Another product with adapters beside its kernels. They begin with zeros in `up`, so that at first the
    network gives what it gave without them."""

    def leaves(init: Any, shape: tuple[int, int], axes: Axes, name: str) -> Mapping[str, Leaf]:
        found = base.leaves(init, shape, axes, name)
        if not adapters.chosen(name):
            return found
        down, up = nn.initializers.normal(shape[0] ** -0.5), nn.initializers.zeros_init()
        return {
            **found,
            DOWN: Leaf(down, (shape[0], adapters.rank), (axes[0], None)),
            UP: Leaf(up, (adapters.rank, shape[1]), (None, axes[1])),
        }

    def multiply(x: jax.Array, leaves: Leaves, axes: Axes) -> jax.Array:
        y = base.multiply(x, leaves, axes)
        if DOWN not in leaves:
            return y
        down = gathered(leaves[DOWN].astype(x.dtype), (axes[0], None))
        up = gathered(leaves[UP].astype(x.dtype), (None, axes[1]))
        return y + plain.matmul(adapters.scale * plain.matmul(x, down), up)

    def merged(leaves: Leaves) -> Any:
        kernel = base.merged(leaves)
        if DOWN not in leaves:
            return kernel
        return kernel + adapters.scale * (leaves[DOWN] @ leaves[UP])

    return Product(leaves, multiply, merged, own=(DOWN, UP))
