"""Autoregressive diffusion by teacher forcing (stage 1): one noise level a block, real clean context."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.losses import denoise
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
from oneforcing_jax.methods.flow_matching import FlowDraws
from oneforcing_jax.models import wan
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.ranges import Share
from oneforcing_jax.setup.run import Run


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config.

    Attributes:
      generator: sizes.
      prompt_drop_rate: share of conditions that their null replaces.
      bell_weighting: whether middle noise levels weigh more (`flow.bell_weight`), as in the original.
    """

    generator: WanConfig
    prompt_drop_rate: Share
    bell_weighting: bool


def causal(
    model: Model,
    layout: tuple[int, ...],
    shift: float,
    drop_rate: float,
    bell: bool = False,
    work: Work = Work(),
) -> Update:
    """The update of a causal model whose blocks have `layout` frames."""

    def draw(key: jax.Array, batch: Batch) -> FlowDraws:
        return flow_matching.draw(key, batch["latents"].shape, len(layout), shift, drop_rate)

    def loss(
        params: Params, nets: Any, batch: Batch, draws: FlowDraws
    ) -> tuple[jax.Array, Metrics]:
        x0, condition = batch["latents"], flow_matching.dropped(model, batch, draws)
        sizes = jnp.array(layout)
        sigma = jnp.repeat(draws.sigma, sizes, axis=1, total_repeat_length=x0.shape[1])
        noisy = flow.add_noise(x0, draws.noise, sigma)
        v = flow_matching.teacher_forced(model, params, x0, noisy, sigma, condition, layout)
        weight = flow.bell_weight(sigma, shift) if bell else None
        value = denoise.loss(v, x0, draws.noise, weight)
        return value, {"loss": value}

    return Update("model", 1, draw, loss, work)


def make(config: Config, run: Run) -> Method:
    """The method."""
    model = wan.model(config.generator, run.product("model"))
    work = flow_matching.work(config.generator, run)
    rate, bell = config.prompt_drop_rate, config.bell_weighting
    return Method(
        nets={"model": Network(model, "generator")},
        updates=(causal(model, run.layout, run.shift, rate, bell, work),),
        sampled=Sampled("model", run.plan),
        fields=sample_fields(run, model),
    )


METHOD = Definition(Config, make, STEPS)
