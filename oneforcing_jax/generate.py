"""Generation: causal students block by block as a stream, and the many-step bidirectional teacher."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import cache as kv
from oneforcing_jax import flow, rollout
from oneforcing_jax.cache import Cache, Window
from oneforcing_jax.models.wan import KeyValue, WanConfig, WanDiT
from oneforcing_jax.rollout import Block, BlockDraws, Draws, Generator, Plan


class Student:
    """A causal generator, compiled once for each shape of block.

    Args:
      config: of the transformer.
      params: its parameters.
      window: how far back a block sees; with a size, memory is constant in the length of the video.
    """

    def __init__(self, config: WanConfig, params: Any, window: Window = Window()) -> None:
        self.config, self.params, self.window = config, params, window
        apply = WanDiT(config).apply
        self._text = jax.jit(lambda p, text: apply({"params": p}, text, method="text_key_value"))

        @functools.partial(jax.jit, static_argnames="block", donate_argnames="cache")
        def step(
            params: Any,
            cache: Cache,
            text: KeyValue,
            draws: BlockDraws,
            before: Any,
            start: Any,
            block: Block,
        ) -> tuple[jax.Array, Cache]:
            g = Generator(functools.partial(apply, {"params": params}), config, window)
            limit = cache.k.shape[2]
            x0, _, cache = rollout.denoise_block(g, cache, text, block, draws, before, start, limit)
            return x0, cache

        self._step = step

    def of(self, params: Any) -> Student:
        """The same compiled programs with other parameters."""
        other = copy.copy(self)
        other.params = params
        return other

    def stream(self, draws: Draws, text: jax.Array, plan: Plan) -> Iterator[jax.Array]:
        """Clean latents [b, frames of the block, c, y, x], block by block as they are made.

        Args:
          draws: noise for the frames of the plan, without context noise.
          text: prompt embeddings [b, s, d].
          plan: blocks and their steps.
        """
        if draws.context is not None:
            raise ValueError(
                "stream: expected draws without context noise, which training alone has"
            )
        for block in plan:
            self.window.check_block(block.frames)
        tokens = self.config.frame_tokens(*draws.start.shape[-2:])
        slots = self.window.slots(rollout.num_frames(plan))
        cache = kv.init(self.config, draws.start.shape[0], slots, tokens)
        text_kv, before, start = self._text(self.params, text), None, 0
        for block in plan:
            frames = slice(start, start + block.frames)
            renoise = draws.renoise[:, :, frames] if draws.renoise is not None else None
            noise = BlockDraws(draws.start[:, frames], renoise, None)
            before, cache = self._step(
                self.params, cache, text_kv, noise, before, jnp.int32(start), block
            )
            start += block.frames
            yield before

    def clip(self, draws: Draws, text: jax.Array, plan: Plan) -> jax.Array:
        """The whole clip [b, f, c, y, x]."""
        return jnp.concatenate(list(self.stream(draws, text, plan)), 1)


@functools.partial(jax.jit, static_argnames=("model", "steps", "shift", "guidance"))
def sample_bidirectional(
    model: WanDiT,
    params: Any,
    noise: jax.Array,
    text: jax.Array,
    negative: jax.Array,
    *,
    steps: int,
    shift: float,
    guidance: float,
) -> jax.Array:
    """Euler sampling of a bidirectional model with guidance cond + s (cond - uncond).

    Args:
      noise: [b, f, c, y, x].
      text, negative: [b, s, d] and [s, d].
      steps, shift, guidance: of the sampler.
    """
    prompts = jnp.concatenate([text, jnp.broadcast_to(negative, text.shape)])

    def step(x: jax.Array, levels: jax.Array) -> tuple[jax.Array, None]:
        sigma = jnp.full(2 * x.shape[0], levels[0])
        out: Any = model.apply({"params": params}, jnp.concatenate([x, x]), sigma, prompts)
        conditional, unconditional = jnp.split(out.flow, 2)
        v = flow.guide(conditional, unconditional, guidance)
        return x + (levels[1] - levels[0]) * v, None

    grid = np.asarray(flow.grid(steps, shift), np.float32)
    return jax.lax.scan(step, noise, jnp.asarray(np.stack([grid[:-1], grid[1:]], 1)))[0]
