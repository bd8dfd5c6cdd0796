"""The gradient of a rollout, by replaying its blocks in parallel.

The values of the context never depend on the gradient. So all blocks of the gradient window run at once, each
against the stored context, and one backward pass serves them all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal import structures
from oneforcing_jax.causal.cache import Cache
from oneforcing_jax.causal.generate import Generator, Rollout, generate
from oneforcing_jax.causal.plan import ClipDraws, Plan
from oneforcing_jax.causal.sequential import check_context_gradient, sequential
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import kernels
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.kernels.groups import Group
from oneforcing_jax.models.stack import Attend


def context(straight_through: bool, groups: tuple[Group, ...], first: int) -> Attend:
    """An `attend` for the parallel replay of noisy blocks against a stored context.

    Memory is one layer's clean keys and values of all frames, Cache [b, F, n, h, k]; the queries are the
    noisy frames from number `first` on. With `straight_through` the context inside the replayed frames
    is k_noisy + stop_gradient(k_clean - k_noisy): clean in value, noisy in gradient.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, memory: Cache) -> tuple[jax.Array, None]:
        def keys(clean: jax.Array, noisy: jax.Array) -> jax.Array:
            clean = jax.lax.stop_gradient(clean)
            if straight_through:
                before, inside = jnp.split(clean, [first], axis=1)
                clean = jnp.concatenate([before, noisy + jax.lax.stop_gradient(inside - noisy)], 1)
            return jnp.concatenate([clean, noisy], 1)

        k, v = keys(memory.k, k), keys(memory.v, v)
        return kernels.chosen().structured(q, k, v, groups), None

    return attend


def replay(
    g: Generator,
    rollout: Rollout,
    condition: Condition,
    plan: Plan,
    first: int,
    straight_through: bool,
) -> jax.Array:
    """Runs the blocks from number `first` on again, all at once and with gradient.

    The values are those of the rollout. The gradient is that of the block-by-block form with the
    context stopped, or, with `straight_through`, passed on to the keys and values of the noisy pass of
    the block that wrote it (the published training does this).

    Returns:
      [b, frames of the blocks, c, y, x].
    """
    layout = [block.frames for block in plan]
    before, total = sum(layout[:first]), sum(layout)
    if rollout.cache.k.shape[2] != total:
        raise InputError(
            f"replay: expected a cache of all {total} frames, found {rollout.cache.k.shape[2]} slots; "
            "train without a rolling window, or with the context gradient 'full'"
        )
    groups = structures.noisy_after_clean(layout, first=first)
    x = jax.lax.stop_gradient(rollout.inputs[:, before:])
    sigma = jnp.broadcast_to(rollout.levels[..., before:], x.shape[:2])
    attend = context(straight_through, groups, before)
    frames = before + jnp.arange(total - before)
    own = condition.cut(before)
    memory = rollout.cache
    out = g.model.apply(g.params, x, sigma, own, frames=frames, attend=attend, memory=memory)
    return flow.x0_from_flow(x, out.flow, sigma)


def differentiable(
    g: Generator,
    draws: ClipDraws,
    condition: Condition,
    plan: Plan,
    first: int,
    context_gradient: str,
) -> jax.Array:
    """Latents of a rollout, with gradient to the last step of each block from number `first` on.

    Args:
      context_gradient: "straight_through" or "stop" (replayed in parallel), or "full" (sequential).
    """
    if context_gradient == "full":
        return sequential(g, draws, condition, plan, first, context_gradient)
    check_context_gradient(context_gradient)
    rollout = generate(g.stopped(), draws, condition, plan)
    again = replay(g, rollout, condition, plan, first, context_gradient == "straight_through")
    before = sum(block.frames for block in plan[:first])
    return jnp.concatenate([rollout.latents[:, :before], again], 1)
