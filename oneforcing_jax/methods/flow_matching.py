"""Flow matching (paper, equation 4): what methods that train by it share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.structures import structured, teacher_forcing
from oneforcing_jax.methods import Batch, Work
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig, WanDiT
from oneforcing_jax.setup.run import Run


class FlowDraws(NamedTuple):
    """Randomness of an update.

    Attributes:
      sigma: [b, noise levels of a clip].
      noise: [b, f, c, y, x].
      drop: bool [b], whose prompt the negative one replaces, for classifier-free guidance.
    """

    sigma: jax.Array
    noise: jax.Array
    drop: jax.Array


def side_by_side(parts: list[jax.Array]) -> jax.Array:
    """Arrays [b, ...] as [b parts, ...], the parts of a sample next to each other and so on one device."""
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


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


def prompts(batch: Batch, draws: FlowDraws) -> jax.Array:
    """Prompts [b, s, d], some of them replaced by the negative one."""
    return jnp.where(draws.drop[:, None, None], batch["negative"][None], batch["text"])


def teacher_forced(
    model: WanDiT,
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    sigma: jax.Array,
    text: jax.Array,
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
        {"params": params},
        jnp.concatenate([clean, noisy], 1),
        jnp.concatenate([jnp.zeros_like(sigma), sigma], 1),
        text,
        frames=jnp.tile(jnp.arange(frames), 2),
        attend=structured(teacher_forcing(layout)),
    )
    return out.flow[:, frames:]


def guided(
    model: WanDiT,
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    sigma: jax.Array,
    text: jax.Array,
    negative: jax.Array,
    layout: tuple[int, ...],
    guidance: float,
) -> jax.Array:
    """`teacher_forced` with classifier-free guidance; both prompts in one forward.

    Args:
      text, negative: [b, s, d] and [s, d].
      guidance: s in cond + s (cond - uncond).
    """
    prompts = side_by_side([text, jnp.broadcast_to(negative, text.shape)])
    clean, noisy, sigma = (side_by_side([x, x]) for x in (clean, noisy, sigma))
    v = teacher_forced(model, params, clean, noisy, sigma, prompts, layout)
    return flow.guide(v[::2], v[1::2], guidance)


def work(config: WanConfig, run: Run) -> Work:
    """Operations of an update under teacher forcing."""
    tokens = config.frame_tokens(*run.latents.shape[2:])
    passed = flops.structured(config, tokens, teacher_forcing(run.layout))
    return Work(passed.train, passed.train + passed.again(config.remat))
