"""Flow matching (paper, equation 4): what methods that train by it share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.structures import structured, teacher_forcing
from oneforcing_jax.methods import Batch, Work
from oneforcing_jax.models import condition as conditions
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.run import Run


class FlowDraws(NamedTuple):
    """Randomness of an update.

    Attributes:
      sigma: [b, noise levels of a clip].
      noise: [b, f, c, y, x].
      drop: bool [b], whose condition its null replaces, for classifier-free guidance.
    """

    sigma: jax.Array
    noise: jax.Array
    drop: jax.Array


def side_by_side(parts: list[Any]) -> Any:
    """Trees of arrays [b, ...] as one of [b parts, ...], the parts of a sample next to each other and so on
    one device."""
    return jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *parts)


def draw(
    key: jax.Array, shape: tuple[int, ...], levels: int, shift: float, drop_rate: float
) -> FlowDraws:
    """Fresh randomness for latents of `shape`, with `levels` noise levels a clip."""
    level, noise, drop = jax.random.split(key, 3)
    return FlowDraws(
        flow.warp(jax.random.uniform(level, (shape[0], levels)), shift),
        jax.random.normal(noise, shape),
        jax.random.bernoulli(drop, drop_rate, shape[:1]),
    )


def dropped(model: Model, batch: Batch, draws: FlowDraws) -> Condition:
    """The conditions of a batch, some of them replaced by their null."""
    return conditions.where(draws.drop, model.null(batch), model.condition(batch))


def teacher_forced(
    model: Model,
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    sigma: jax.Array,
    condition: Condition,
    layout: tuple[int, ...],
) -> jax.Array:
    """Flow of noisy blocks that each see the clean blocks before them.

    Args:
      clean, noisy: [b, f, c, y, x].
      sigma: [b, f], equal within a block.
      layout: frames of each block.
    """
    frames = clean.shape[1]
    out: Any = model.apply(
        params,
        jnp.concatenate([clean, noisy], 1),
        jnp.concatenate([jnp.zeros_like(sigma), sigma], 1),
        condition.then(condition),
        frames=jnp.tile(jnp.arange(frames), 2),
        attend=structured(teacher_forcing(layout)),
    )
    return out.flow[:, frames:]


def guided(
    model: Model,
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    sigma: jax.Array,
    condition: Condition,
    null: Condition,
    layout: tuple[int, ...],
    guidance: float,
) -> jax.Array:
    """`teacher_forced` with classifier-free guidance; condition and null in one forward.

    Args:
      guidance: s in cond + s (cond - uncond).
    """
    both = side_by_side([condition, conditions.everywhere(null, condition)])
    clean, noisy, sigma = (side_by_side([x, x]) for x in (clean, noisy, sigma))
    v = teacher_forced(model, params, clean, noisy, sigma, both, layout)
    return flow.guide(v[::2], v[1::2], guidance)


def work(config: WanConfig, run: Run) -> Work:
    """Operations of an update under teacher forcing."""
    tokens = config.frame_tokens(*run.latents.shape[2:])
    passed = flops.structured(config, tokens, teacher_forcing(run.layout))
    return Work(passed.train, passed.train + passed.again(config.remat))
