"""Ways to multiply with a matrix, one file each. A wrapper of a network is another product for its matrices.

A product says which leaves lie beside a kernel, how they multiply, and which of them it trains. Nothing else
is to be known of it: parameters, optimisers, averages, checkpoints and exports follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from oneforcing_jax.models.trees import Path

# Logical axes of a kernel, (input, output).
Axes = tuple[str | None, str | None]


class Leaf(NamedTuple):
    """A parameter of a linear layer.

    Attributes:
      init: init(key, shape) -> what it begins with.
      shape: of one layer.
      axes: their logical names.
    """

    init: Callable[..., jax.Array]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


Leaves = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Product:
    """How the linear layers of a network multiply.

    Attributes:
      leaves: leaves(initialiser of a kernel, its shape [d, e], its axes, the layer's name, such as
        "self_attn.q") -> the parameters of a layer without its bias, by name: "kernel", and what lies beside
        it. They are drawn in this order. Leaves of whole numbers or of eight bits stay as they lie, and all
        others but the kernel are used in float32.
      multiply: multiply(x [..., d], such parameters as arrays, the kernel's axes) -> [..., e], in the dtype
        of x.
      merged: merged(such parameters as arrays) -> the plain kernel [d, e] that does the same.
      own: names of the leaves that it trains; None: it trains all parameters of a network.
    """

    leaves: Callable[[Any, tuple[int, int], Axes, str], Mapping[str, Leaf]]
    multiply: Callable[[jax.Array, Leaves, Axes], jax.Array]
    merged: Callable[[Leaves], Any]
    own: tuple[str, ...] | None = None

    @property
    def trains(self) -> Callable[[Path], bool] | None:
        """Which leaves it trains, by their paths; None: all."""
        own = self.own
        return None if own is None else lambda path: path[-1] in own
