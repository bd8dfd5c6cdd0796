"""Training methods: each is a record of pure functions, and the trainer knows only the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Batch = Mapping[str, jax.Array]
# draw(key, batch) -> all randomness of an update, a tree of arrays whose first axis is the batch's
Draw = Callable[[jax.Array, Batch], Any]
# loss(params of the updated network, parameters of all networks, batch, draws) -> (loss, metrics)
Loss = Callable[[Any, Mapping[str, Any], Batch, Any], tuple[jax.Array, dict[str, jax.Array]]]

# What a batch holds once for all its samples; everything else in it has the batch axis first.
SHARED = ("negative",)


class Update(NamedTuple):
    """One optimiser update of an iteration.

    Attributes:
      net: the network that it trains.
      every: in every how many iterations; it runs when the iteration divides by it.
      draw: draws for the whole batch, so that the parts of a batch draw what the whole would.
      loss: a pure function; loss and metrics are means over the samples, so that those of a batch are
        the means of those of its equal parts.
    """

    net: str
    every: int
    draw: Draw
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
