"""A bidirectional teacher: flow matching of whole clips with one noise level each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from oneforcing_jax import flow
from oneforcing_jax.causal import flops
from oneforcing_jax.losses import denoise
from oneforcing_jax.methods import (
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
      teacher: sizes.
      prompt_drop_rate: share of conditions that their null replaces.
    """

    teacher: WanConfig
    prompt_drop_rate: Share


def bidirectional(model: Model, shift: float, drop_rate: float, work: Work = Work()) -> Update:
    """The update of a bidirectional model."""

    def draw(key: jax.Array, batch: Batch) -> FlowDraws:
        return flow_matching.draw(key, batch["latents"].shape, 1, shift, drop_rate)

    def loss(
        params: Params, nets: Any, batch: Batch, draws: FlowDraws
    ) -> tuple[jax.Array, Metrics]:
        x0, sigma = batch["latents"], draws.sigma[:, 0]
        noisy = flow.add_noise(x0, draws.noise, sigma)
        condition = flow_matching.dropped(model, batch, draws)
        out: Any = model.apply(params, noisy, sigma, condition)
        value = denoise.loss(out.flow, x0, draws.noise)
        return value, {"loss": value}

    return Update("model", 1, draw, loss, work)


def make(config: Config, run: Run) -> Method:
    """The method."""
    model = wan.model(config.teacher, run.product("model"))
    passed = flops.clip(
        config.teacher, config.teacher.frame_tokens(*run.latents.shape[2:]), run.latents.frames
    )
    work = Work(passed.train, passed.train + passed.again(config.teacher.remat))
    return Method(
        nets={"model": Network(model, "teacher")},
        updates=(bidirectional(model, run.shift, config.prompt_drop_rate, work),),
        sampled=Sampled("model", plan=None),
        fields=sample_fields(run, model),
    )


METHOD = Definition(Config, make, ("blocks",))
