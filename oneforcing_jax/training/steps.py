"""The train step: state in, state out, one jitted program for each update of a method.

A step is a function of (state, what is frozen, batch, iteration): random keys are folded from the
iteration, so that a resumed run draws what an unbroken one would have drawn. Of a network that is trained in
part, the state holds that part, and the rest lies with the frozen networks: once for all networks that
start from the same one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import AVERAGE, SHARED, Batch, Method, Metrics, Update
from oneforcing_jax.models import trees
from oneforcing_jax.models.trees import Params, Path
from oneforcing_jax.setup.ranges import Decay, Natural
from oneforcing_jax.system.room import HOST
from oneforcing_jax.training import lending, randomness
from oneforcing_jax.training.optim import Optimiser

State = dict[str, Any]
Step = Callable[[State, Any, Any, Any], tuple[State, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Ema:
    """Moving average of the parameters of the network that a method samples from.

    Attributes:
      decay: per update of that network; 0: there is no average.
      start: iteration from which it averages; before, it is a copy.
    """

    decay: Decay = 0.0
    start: Natural = 0


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A method, its optimisers and the mesh: everything a step is compiled from.

    Attributes:
      method: the record of networks and losses.
      optimisers: of each trained network.
      ema: what is averaged.
      mesh: devices.
      seed: root of all randomness.
      stage: name of the stage, on which the randomness depends.
      batch: samples of an iteration, over all devices.
      microbatch: samples of one forward and backward, over all devices; 0: the whole batch. Results do
        not depend on it, memory does.
      offload_optimiser: keep optimiser states in the host's memory between steps.
      init: what each network starts from, as a config says it.

    Raises:
      InputError: a batch that does not divide into microbatches, or those over the devices.
    """

    method: Method
    optimisers: Mapping[str, Optimiser]
    ema: Ema
    mesh: Mesh
    seed: int
    stage: str
    batch: int
    microbatch: int = 0
    offload_optimiser: bool = False
    init: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.microbatch or self.batch
        if self.batch < 1 or size < 0 or self.batch % size:
            raise InputError(
                f"train: expected a batch >= 1 that the microbatch divides (0: one part), found batch "
                f"{self.batch} and microbatch {self.microbatch}; change one of them"
            )
        shares = math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))
        if size % shares:
            raise InputError(
                f"train: expected {'a microbatch' if self.microbatch else 'a batch'} that divides over "
                f"{shares} devices of the mesh axes data and fsdp, found {size}; change it or the mesh"
            )
        for name, net in self.method.nets.items():
            sharding.check(f"heads of {name}", net.config.num_heads, "whole_heads", self.mesh)

    @property
    def partial(self) -> tuple[str, ...]:
        """Names of the networks of which a part is trained."""
        nets = self.method.nets
        return tuple(n for n in self.method.trained if nets[n].model.trains is not None)

    @functools.cached_property
    def lent(self) -> dict[str, str]:
        """Networks whose base is another's; see `lending.find`."""
        return lending.find(self.method, self.partial, self.init, self.mesh)

    def lend(self, frozen: Mapping[str, Params]) -> dict[str, Params]:
        """What is frozen, with the bases that are another network's."""
        return lending.lend(self.method, self.init, self.lent, frozen)

    @property
    def parts(self) -> int:
        """Microbatches of a batch."""
        return self.batch // (self.microbatch or self.batch)

    def _boxed(self, params: Mapping[str, Any]) -> State:
        trained = {n: self.method.nets[n].model.part(params[n]) for n in self.method.trained}
        state = {
            "params": trained,
            "opt": {name: self.optimisers[name].make().init(p) for name, p in trained.items()},
        }
        return state | ({"ema": {self.averaged: trained[self.averaged]}} if self.averaged else {})

    @property
    def averaged(self) -> str:
        """Name of the network that has a moving average; "" if none has."""
        sampled = self.method.sampled
        return sampled.net if self.ema.decay and sampled else ""

    def abstract(self) -> tuple[State, dict[str, Any]]:
        """Shapes, dtypes and shardings of the state and of what is frozen."""
        return self._abstract

    @functools.cached_property
    def _abstract(self) -> tuple[State, dict[str, Any]]:
        nets = self.method.nets
        boxed = {name: net.model.shapes for name, net in nets.items()}
        state = sharding.abstract(jax.eval_shape(lambda p: self._boxed(p), boxed), self.mesh)
        read = (*self.method.frozen, *self.partial)
        frozen = self.frozen({name: nets[name].model.in_use(self.mesh) for name in read})
        return state | {"opt": self._at_rest(state["opt"])}, frozen

    def _at_rest(self, opt: Any) -> Any:
        """Abstract optimiser states where they lie between steps; scalars stay on the devices."""
        if not self.offload_optimiser:
            return opt
        if HOST not in {memory.kind for memory in self.mesh.devices.flat[0].addressable_memories()}:
            raise InputError(
                f"train: expected devices with {HOST} memory for offload_optimiser, found "
                f"{self.mesh.devices.flat[0].device_kind!r} without; set offload_optimiser=False"
            )
        return jax.tree.map(
            lambda leaf: (
                leaf.update(sharding=leaf.sharding.with_memory_kind(HOST)) if leaf.ndim else leaf
            ),
            opt,
        )

    def init_net(self, name: str, wanted: Callable[[Path], bool] | None = None) -> Any:
        """Random parameters of one network, or its wanted leaves, born sharded."""
        model = self.method.nets[name].model
        key = randomness.key(self.seed, self.stage, name, "init")
        like = trees.select(self.whole(*self.abstract())[name], wanted)

        def make() -> Any:
            made = trees.select(sharding.unbox(model.init(key)), wanted)
            return jax.tree.map(lambda x, kept: x.astype(kept.dtype), made, like)

        return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))()

    def frozen(self, params: Mapping[str, Any]) -> dict[str, Params]:
        """What is only read, of the parameters of networks: frozen networks, and of the others what no update
        trains, unless it is `lent`."""
        read = {n: params[n] for n in self.method.frozen if n in params}
        own = [n for n in self.partial if n not in self.lent]
        return read | {n: self.method.nets[n].model.base(params[n]) for n in own}

    def whole(self, state: State, frozen: Mapping[str, Params]) -> Params:
        """The parameters of all networks."""
        return trees.merge(state["params"], self.lend(frozen))

    def init_state(self, params: Mapping[str, Any]) -> State:
        """The state before the first iteration, from the parameters of the trained networks."""
        abstract, _ = self.abstract()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        copy = lambda p: jax.tree.map(jnp.copy, self._boxed(p))  # noqa: E731
        return jax.jit(copy, out_shardings=shardings)(
            {name: params[name] for name in self.method.trained}
        )

    def sampled(self, state: State, frozen: Mapping[str, Params]) -> dict[str, Params]:
        """Parameters of the network that makes videos: "" the raw ones, and if there is one "ema" their
        average."""
        if self.method.sampled is None:
            return {}
        net = self.method.sampled.net
        parts = {"": state["params"].get(net, {})}
        parts |= {"ema": state["ema"][net]} if self.averaged else {}
        base = self.lend(frozen).get(net, {})
        return {name: trees.merge(part, base) for name, part in parts.items()}

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A host batch on the devices, split over the batch axis (what is shared has none)."""

        def place(name: str, x: Any) -> jax.Array:
            if name in SHARED:
                return jax.make_array_from_process_local_data(
                    NamedSharding(self.mesh, P()), x, x.shape
                )
            shape = (len(x) * self.share[1], *x.shape[1:])
            return jax.make_array_from_process_local_data(self._rows, x, shape)

        return {name: place(name, x) for name, x in batch.items()}

    @property
    def _rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, sharding.spec(("batch",)))

    @functools.cached_property
    def share(self) -> tuple[int, int]:
        """(index, count) of the part of a batch that this process reads; the parts are equal and in order.

        Raises:
          InputError: the devices of this process hold rows that are not such a part.
        """
        ranges = self._rows.addressable_devices_indices_map((self.batch,)).values()
        rows = {r for s in ranges if s for r in range(*s[0].indices(self.batch))}
        first, size = min(rows), len(rows)
        if max(rows) - first + 1 != size or first % size or self.batch % size:
            raise InputError(
                f"mesh: expected each process to hold one of the equal parts of a batch, found "
                f"rows {sorted(rows)} of {self.batch} at process {jax.process_index()}; order "
                "the mesh by processes"
            )
        return first // size, self.batch // size

    def steps(self) -> tuple[Step, ...]:
        """The jitted step of each update of the method; the state is donated."""
        abstract, _ = self.abstract()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return tuple(
            jax.jit(
                self._step(number),
                donate_argnums=0,
                out_shardings=(shardings, NamedSharding(self.mesh, P())),
            )
            for number in range(len(self.method.updates))
        )

    def _step(self, number: int) -> Step:
        update = self.method.updates[number]
        net = update.net
        transform = self.optimisers[net].make()
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract()[0]["opt"][net])

        def fetch(opt: Any) -> Any:
            if not self.offload_optimiser:
                return opt
            return jax.tree.map(
                lambda x, s: jax.device_put(x, s.with_memory_kind("device")), opt, places
            )

        def step(state: State, frozen: Any, batch: Any, iteration: jax.Array) -> Any:
            key = jax.random.fold_in(
                randomness.key(self.seed, self.stage, net, "update"), iteration
            )
            nets = dict(self.whole(state, frozen))
            if self.method.sampled:
                shown = self.sampled(state, frozen)
                nets[AVERAGE] = shown.get("ema", shown[""])
            part = state["params"][net]
            gradients, metrics = self._gradients(update, part, nets, batch, key)
            with jax.named_scope("optimiser"):
                updates, opt = transform.update(gradients, fetch(state["opt"][net]), part)
                params = optax.apply_updates(part, updates)
            new = dict(state)
            new["params"] = state["params"] | {net: params}
            new["opt"] = state["opt"] | {net: opt}
            if net == self.averaged:
                new["ema"] = {net: self._average(state["ema"][net], params, iteration)}
            norms = {
                "gradient_norm": optax.global_norm(gradients),
                "update_norm": optax.global_norm(updates),
            }
            return new, metrics | norms

        step.__name__ = f"{net}_step"
        return step

    def _gradients(
        self, update: Update, part: Params, nets: Any, batch: Batch, key: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the trained part, and metrics, of the batch: the means over its microbatches.

        Matrices are cast to the dtype of their products once, before all forwards. A rollout has a forward
        for each block, and devices then exchange what is already cast.
        """

        def cast(name: str, params: Any, trained: bool = False) -> Any:
            if name == AVERAGE and self.method.sampled:
                name = self.method.sampled.net
            return self.method.nets[name].model.in_compute_dtype(params, trained)

        others = {name: cast(name, other) for name, other in nets.items()}
        whole = nets[update.net]

        def one(batch: Batch, draws: Any) -> tuple[Params, Metrics]:
            def loss(part: Params) -> tuple[jax.Array, Metrics]:
                params = cast(update.net, trees.merge(part, whole), trained=True)
                return update.loss(params, others, batch, draws)

            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(part)
            return gradients, metrics

        shared = {name: x for name, x in batch.items() if name in SHARED}
        samples = {name: x for name, x in batch.items() if name not in SHARED}
        draws = jax.tree.map(lambda x: sharding.constrain(x, "batch"), update.draw(key, batch))
        if self.parts == 1:
            return one(batch, draws)

        # Part i has rows i, i + parts, ..., so a device's share of it lies on that device already.
        def cut(x: jax.Array) -> jax.Array:
            rows = x.reshape(-1, self.parts, *x.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(rows, None, "batch")

        def add(total: Any, rows: tuple[Any, Any]) -> tuple[Any, None]:
            found = one(rows[0] | shared, rows[1])
            return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, found), None

        cuts = jax.tree.map(cut, (samples, draws))
        first = jax.tree.map(lambda x: x[0], cuts)
        like = jax.eval_shape(lambda rows: one(rows[0] | shared, rows[1]), first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
        total, _ = jax.lax.scan(add, zeros, cuts)
        return jax.tree.map(lambda x: x / self.parts, total)

    def _average(self, ema: Any, params: Any, iteration: jax.Array) -> Any:
        decay = jnp.where(iteration < self.ema.start, 0.0, self.ema.decay)
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)
