"""Training by flow matching: a bidirectional teacher, or a causal model under teacher forcing (stage 1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.losses import denoise
from oneforcing_jax.methods import Method, Update
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import WanDiT, structured


def drop_prompts(key: jax.Array, text: jax.Array, negative: jax.Array, rate: float) -> jax.Array:
    """Replaces prompts [b, s, d] by the negative prompt at `rate`, for classifier-free guidance."""
    drop = jax.random.bernoulli(key, rate, (text.shape[0], 1, 1))
    return jnp.where(drop, negative, text)


def bidirectional(model: WanDiT, shift: float, drop_rate: float) -> Method:
    """Flow matching of whole clips with one noise level each."""

    def loss(params: Any, nets: Any, batch: Any, key: jax.Array) -> Any:
        level, noise_key, drop = jax.random.split(key, 3)
        x0 = batch["latents"]
        sigma = flow.warp(jax.random.uniform(level, x0.shape[:1]), shift)
        noise = jax.random.normal(noise_key, x0.shape)
        text = drop_prompts(drop, batch["text"], batch["negative"], drop_rate)
        out: Any = model.apply({"params": params}, flow.add_noise(x0, noise, sigma), sigma, text)
        value = denoise.loss(out.flow, x0, noise)
        return value, {"loss": value}

    return Method({"model": model}, (Update("model", 1, loss),))


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
    tokens = model.config.frame_tokens(*clean.shape[-2:])
    out: Any = model.apply(
        {"params": params},
        jnp.concatenate([clean, noisy], 1),
        jnp.concatenate([jnp.zeros_like(sigma), sigma], 1),
        text,
        frames=jnp.tile(jnp.arange(frames), 2),
        attend=structured(attention.teacher_forcing(layout), tokens),
    )
    return out.flow[:, frames:]


def teacher_forcing(
    model: WanDiT, layout: tuple[int, ...], shift: float, drop_rate: float
) -> Method:
    """Autoregressive diffusion: one noise level a block, real clean context."""
    sizes = jnp.array(layout)

    def loss(params: Any, nets: Any, batch: Any, key: jax.Array) -> Any:
        level, noise_key, drop = jax.random.split(key, 3)
        x0 = batch["latents"]
        u = jax.random.uniform(level, (x0.shape[0], len(layout)))
        sigma = jnp.repeat(flow.warp(u, shift), sizes, axis=1, total_repeat_length=x0.shape[1])
        noise = jax.random.normal(noise_key, x0.shape)
        text = drop_prompts(drop, batch["text"], batch["negative"], drop_rate)
        v = teacher_forced(model, params, x0, flow.add_noise(x0, noise, sigma), sigma, text, layout)
        value = denoise.loss(v, x0, noise)
        return value, {"loss": value}

    return Method({"model": model}, (Update("model", 1, loss),))
