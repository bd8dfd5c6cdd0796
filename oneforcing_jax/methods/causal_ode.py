"""Causal ODE initialisation (stage 2a): regress the end of the causal teacher's trajectories."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import (
    STEPS,
    Batch,
    Definition,
    Method,
    Metrics,
    Network,
    Sampled,
    Update,
    Work,
    flow_matching,
    sample_fields,
)
from oneforcing_jax.methods.flow_matching import guided, teacher_forced
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.ranges import Count, Natural
from oneforcing_jax.setup.run import Run


@dataclasses.dataclass(frozen=True)
class Ode:
    """Trajectories of the causal teacher.

    Attributes:
      steps: of the Euler solver.
      kept: steps whose input is kept; the end point always is.
      guidance: s in cond + s (cond - uncond).
    """

    steps: Count
    kept: tuple[Natural, ...]
    guidance: float

    def __post_init__(self) -> None:
        if not self.kept or not 0 <= min(self.kept) <= max(self.kept) < self.steps:
            raise InputError(
                f"expected kept steps in [0, {self.steps}), found {list(self.kept)}; change ode.kept"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config."""

    generator: WanConfig
    ode: Ode


def trajectory(
    model: Model,
    params: Params,
    clean: jax.Array,
    noise: jax.Array,
    condition: Condition,
    null: Condition,
    layout: tuple[int, ...],
    sigmas: np.ndarray,
    kept: tuple[int, ...],
    guidance: float,
) -> jax.Array:
    """Euler steps of the guided causal model, every block conditioned on the real clean blocks before it.

    Args:
      model, params: a model trained by teacher forcing.
      clean: [b, f, c, y, x] real clips, the context.
      noise: [b, f, c, y, x], the starting points.
      condition, null: of the clips, and what says nothing.
      layout: frames of each block.
      sigmas: [steps + 1] noise levels from 1 to 0.
      kept: steps whose input is kept; the end point always is.
      guidance: s in cond + s (cond - uncond).

    Returns:
      [b, kept + 1, f, c, y, x], the last row the end point.
    """

    def step(x: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        now, after = levels
        level = jnp.full(x.shape[:2], now)
        v = guided(model, params, clean, x, level, condition, null, layout, guidance)
        return x + (after - now) * v, x

    pairs = jnp.stack([jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:])], 1).astype(jnp.float32)
    end, rows = jax.lax.scan(step, noise, pairs)
    return jnp.moveaxis(jnp.concatenate([rows[jnp.array(kept)], end[None]]), 0, 1)


def endpoint_error(
    model: Model,
    params: Params,
    batch: Batch,
    row: jax.Array,
    levels: tuple[float, ...],
    layout: tuple[int, ...],
) -> jax.Array:
    """mean (x0(x_t) - x_end)^2, x_t a row of each trajectory, every block seeing real clean context.

    Args:
      model, params: the student.
      batch: "latents" [b, f, c, y, x], "trajectory" [b, rows + 1, f, c, y, x], and conditions.
      row: [b], the number of x_t in it.
      levels: noise levels of the rows before the last.
      layout: frames of each block.
    """
    rows, clean = batch["trajectory"], batch["latents"]
    x = rows[jnp.arange(rows.shape[0]), row]
    sigma = jnp.broadcast_to(jnp.array(levels)[row][:, None], x.shape[:2])
    v = teacher_forced(model, params, clean, x, sigma, model.condition(batch), layout)
    return jnp.square(flow.x0_from_flow(x, v, sigma) - rows[:, -1]).mean()


def levels(ode: Ode, shift: float) -> tuple[float, ...]:
    """Noise levels of the kept rows."""
    grid = flow.grid(ode.steps, shift)
    return tuple(float(grid[i]) for i in ode.kept)


def regression(
    model: Model, layout: tuple[int, ...], levels: tuple[float, ...], work: Work = Work()
) -> Update:
    """Regression of the end point from a random kept row, under teacher forcing.

    The batch holds "latents" [b, f, c, y, x] (the real clips) and "trajectory" of `trajectory`;
    `levels` are the noise levels of its kept rows.
    """

    def draw(key: jax.Array, batch: Batch) -> jax.Array:
        return jax.random.randint(key, batch["latents"].shape[:1], 0, len(levels))

    def loss(params: Params, nets: Any, batch: Batch, row: jax.Array) -> tuple[jax.Array, Metrics]:
        value = endpoint_error(model, params, batch, row, levels, layout)
        return value, {"loss": value}

    return Update("model", 1, draw, loss, work)


def make(config: Config, run: Run) -> Method:
    """The method."""
    model, ode = wan.model(config.generator, run.product("model")), config.ode
    work = flow_matching.work(config.generator, run)
    fields = sample_fields(run, model)
    return Method(
        nets={"model": Network(model, "generator")},
        updates=(regression(model, run.layout, levels(ode, run.shift), work),),
        sampled=Sampled("model", run.plan),
        fields=fields | {"trajectory": (len(ode.kept) + 1, *run.latents.shape)},
    )


METHOD = Definition(Config, make, STEPS)
