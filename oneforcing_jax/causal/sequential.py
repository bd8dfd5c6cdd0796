"""The plain form of a rollout with gradient: block by block, a noisy and then a clean pass each.

It is the oracle of `generate` and `replay`, and the only form with true back-propagation through the context.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal.cache import Cache
from oneforcing_jax.causal.generate import Generator, forward, loop, renoise_of, scan
from oneforcing_jax.causal.plan import (
    Block,
    BlockDraws,
    ClipDraws,
    Plan,
    cut,
    join,
    num_frames,
    pieces,
)
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.condition import Condition

CONTEXT_GRADIENTS = ("straight_through", "stop", "full")


def check_context_gradient(found: str) -> None:
    """Raises InputError for what is none of `CONTEXT_GRADIENTS`."""
    if found not in CONTEXT_GRADIENTS:
        raise InputError(f"context gradient: expected one of {CONTEXT_GRADIENTS}, found {found!r}")


def _both_passes(
    g: Generator,
    cache: Cache,
    condition: Condition,
    block: Block,
    step: BlockDraws,
    start: Any,
    limit: int,
    context_gradient: str,
    exit: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Noisy passes and the clean pass of one block: its latents, and the keys and values to store.

    `exit` is the number of the noisy pass that is the last and takes the gradient; None: the last of all.
    """
    stop, sigmas = jax.lax.stop_gradient, jnp.array(block.sigmas)
    x, still = step.start, g.stopped()

    def denoise(x: jax.Array, xs: Any) -> jax.Array:
        sigma, noise, after = xs
        sigma, after = step.level(sigma), step.level(after)
        v, _ = forward(still, stop(cache), stop(condition), [(x, sigma)], start, limit)
        return flow.add_noise(flow.x0_from_flow(x, v, sigma), noise, after)

    if len(block.sigmas) > 1:
        x = loop(denoise, x, (sigmas[:-1], renoise_of(step, block), sigmas[1:]), exit)
    sigma = step.level(sigmas[-1 if exit is None else exit])
    v, noisy = forward(g, cache, condition, [(x, sigma)], start, limit)
    x0 = flow.x0_from_flow(x, v, sigma)
    clean = x0 if step.context is None else flow.add_noise(x0, step.context, g.context_sigma)
    _, new = forward(g, cache, condition, [(clean, 0.0)], start, limit)
    if context_gradient == "straight_through":
        new = Cache(*(n + stop(c - n) for n, c in zip(noisy, new, strict=True)))
    return x0, stop(new) if context_gradient == "stop" else new


def sequential(
    g: Generator,
    draws: ClipDraws,
    condition: Condition,
    plan: Plan,
    first: int,
    context_gradient: str,
) -> jax.Array:
    """Block by block, a noisy and then a clean pass each, with gradient from block `first` on.

    Args:
      context_gradient: "straight_through" and "stop" as in `replay`; "full": true back-propagation
        through the clean pass. Of the steps that a block takes only the last takes gradients.

    Returns:
      [b, f, c, y, x].
    """
    check_context_gradient(context_gradient)
    total = num_frames(plan)
    condition, tokens = g.prepared(condition), g.frame_tokens(draws.start)
    cache = kv.init(g.config, draws.start.shape[0], g.window.slots(total), tokens)
    done, latents = 0, []
    for i, j in pieces(plan, first):
        block = plan[i]
        steps = BlockDraws(
            cut(draws.start, done, j - i, block.frames),
            cut(draws.renoise, done, j - i, block.frames),
            cut(draws.context, done, j - i, block.frames),
            None if i or draws.given is None else draws.given[None],
        )
        limit, exit = done + (j - i) * block.frames, draws.exit_of(block, plan)
        frames = condition.blocks(done, j - i, block.frames)

        def body(
            carry: Any,
            xs: tuple[BlockDraws, Any],
            block: Block = block,
            limit: int = limit,
            exit: jax.Array | None = exit,
        ) -> tuple[Any, jax.Array]:
            (step, frame), (cache, start) = xs, carry
            own = condition._replace(frame=frame)
            x0, new = _both_passes(g, cache, own, block, step, start, limit, context_gradient, exit)
            return (kv.write(cache, new, start, g.window), start + block.frames), x0

        carry, x0 = scan(jax.checkpoint(body), (cache, jnp.int32(done)), (steps, frames), j - i)
        cache, x0 = (carry[0], x0) if i >= first else jax.lax.stop_gradient((carry[0], x0))
        latents.append(join(x0))
        done += (j - i) * block.frames
    return jnp.concatenate(latents, 1)
