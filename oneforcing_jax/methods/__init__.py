"""Training methods. Each is one file that says everything about itself; the trainer knows only its record.

A method's file holds METHOD, a `Definition`: the sections of a config that it reads, and the function that
makes its `Method`. A config names the file ("one_forcing"), or the dotted path of a module elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as File
from typing import Any, NamedTuple

import jax

from oneforcing_jax.causal.plan import Plan
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import trees
from oneforcing_jax.models.condition import NEGATIVE
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.products.low_rank import DOWN, LowRank
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.run import Run

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# draw(key, batch) -> all randomness of an update, a tree of arrays whose first axis is the batch's
Draw = Callable[[jax.Array, Batch], Any]
# loss(params of the updated network, parameters of all networks and AVERAGE, batch, draws) -> (loss, metrics)
Loss = Callable[[Params, Mapping[str, Params], Batch, Any], tuple[jax.Array, Metrics]]

# Beside the networks by their names, a loss finds under this one the moving average of the network that the
# method samples from, as it was before the update; without an average, that network itself.
AVERAGE = "average"

# What a batch holds once for all its samples; everything else in it has the batch axis first.
SHARED = (NEGATIVE,)


class Network(NamedTuple):
    """A network of a method.

    Attributes:
      model: its record.
      section: of the config that holds its sizes.
      backbone: name of the part of it that a plain transformer's parameters fill, where it starts from a
        network of another name; the rest is then random. "": the whole.
    """

    model: Model
    section: str = ""
    backbone: str = ""

    @property
    def config(self) -> WanConfig:
        """Sizes of its transformer."""
        config: WanConfig = self.model.config
        return config

    def filled(self, net: str, source: str) -> str:
        """The part of this network `net` that a source "PLACE:NET" fills, whose rest is random; "": all."""
        return self.backbone if source.rpartition(":")[2] != net else ""


class Work(NamedTuple):
    """Operations of one update, of one sample. A multiply and an add are two.

    Attributes:
      model: of the method, nothing computed again.
      hardware: with what the backward pass computes again to save memory.
      keys_seen: share of the keys that attention reads, where their number is told at run time.
      branches: how often conditionals take their dearest branch, by the name of their function.
    """

    model: float = 0.0
    hardware: float = 0.0
    keys_seen: float = 1.0
    branches: Mapping[str, float] = {}


class Update(NamedTuple):
    """One optimiser update of an iteration.

    Attributes:
      net: the network that it trains, or the part of it that its model says.
      every: iterations from one run of it to the next; it runs when this divides the iteration.
      draw: draws for the whole batch, so that the parts of a batch draw what the whole would.
      loss: a pure function; loss and metrics are means over the samples, so that those of a batch are
        the means of those of its equal parts.
      work: its operations.
    """

    net: str
    every: int
    draw: Draw
    loss: Loss
    work: Work = Work()


class Sampled(NamedTuple):
    """The network of a method that makes videos: the one that is averaged, shown and served.

    Attributes:
      net: its name.
      plan: blocks of a causal one; None: bidirectional, whole clips in many steps.
    """

    net: str
    plan: Plan | None


class Timed(NamedTuple):
    """A piece of an update that can be timed by itself: a function, its arguments, and one sample's work."""

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: float


@dataclasses.dataclass(frozen=True)
class Method:
    """What training, sampling, counting and planning need to know of a method.

    Attributes:
      nets: all networks by name; those that no update trains are frozen.
      updates: in the order in which they run within an iteration.
      sampled: the network that makes videos; None: there is none.
      fields: of a batch, with the shape of one sample.
      left_out: networks that these settings leave out; a config may still say where they start.
      choices: settings that change time and memory, and no result: values by name in the config.
      parts: gives pieces of an update to time, from the networks' parameters and a batch.
      refused: why it cannot train with these settings, which other uses of the networks do not need; "":
        it can.
    """

    nets: Mapping[str, Network]
    updates: tuple[Update, ...]
    sampled: Sampled | None = None
    fields: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    parts: Callable[[Mapping[str, Params], Batch], Iterator[Timed]] | None = None
    refused: str = ""

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trained networks."""
        return tuple(dict.fromkeys(update.net for update in self.updates))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the networks that are only read."""
        return tuple(name for name in self.nets if name not in self.trained)


class Definition(NamedTuple):
    """What a method's file holds as METHOD.

    Attributes:
      config: a frozen dataclass with a field for each section of the config that the method reads.
      make: the method of (such a record, the run).
      unread: fields of the run that what it learns does not follow from.
    """

    config: type
    make: Callable[[Any, Run], Method]
    unread: tuple[str, ...] = ()


# `unread` of what trains all blocks of real clips at once: steps are those of its samples alone.
STEPS = ("blocks.steps", "blocks.first_steps")


def find(name: str, folders: File | None = None) -> Definition:
    """The definition of a method, by the name of its file or the dotted path of its module; see `parts.find`.

    Raises:
      InputError: there is none.
    """
    try:
        definition: Definition = parts.find(name, __name__, "METHOD", Definition, folders)
    except InputError as error:
        raise InputError(f"method: {error}") from None
    return definition


def make(name: str, run: Run, adapters: Mapping[str, LowRank] | None = None) -> Method:
    """The method of that name for a run.

    Args:
      name, run: which.
      adapters: of its trained networks, by name; a rank of 0 is none.

    Raises:
      InputError: there is none, or its sections of the config are not what it needs; or adapters of a network
        that has no matrices of these names, or is not trained.
    """
    definition = find(name, run.read_from)
    adapters = {net: own for net, own in (adapters or {}).items() if own.rank}
    run = dataclasses.replace(run, low_rank=adapters)
    made = definition.make(run.view(definition.config), run)
    for net, own in adapters.items():
        _check_adapters(made, net, own)
    return made


@dataclasses.dataclass(frozen=True)
class _Adapted:
    low_rank: Mapping[str, LowRank]


def of_stage(run: Run, stage: str) -> Method:
    """The method of a stage, with its adapters; see `make`."""
    return make(str(run.stages[stage].get("method", "")), run, adapters_of(run, stage))


def adapters_of(run: Run, stage: str) -> Mapping[str, LowRank]:
    """The adapters of a stage's networks, those of rank 0 too."""
    given = {"low_rank": run.stages[stage].get("low_rank", {})}
    return configs.read(_Adapted, given, f"stages.{stage}").low_rank


def _check_adapters(method: Method, net: str, own: LowRank) -> None:
    if net not in method.trained:
        raise InputError(
            f"low_rank: expected trained networks among {list(method.trained)}, found {net!r}; name these"
        )
    model = method.nets[net].model
    if model.product.own is None:
        raise InputError(
            f"low_rank: expected a method whose {net!r} multiplies by run.product({net!r}), found one that "
            "does not; train it whole, or see CONTRIBUTING.md"
        )
    paths = list(trees.flat(model.shapes))
    if not any(path[-1] == DOWN for path in paths):
        known = {".".join(path[:-1]) for path in paths if path[-1] == "kernel"}
        raise InputError(
            f"low_rank.{net}.where: expected names of matrices among {sorted(known)}, found "
            f"{list(own.where)}; change them"
        )


def sample_fields(run: Run, model: Model) -> dict[str, tuple[int, ...]]:
    """Fields of a batch that every method has: clips, and the conditions that a model takes."""
    return {"latents": run.latents.shape} | model.fields(run.latents.frames)
