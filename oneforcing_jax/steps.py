"""The train step: state in, state out, one jitted program for each update of a method.

A step is a function of (state, frozen networks, batch, iteration): random keys are folded from the
iteration, so that a resumed run draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import sharding
from oneforcing_jax.methods import Method
from oneforcing_jax.optim import Optimiser

State = dict[str, Any]
Step = Callable[[State, Any, Any, Any], tuple[State, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Ema:
    """Moving average of one network's parameters.

    Attributes:
      net: the network; "" for none.
      decay: per update of that network.
      start: iteration from which it averages; before, it is a copy.
    """

    net: str = ""
    decay: float = 0.99
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A method, its optimisers and the mesh: everything a step is compiled from.

    Attributes:
      method: the record of networks and losses.
      optimisers: of each trained network.
      ema: what is averaged.
      mesh: devices.
      seed: root of all randomness.
    """

    method: Method
    optimisers: Mapping[str, Optimiser]
    ema: Ema
    mesh: Mesh
    seed: int

    def _boxed(self, params: Mapping[str, Any]) -> State:
        trained = {name: params[name] for name in self.method.trained}
        state = {
            "params": trained,
            "opt": {name: self.optimisers[name].make().init(p) for name, p in trained.items()},
        }
        return state | ({"ema": {self.ema.net: trained[self.ema.net]}} if self.ema.net else {})

    def abstract(self) -> tuple[State, dict[str, Any]]:
        """Shapes, dtypes and shardings of the state and of the frozen networks."""
        boxed = jax.eval_shape(
            lambda: {name: init(net, 0) for name, net in self.method.nets.items()}
        )
        state = jax.eval_shape(lambda p: self._boxed(p), boxed)
        frozen = {name: boxed[name] for name in self.method.frozen}

        def sharded(tree: Any) -> Any:
            return jax.tree.map(
                lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
                sharding.unbox(tree),
                sharding.shardings(tree, self.mesh),
            )

        return sharded(state), sharded(frozen)

    def init_net(self, name: str) -> Any:
        """Random parameters of one network, born sharded."""
        net, seed = self.method.nets[name], self.seed + sum(map(ord, name))
        shardings = sharding.shardings(jax.eval_shape(lambda: init(net, seed)), self.mesh)
        return jax.jit(lambda: sharding.unbox(init(net, seed)), out_shardings=shardings)()

    def init_state(self, params: Mapping[str, Any]) -> State:
        """The state before the first iteration, from the parameters of the trained networks."""
        abstract, _ = self.abstract()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        copy = lambda p: jax.tree.map(jnp.copy, self._boxed(p))  # noqa: E731
        return jax.jit(copy, out_shardings=shardings)(
            {name: params[name] for name in self.method.trained}
        )

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A host batch on the devices, split over the batch axis; "negative" has none."""

        def place(name: str, x: Any) -> jax.Array:
            spec = P() if name == "negative" else sharding.spec(("batch",))
            return jax.make_array_from_process_local_data(NamedSharding(self.mesh, spec), x)

        return {name: place(name, x) for name, x in batch.items()}

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
        net, _, loss = self.method.updates[number]
        transform = self.optimisers[net].make()

        def step(state: State, frozen: Any, batch: Any, iteration: jax.Array) -> Any:
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.key(self.seed), iteration), number
            )
            params = state["params"][net]
            nets = state["params"] | frozen
            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
                params, nets, batch, key
            )
            updates, opt = transform.update(gradients, state["opt"][net], params)
            params = optax.apply_updates(params, updates)
            new = dict(state)
            new["params"] = state["params"] | {net: params}
            new["opt"] = state["opt"] | {net: opt}
            if net == self.ema.net:
                new["ema"] = {net: self._average(state["ema"][net], params, iteration)}
            return new, metrics | {"gradient_norm": optax.global_norm(gradients)}

        step.__name__ = f"{net}_step"
        return step

    def _average(self, ema: Any, params: Any, iteration: jax.Array) -> Any:
        decay = jnp.where(iteration < self.ema.start, 0.0, self.ema.decay)
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)


def init(net: Any, seed: int) -> Any:
    """Random parameters of a transformer or critic, with their logical axes."""
    c = net.config
    latents = jnp.zeros((1, 1, c.in_dim, c.patch, c.patch))
    text = jnp.zeros((1, c.text_len, c.text_dim))
    return net.init(jax.random.key(seed), latents, jnp.zeros(1), text)["params"]
