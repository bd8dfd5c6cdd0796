"""Causal consistency distillation (stage 2b; paper, equation 1): neighbours on a trajectory share its end.

The target is the moving average of the student (`ema` of the stage) after one step of the causal teacher. All
blocks see real clean context. A clip of one block makes it the distillation of a bidirectional teacher, and a
student that is sampled in one step is the one-step model of section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.structures import teacher_forcing
from oneforcing_jax.losses import consistency
from oneforcing_jax.methods import (
    AVERAGE,
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
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.ranges import Count
from oneforcing_jax.setup.run import Run


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The trajectory whose neighbouring points share an end.

    Attributes:
      steps: of the teacher's Euler solver, from noise to data.
      guidance: s in cond + s (cond - uncond) of the teacher.
    """

    steps: Count
    guidance: float


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config."""

    generator: WanConfig
    consistency: Consistency


class Draws(NamedTuple):
    """Randomness of an update: the number [b] of a step of the solver, and noise like the latents."""

    step: jax.Array
    noise: jax.Array


def distillation(
    model: Model,
    layout: tuple[int, ...],
    sigmas: np.ndarray,
    guidance: float,
    work: Work = Work(),
    teacher: Model | None = None,
) -> Update:
    """The update of a student of the causal teacher.

    The batch holds real "latents" [b, f, c, y, x], conditions, and their null.

    Args:
      model: of the student.
      layout: frames of each block.
      sigmas: [steps + 1] noise levels of the solver, from 1 to 0.
      guidance: of the teacher.
      work: operations.
      teacher: its model; None: as the student's.
    """
    solved, levels = teacher or model, jnp.asarray(sigmas, jnp.float32)

    def draw(key: jax.Array, batch: Batch) -> Draws:
        step, noise = jax.random.split(key)
        shape = batch["latents"].shape
        return Draws(
            jax.random.randint(step, shape[:1], 0, len(sigmas) - 1),
            jax.random.normal(noise, shape),
        )

    def loss(
        params: Params, nets: Mapping[str, Params], batch: Batch, draws: Draws
    ) -> tuple[jax.Array, Metrics]:
        clean, condition = batch["latents"], model.condition(batch)
        now, after = (
            jnp.broadcast_to(level[:, None], clean.shape[:2])
            for level in (levels[draws.step], levels[draws.step + 1])
        )

        def end(params: Params) -> Callable[[jax.Array, jax.Array], jax.Array]:
            def of(x: jax.Array, sigma: jax.Array) -> jax.Array:
                v = teacher_forced(model, params, clean, x, sigma, condition, layout)
                return flow.x0_from_flow(x, v, sigma)

            return of

        def solver(x: jax.Array, sigma: jax.Array) -> jax.Array:
            given = condition, solved.null(batch)
            return guided(solved, nets["teacher"], clean, x, sigma, *given, layout, guidance)

        x = flow.add_noise(clean, draws.noise, now)
        value = consistency.loss(end(params), end(nets[AVERAGE]), solver, x, now, after)
        return value, {"loss": value}

    return Update("model", 1, draw, loss, work)


def make(config: Config, run: Run) -> Method:
    """The method."""
    model = wan.model(config.generator, run.product("model"))
    teacher, settings = wan.model(config.generator), config.consistency
    sigmas = flow.grid(settings.steps, run.shift)
    return Method(
        nets={"model": Network(model, "generator"), "teacher": Network(teacher, "generator")},
        updates=(
            distillation(model, run.layout, sigmas, settings.guidance, work(config, run), teacher),
        ),
        sampled=Sampled("model", run.plan),
        fields=sample_fields(run, model),
    )


def work(config: Config, run: Run) -> Work:
    """Operations of an update: the student's, a forward of its average and two of the teacher."""
    tokens = config.generator.frame_tokens(*run.latents.shape[2:])
    one = flops.structured(config.generator, tokens, teacher_forcing(run.layout)).forward
    student = flow_matching.work(config.generator, run)
    return Work(student.model + 3 * one, student.hardware + 3 * one)


METHOD = Definition(Config, make, STEPS)
