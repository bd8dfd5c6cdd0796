"""Training methods: each is a record of pure functions, and the trainer knows only the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

# loss(params of the updated network, parameters of all networks, batch, key) -> (loss, metrics)
Loss = Callable[
    [Any, Mapping[str, Any], Mapping[str, jax.Array], jax.Array],
    tuple[jax.Array, dict[str, jax.Array]],
]


class Update(NamedTuple):
    """One optimiser update of an iteration.

    Attributes:
      net: the network that it trains.
      every: in every how many iterations; it runs when the iteration divides by it.
      loss: the loss, a pure function.
    """

    net: str
    every: int
    loss: Loss


class Method(NamedTuple):
    """What the trainer needs to know.

    Attributes:
      nets: all networks (Linen modules) by name; those that no update trains are frozen.
      updates: in the order in which they run within an iteration.
    """

    nets: Mapping[str, Any]
    updates: tuple[Update, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trained networks."""
        return tuple(dict.fromkeys(update.net for update in self.updates))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the networks that are only read."""
        return tuple(name for name in self.nets if name not in self.trained)
