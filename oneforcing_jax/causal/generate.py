"""Causal generation without gradient: one scan over autoregressive blocks.

A block takes two kinds of pass. A noisy pass denoises it. A clean pass at noise level 0 leaves its keys
and values, which are the context of later blocks. The clean pass of a block shares a forward with the first
noisy pass of the next block. The last block has no clean pass. Three blocks of one step take three forwards:

    forward            1          2                  3
    clean pass of      -          block 0            block 1
    noisy pass of      block 0    block 1            block 2
    the noisy sees     itself     block 0, itself    blocks 0 and 1, itself
    the cache gets     -          block 0            block 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow, shapes
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal.cache import Cache, Caches, Window
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
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig

# Steps that may be skipped, by this name in a traced program.
UNTIL_EXIT = "until_exit"


class Rollout(NamedTuple):
    """What a rollout leaves.

    Attributes:
      latents: [b, f, c, y, x], generated (without the given first frames).
      inputs: [b, f, c, y, x], what the last denoising step of each block saw.
      levels: [f], its noise levels; [b, f] where some clips are given their first block.
      cache: keys and values of the clean frames; the last block's are not in it.
    """

    latents: jax.Array
    inputs: jax.Array
    levels: jax.Array
    cache: Cache


@dataclasses.dataclass(frozen=True)
class Generator:
    """A causal model and how it is rolled out.

    Attributes:
      model, params: of `wan.model` or its equal.
      window: how far back a block sees.
      context_sigma: noise level that a finished block gets before its clean pass; the network is told 0.
      frozen: no gradient passes, so that kernels may be used which have none.
    """

    model: Model
    params: Params
    window: Window = Window()
    context_sigma: float = 0.0
    frozen: bool = False

    def stopped(self) -> Generator:
        """The same model without gradient."""
        return dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))

    @property
    def config(self) -> WanConfig:
        """Sizes of the model."""
        config: WanConfig = self.model.config
        return config

    def frame_tokens(self, latents: jax.Array) -> int:
        """Tokens of one of the given latent frames."""
        return self.config.frame_tokens(*latents.shape[-2:])

    def prepared(self, condition: Condition) -> Condition:
        """With what belongs to the clip as every layer reads it, computed once."""
        if not isinstance(condition.clip, Mapping):
            return condition
        return condition._replace(clip=self.model.prepare(self.params, condition.clip))


def forward(
    g: Generator,
    cache: Caches,
    condition: Condition,
    parts: Sequence[tuple[jax.Array, Any]],
    start: Any,
    limit: int,
) -> tuple[jax.Array, Any]:
    """One forward of consecutive blocks (latents, noise level), the first beginning at frame `start`; a level
    is one for all clips, or [b]. The frames' part of the condition is theirs.

    Returns the flow of the last block, and what `kv.cached` gives back, which `kept` takes.
    """
    latents = jnp.concatenate([x for x, _ in parts], 1)
    sizes = tuple(x.shape[1] for x, _ in parts)
    levels = (jnp.broadcast_to(jnp.float32(s)[..., None], x.shape[:2]) for x, s in parts)
    in_place = not isinstance(cache, Cache)
    attend = kv.cached(sizes, start, g.window, limit, in_place, g.config.rope_theta, g.frozen)
    out = g.model.apply(
        g.params,
        latents,
        jnp.concatenate(list(levels), 1),
        condition,
        frames=start + jnp.arange(sum(sizes)),
        attend=attend,
        memory=cache,
    )
    return out.flow[:, -sizes[-1] :], out.new


def kept(g: Generator, cache: Caches, new: Any, frames: int, start: Any) -> Caches:
    """The cache after a forward of which the first `frames` frames are clean; it began at `start`."""
    if not isinstance(cache, Cache):
        return new
    return kv.write(cache, kv.frames(new, 0, frames), start, g.window) if frames else cache


def denoise_block(
    g: Generator,
    cache: Caches,
    condition: Condition,
    block: Block,
    step: BlockDraws,
    before: jax.Array | None,
    start: Any,
    limit: int,
    exit: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Caches]:
    """The steps of one block; the first also passes over the clean block `before`, if there is one.

    Args:
      condition: prepared; its frames are those of `before` and of the block.
      exit: number of the last step that runs; None: all do.

    Returns the block's clean latents, the input of its last step, and the cache with `before` in it.
    """
    level = step.level(block.sigmas[0])
    x, parts = step.start, [(step.start, level)]
    clean = 0 if before is None else before.shape[1]
    if before is not None:
        noised = (
            before
            if step.context is None
            else flow.add_noise(before, step.context, g.context_sigma)
        )
        parts.insert(0, (noised, 0.0))
    v, new = forward(g, cache, condition, parts, start - clean, limit)
    own_condition = condition.cut(clean)
    cache = kept(g, cache, new, clean, start - clean)
    x0 = flow.x0_from_flow(x, v, level)

    def again(carry: Any, xs: Any) -> Any:
        (sigma, noise), (_, x0, own) = xs, carry
        sigma = step.level(sigma)
        x = flow.add_noise(x0, noise, sigma)
        memory = cache if own is None else own
        v, new = forward(g, memory, own_condition, [(x, sigma)], start, limit)
        return x, flow.x0_from_flow(x, v, sigma), None if own is None else new

    if len(block.sigmas) > 1:
        steps = (jnp.array(block.sigmas[1:]), renoise_of(step, block))
        # Noisy passes leave a stacked cache as it is; layers that own theirs write into it.
        own = None if isinstance(cache, Cache) else cache
        x, x0, own = loop(again, (x, x0, own), steps, exit)
        cache = cache if own is None else own
    return x0, x, cache


def renoise_of(step: BlockDraws, block: Block) -> jax.Array:
    """Noise between the steps of a block, [steps - 1, b, f, c, y, x].

    Raises:
      InputError: there is none.
    """
    if step.renoise is None:
        raise InputError(
            f"rollout: expected renoise for a block of {len(block.sigmas)} steps, found None"
        )
    return jnp.moveaxis(step.renoise[:, : len(block.sigmas) - 1], 1, 0)


def loop(body: Callable[..., Any], carry: Any, xs: Any, count: jax.Array | None) -> Any:
    """carry = body(carry, x) for the first `count` rows of `xs`, a traced number; None: for all.

    Rows after that are skipped by a conditional, so that it is known before how often the loop turns, and
    reverse mode can pass.
    """
    if count is None:
        return jax.lax.scan(lambda carry, x: (body(carry, x), None), carry, xs)[0]

    def guarded(carry: Any, numbered: Any) -> tuple[Any, None]:
        number, x = numbered
        with jax.named_scope(UNTIL_EXIT):
            return jax.lax.cond(number < count, lambda c: body(c, x), lambda c: c, carry), None

    numbers = jnp.arange(jax.tree.leaves(xs)[0].shape[0])
    return jax.lax.scan(guarded, carry, (numbers, xs))[0]


def scan(body: Callable[..., Any], carry: Any, xs: Any, count: int) -> tuple[Any, Any]:
    """`lax.scan`, without a loop around a single step."""
    if count > 1:
        return jax.lax.scan(body, carry, xs)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], out)


def clean_block(
    g: Generator, cache: Caches, condition: Condition, x: jax.Array, start: Any, limit: int
) -> Caches:
    """The clean pass of a block alone: the cache with its frames, the first of them number `start`."""
    _, new = forward(g, cache, condition, [(x, 0.0)], start, limit)
    return kept(g, cache, new, x.shape[1], start)


def _prefill(
    g: Generator, cache: Caches, condition: Condition, given: jax.Array, size: int
) -> tuple[Caches, jax.Array]:
    """Clean passes of given latents in blocks of `size`; the last block, of up to `size` frames, is left
    for the forward that it shares with the first noisy block."""
    count = (given.shape[1] - 1) // size

    def body(carry: Any, xs: tuple[jax.Array, Any]) -> tuple[Any, None]:
        (x, frame), (cache, start) = xs, carry
        own = condition._replace(frame=frame)
        return (clean_block(g, cache, own, x, start, count * size), start + size), None

    if count:
        xs = cut(given, 0, count, size), condition.blocks(0, count, size)
        (cache, _), _ = scan(body, (cache, jnp.int32(0)), xs, count)
    return cache, given[:, count * size :]


def generate(
    g: Generator,
    draws: ClipDraws,
    condition: Condition,
    plan: Plan,
    given: jax.Array | None = None,
) -> Rollout:
    """Generates a clip block by block, without gradient.

    Args:
      g: the model.
      draws: noise for the frames of the plan.
      condition: of the clip, prepared or not, and of all its frames, given ones included.
      plan: blocks and their steps.
      given: [b, f0, c, y, x] clean latents that the clip continues (image to video: one frame). They
        are taken in blocks of the size of the plan's last.

    Raises:
      InputError: shapes that do not agree with the plan or with each other.
    """
    g = dataclasses.replace(g, frozen=True)
    total, size = num_frames(plan), draws.start.shape
    shapes.check("draws.start", draws.start, "b f c y x", f=total, c=g.config.in_dim)
    offset = 0
    if given is not None:
        offset = shapes.check(
            "given", given, "b f c y x", b=size[0], c=size[2], y=size[3], x=size[4]
        )["f"]
    for block in plan:
        g.window.check_block(block.frames)
    condition, tokens = g.prepared(condition), g.frame_tokens(draws.start)
    cache: Any = kv.init(g.config, size[0], g.window.slots(offset + total), tokens)
    before, done, latents, inputs = None, 0, [], []
    if given is not None:
        cache, before = _prefill(g, cache, condition, given, plan[-1].frames)
    for i, j in pieces(plan):
        block, last = plan[i], plan[i - 1].frames if i else 0
        steps = BlockDraws(
            cut(draws.start, done, j - i, block.frames),
            cut(draws.renoise, done, j - i, block.frames) if len(block.sigmas) > 1 else None,
            cut(draws.context, done - last, j - i, last) if i else None,
            None if i or draws.given is None else draws.given[None],
        )
        limit, exit = offset + done + (j - i) * block.frames, draws.exit_of(block, plan)
        clean = 0 if before is None else before.shape[1]
        frames = condition.blocks(offset + done - clean, j - i, block.frames, clean)

        def body(
            carry: Any,
            xs: tuple[BlockDraws, Any],
            block: Block = block,
            limit: int = limit,
            exit: jax.Array | None = exit,
        ) -> tuple[Any, Any]:
            (step, frame), (cache, before, start) = xs, carry
            own = condition._replace(frame=frame)
            x0, x, cache = denoise_block(g, cache, own, block, step, before, start, limit, exit)
            return (cache, x0, start + block.frames), (x0, x)

        (cache, before, _), (x0, x) = scan(
            body, (cache, before, jnp.int32(offset + done)), (steps, frames), j - i
        )
        latents.append(join(x0))
        inputs.append(join(x))
        done += (j - i) * block.frames
    levels = draws.last_levels(plan)
    return Rollout(jnp.concatenate(latents, 1), jnp.concatenate(inputs, 1), levels, cache)
