"""Training by flow matching: a bidirectional teacher, or a causal model under teacher forcing (stage 1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.losses import denoise
from oneforcing_jax.methods import Method, Update
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import WanDiT, structured


class Draws(NamedTuple):
    """Randomness of an update.

    Attributes:
      sigma: [b, noise levels of a clip].
      noise: [b, f, c, y, x].
      drop: bool [b], whose prompt the negative one replaces, for classifier-free guidance.
    """

    sigma: jax.Array
    noise: jax.Array
    drop: jax.Array


def draw(
    key: jax.Array, shape: tuple[int, ...], levels: int, shift: float, drop_rate: float
) -> Draws:
    """Fresh randomness for latents of `shape`, with `levels` noise levels a clip."""
    level, noise, drop = jax.random.split(key, 3)
    return Draws(
        flow.warp(jax.random.uniform(level, (shape[0], levels)), shift),
        jax.random.normal(noise, shape),
        jax.random.bernoulli(drop, drop_rate, shape[:1]),
    )


def _prompts(batch: Any, draws: Draws) -> jax.Array:
    return jnp.where(draws.drop[:, None, None], batch["negative"], batch["text"])


def bidirectional(model: WanDiT, shift: float, drop_rate: float) -> Method:
    """Flow matching of whole clips with one noise level each."""

    def drawn(key: jax.Array, batch: Any) -> Draws:
        return draw(key, batch["latents"].shape, 1, shift, drop_rate)

    def loss(params: Any, nets: Any, batch: Any, draws: Draws) -> Any:
        x0, sigma = batch["latents"], draws.sigma[:, 0]
        noisy = flow.add_noise(x0, draws.noise, sigma)
        out: Any = model.apply({"params": params}, noisy, sigma, _prompts(batch, draws))
        value = denoise.loss(out.flow, x0, draws.noise)
        return value, {"loss": value}

    return Method({"model": model}, (Update("model", 1, drawn, loss),))


def teacher_forced(
    model: WanDiT,
    params: Any,
    clean: jax.Array,
    noisy: jax.Array,
    sigma: jax.Array,
    text: Any,
    layout: Any,
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
        attend=structured(attention.teacher_forcing(layout)),
    )
    return out.flow[:, frames:]


def teacher_forcing(
    model: WanDiT, layout: tuple[int, ...], shift: float, drop_rate: float
) -> Method:
    """Autoregressive diffusion: one noise level a block, real clean context."""
    sizes = jnp.array(layout)

    def drawn(key: jax.Array, batch: Any) -> Draws:
        return draw(key, batch["latents"].shape, len(layout), shift, drop_rate)

    def loss(params: Any, nets: Any, batch: Any, draws: Draws) -> Any:
        x0, text = batch["latents"], _prompts(batch, draws)
        sigma = jnp.repeat(draws.sigma, sizes, axis=1, total_repeat_length=x0.shape[1])
        noisy = flow.add_noise(x0, draws.noise, sigma)
        v = teacher_forced(model, params, x0, noisy, sigma, text, layout)
        value = denoise.loss(v, x0, draws.noise)
        return value, {"loss": value}

    return Method({"model": model}, (Update("model", 1, drawn, loss),))
