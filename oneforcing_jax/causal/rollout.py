"""Causal rollout: one scan over autoregressive blocks, for training, ODE pairs and generation.

`generate` runs without gradient: the clean pass of a block, which writes its context, shares one forward
with the noisy pass of the next, and the last clean pass is skipped. `replay` gives the gradient: because
context values never depend on it, all blocks of the window run at once against the stored context.
`sequential` is the plain block-by-block form: the oracle of both, and true back-propagation through the
context.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow, shapes
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal.cache import Cache, Caches, Window
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import KeyValue, WanConfig

Apply = Callable[..., Any]
CONTEXT_GRADIENTS = ("straight_through", "stop", "full")

# Where hidden keys cost time, a growing cache is read in this many static lengths, so that short prefixes
# cost less; each costs a compilation of the layer, so short clips have fewer.
BUCKETS, BUCKET_FRAMES = 4, 6


@dataclasses.dataclass(frozen=True)
class Block:
    """An autoregressive block: its frames, and the noise levels of its denoising steps."""

    frames: int
    sigmas: tuple[float, ...]


Plan = tuple[Block, ...]


def make_plan(
    num_frames: int,
    frames_per_block: int,
    steps: Sequence[float],
    shift: float,
    first_block_frames: int | None = None,
    first_block_steps: Sequence[float] | None = None,
) -> Plan:
    """The layout of a clip's blocks.

    Args:
      num_frames: latent frames to generate.
      frames_per_block: frames of every block.
      steps: unwarped timesteps of every block, [1000] for one step.
      shift: of the schedule.
      first_block_frames, first_block_steps: the same for the first block; None: as the others.

    Raises:
      ValueError: frames that the blocks do not fill.
    """
    first = first_block_frames or frames_per_block
    rest, left = divmod(num_frames - first, frames_per_block)
    if left or rest < 0:
        raise ValueError(
            f"blocks: expected {num_frames} frames = {first} (first block) + a multiple of "
            f"{frames_per_block}, found {num_frames - first} left over; change num_frames, "
            "frames_per_block or first_block_frames"
        )
    sigmas = flow.warp_steps(steps, shift)
    head = sigmas if first_block_steps is None else flow.warp_steps(first_block_steps, shift)
    return (Block(first, head), *(Block(frames_per_block, sigmas) for _ in range(rest)))


def num_frames(plan: Plan) -> int:
    """Latent frames of a plan."""
    return sum(block.frames for block in plan)


class Draws(NamedTuple):
    """The noise of a rollout, drawn by the caller; samples first, so that a batch can be cut.

    Attributes:
      start: [b, f, c, y, x], what each block starts from.
      context: [b, f, c, y, x], added before the clean pass; None where context_sigma is 0.
      renoise: [b, steps - 1, f, c, y, x], added between steps; None where no block has a second step.
    """

    start: jax.Array
    context: jax.Array | None = None
    renoise: jax.Array | None = None


def draw(key: jax.Array, shape: tuple[int, ...], plan: Plan, context_sigma: float) -> Draws:
    """Fresh noise for latents of `shape`."""
    start, context, renoise = jax.random.split(key, 3)
    extra = max(len(block.sigmas) for block in plan) - 1
    return Draws(
        jax.random.normal(start, shape),
        jax.random.normal(context, shape) if context_sigma else None,
        jax.random.normal(renoise, (shape[0], extra, *shape[1:])) if extra else None,
    )


class Rollout(NamedTuple):
    """What a rollout leaves.

    Attributes:
      latents: [b, f, c, y, x], generated (without the given first frames).
      inputs: [b, f, c, y, x], what the last denoising step of each block saw.
      cache: keys and values of the clean frames; the last block's are not in it.
    """

    latents: jax.Array
    inputs: jax.Array
    cache: Cache


@dataclasses.dataclass(frozen=True)
class Generator:
    """A causal model and how it is rolled out.

    Attributes:
      apply: `functools.partial(WanDiT(config).apply, {"params": params})`.
      config: of the model.
      window: how far back a block sees.
      context_sigma: noise level that a finished block gets before its clean pass; the network is told 0.
    """

    apply: Apply
    config: WanConfig
    window: Window = Window()
    context_sigma: float = 0.0

    def frame_tokens(self, latents: jax.Array) -> int:
        """Tokens of one of the given latent frames."""
        return self.config.frame_tokens(*latents.shape[-2:])

    def text(self, text: jax.Array | KeyValue) -> KeyValue:
        """Keys and values of the prompt, computed once."""
        return text if isinstance(text, tuple) else self.apply(text, method="text_key_value")


class BlockDraws(NamedTuple):
    """`Draws` of one block; `context` is for the block before it, or in `sequential` for itself."""

    start: jax.Array
    renoise: jax.Array | None
    context: jax.Array | None


def _forward(
    g: Generator,
    cache: Caches,
    text: KeyValue,
    parts: Sequence[tuple[jax.Array, float]],
    start: Any,
    limit: int,
) -> tuple[jax.Array, Any]:
    """One forward of consecutive blocks (latents, sigma), the first beginning at frame `start`.

    Returns the flow of the last block and what `kv.cached` gives back: for `_kept`.
    """
    latents = jnp.concatenate([x for x, _ in parts], 1)
    sizes = tuple(x.shape[1] for x, _ in parts)
    sigma = jnp.repeat(
        jnp.array([s for _, s in parts]), jnp.array(sizes), total_repeat_length=sum(sizes)
    )
    attend = kv.cached(sizes, start, g.window, limit, in_place=not isinstance(cache, Cache))
    out = g.apply(
        latents,
        jnp.broadcast_to(sigma, latents.shape[:2]),
        text,
        frames=start + jnp.arange(sum(sizes)),
        attend=attend,
        memory=cache,
    )
    return out.flow[:, -sizes[-1] :], out.new


def _kept(g: Generator, cache: Caches, new: Any, frames: int, start: Any) -> Caches:
    """The cache after a forward of which the first `frames` frames are clean; it began at `start`."""
    if not isinstance(cache, Cache):
        return new
    return kv.write(cache, kv.frames(new, 0, frames), start, g.window) if frames else cache


def denoise_block(
    g: Generator,
    cache: Caches,
    text: KeyValue,
    block: Block,
    step: BlockDraws,
    before: jax.Array | None,
    start: Any,
    limit: int,
) -> tuple[jax.Array, jax.Array, Caches]:
    """All steps of one block; the first also passes over the clean block `before`, if there is one.

    Returns the block's clean latents, the input of its last step, and the cache with `before` in it.
    """
    x, parts = step.start, [(step.start, block.sigmas[0])]
    clean = 0 if before is None else before.shape[1]
    if before is not None:
        noised = (
            before
            if step.context is None
            else flow.add_noise(before, step.context, g.context_sigma)
        )
        parts.insert(0, (noised, 0.0))
    v, new = _forward(g, cache, text, parts, start - clean, limit)
    cache = _kept(g, cache, new, clean, start - clean)
    x0 = flow.x0_from_flow(x, v, block.sigmas[0])

    def again(carry: Any, xs: Any) -> tuple[Any, None]:
        (sigma, noise), (_, x0, cache) = xs, carry
        x = flow.add_noise(x0, noise, sigma)
        v, new = _forward(g, cache, text, [(x, sigma)], start, limit)
        return (x, flow.x0_from_flow(x, v, sigma), _kept(g, cache, new, 0, start)), None

    if len(block.sigmas) > 1:
        if step.renoise is None:
            raise ValueError(
                f"rollout: expected renoise for a block of {len(block.sigmas)} steps, found None"
            )
        noises = jnp.moveaxis(step.renoise[:, : len(block.sigmas) - 1], 1, 0)
        steps = (jnp.array(block.sigmas[1:]), noises)
        (x, x0, cache), _ = jax.lax.scan(again, (x, x0, cache), steps)
    return x0, x, cache


def bucket(frames: int) -> int:
    """Frames by which the static length of a growing cache grows, in a clip of so many."""
    if attention.skips_hidden_keys():
        return frames + 1
    return max(-(-frames // BUCKETS), BUCKET_FRAMES)


def _pieces(plan: Plan, cut: int = 0) -> list[tuple[int, int]]:
    """Ranges [i, j) of blocks that one scan can run.

    Its blocks are equal, follow blocks of one size, and lie in one bucket of prefix lengths; nothing
    but the very first block stands in the first piece, and none crosses block number `cut`.
    """
    starts = list(itertools.accumulate((b.frames for b in plan), initial=0))
    per_bucket = bucket(starts[-1])

    def kind(i: int) -> Any:
        return plan[i], plan[i - 1].frames if i else None, starts[i] // per_bucket, i >= cut

    groups = itertools.groupby(range(len(plan)), kind)
    members = [list(group) for _, group in groups]
    return [(m[0], m[-1] + 1) for m in members]


def _cut(x: Any, start: int, count: int, size: int) -> Any:
    """`count` blocks of `size` frames from frame `start`, stacked on a leading axis."""
    if x is None:
        return None
    frames = jax.lax.slice_in_dim(x, start, start + count * size, axis=x.ndim - 4)
    blocks = frames.reshape(*x.shape[:-4], count, size, *x.shape[-3:])
    return jnp.moveaxis(blocks, -5, 0)


def _join(blocks: jax.Array) -> jax.Array:
    """[blocks, b, f, c, y, x] -> [b, blocks f, c, y, x]."""
    return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])


def _scan(body: Callable[..., Any], carry: Any, xs: Any, count: int) -> tuple[Any, Any]:
    """`lax.scan`, without a loop around a single step."""
    if count > 1:
        return jax.lax.scan(body, carry, xs)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], out)


def clean_block(
    g: Generator, cache: Caches, text: KeyValue, x: jax.Array, start: Any, limit: int
) -> Caches:
    """The clean pass of a block alone: the cache with its frames, the first of them number `start`."""
    _, new = _forward(g, cache, text, [(x, 0.0)], start, limit)
    return _kept(g, cache, new, x.shape[1], start)


def _prefill(
    g: Generator, cache: Caches, text: KeyValue, given: jax.Array, size: int
) -> tuple[Caches, jax.Array]:
    """Clean passes of given latents in blocks of `size`; the last block, of up to `size` frames, is left
    for the forward that it shares with the first noisy block."""
    count = (given.shape[1] - 1) // size

    def body(carry: Any, x: jax.Array) -> tuple[Any, None]:
        cache, start = carry
        return (clean_block(g, cache, text, x, start, count * size), start + size), None

    if count:
        (cache, _), _ = _scan(body, (cache, jnp.int32(0)), _cut(given, 0, count, size), count)
    return cache, given[:, count * size :]


def generate(
    g: Generator,
    draws: Draws,
    text: jax.Array | KeyValue,
    plan: Plan,
    given: jax.Array | None = None,
) -> Rollout:
    """Generates a clip block by block, without gradient.

    Args:
      g: the model.
      draws: noise for the frames of the plan.
      text: prompt embeddings [b, s, d], or their keys and values.
      plan: blocks and their steps.
      given: [b, f0, c, y, x] clean latents that the clip continues (image to video: one frame). They
        are taken in blocks of the size of the plan's last.

    Raises:
      ValueError: shapes that do not agree with the plan or with each other.
    """
    total, size = num_frames(plan), draws.start.shape
    shapes.check("draws.start", draws.start, "b f c y x", f=total, c=g.config.in_dim)
    offset = 0
    if given is not None:
        offset = shapes.check(
            "given", given, "b f c y x", b=size[0], c=size[2], y=size[3], x=size[4]
        )["f"]
    for block in plan:
        g.window.check_block(block.frames)
    text, tokens = g.text(text), g.frame_tokens(draws.start)
    cache: Any = kv.init(g.config, size[0], g.window.slots(offset + total), tokens)
    before, done, latents, inputs = None, 0, [], []
    if given is not None:
        cache, before = _prefill(g, cache, text, given, plan[-1].frames)
    for i, j in _pieces(plan):
        block, last = plan[i], plan[i - 1].frames if i else 0
        steps = BlockDraws(
            _cut(draws.start, done, j - i, block.frames),
            _cut(draws.renoise, done, j - i, block.frames) if len(block.sigmas) > 1 else None,
            _cut(draws.context, done - last, j - i, last) if i else None,
        )
        limit = offset + done + (j - i) * block.frames

        def body(
            carry: Any, step: BlockDraws, block: Block = block, limit: int = limit
        ) -> tuple[Any, Any]:
            cache, before, start = carry
            x0, x, cache = denoise_block(g, cache, text, block, step, before, start, limit)
            return (cache, x0, start + block.frames), (x0, x)

        (cache, before, _), (x0, x) = _scan(
            body, (cache, before, jnp.int32(offset + done)), steps, j - i
        )
        latents.append(_join(x0))
        inputs.append(_join(x))
        done += (j - i) * block.frames
    return Rollout(jnp.concatenate(latents, 1), jnp.concatenate(inputs, 1), cache)


def replay(
    g: Generator,
    rollout: Rollout,
    text: jax.Array | KeyValue,
    plan: Plan,
    first: int,
    straight_through: bool,
) -> jax.Array:
    """The blocks from number `first` on again, all at once and with gradient.

    The values are those of the rollout. The gradient is that of the block-by-block form with the
    context stopped, or, with `straight_through`, passed on to the keys and values of the noisy pass of
    the block that wrote it (the published training does this).

    Returns:
      [b, frames of the blocks, c, y, x].
    """
    layout = [block.frames for block in plan]
    before, total = sum(layout[:first]), sum(layout)
    if rollout.cache.k.shape[2] != total:
        raise ValueError(
            f"replay: expected a cache of all {total} frames, found {rollout.cache.k.shape[2]} slots; "
            "train without a rolling window, or with the context gradient 'full'"
        )
    groups = attention.noisy_after_clean(layout, first=first)
    x = jax.lax.stop_gradient(rollout.inputs[:, before:])
    sigma = jnp.concatenate([jnp.full(b.frames, b.sigmas[-1]) for b in plan[first:]])
    sigma = jnp.broadcast_to(sigma, x.shape[:2])
    attend = kv.context(straight_through, groups, before)
    frames = before + jnp.arange(total - before)
    out = g.apply(x, sigma, text, frames=frames, attend=attend, memory=rollout.cache)
    return flow.x0_from_flow(x, out.flow, sigma)


def _both_passes(
    g: Generator,
    cache: Cache,
    text: KeyValue,
    block: Block,
    step: BlockDraws,
    start: Any,
    limit: int,
    context_gradient: str,
) -> tuple[jax.Array, Cache]:
    """Noisy passes and the clean pass of one block: its latents, and the keys and values to store."""
    stop = jax.lax.stop_gradient
    x, noises = step.start, () if step.renoise is None else jnp.moveaxis(step.renoise, 1, 0)
    v, noisy = _forward(g, cache, text, [(x, block.sigmas[0])], start, limit)
    x0 = flow.x0_from_flow(x, v, block.sigmas[0])
    for sigma, noise in zip(block.sigmas[1:], noises, strict=False):
        x = flow.add_noise(stop(x0), noise, sigma)
        v, noisy = _forward(g, cache, text, [(x, sigma)], start, limit)
        x0 = flow.x0_from_flow(x, v, sigma)
    clean = x0 if step.context is None else flow.add_noise(x0, step.context, g.context_sigma)
    _, new = _forward(g, cache, text, [(clean, 0.0)], start, limit)
    if context_gradient == "straight_through":
        new = Cache(*(n + stop(c - n) for n, c in zip(noisy, new, strict=True)))
    return x0, stop(new) if context_gradient == "stop" else new


def sequential(
    g: Generator,
    draws: Draws,
    text: jax.Array | KeyValue,
    plan: Plan,
    first: int,
    context_gradient: str,
) -> jax.Array:
    """Block by block, a noisy and then a clean pass each, with gradient from block `first` on.

    Args:
      context_gradient: "straight_through" and "stop" as in `replay`; "full": true back-propagation
        through the clean pass. Of a block's steps only the last takes gradients.

    Returns:
      [b, f, c, y, x].
    """
    if context_gradient not in CONTEXT_GRADIENTS:
        raise ValueError(
            f"context gradient: expected one of {CONTEXT_GRADIENTS}, found {context_gradient!r}"
        )
    total = num_frames(plan)
    text, tokens = g.text(text), g.frame_tokens(draws.start)
    cache = kv.init(g.config, draws.start.shape[0], g.window.slots(total), tokens)
    done, latents = 0, []
    for i, j in _pieces(plan, first):
        block = plan[i]
        steps = BlockDraws(
            *(
                _cut(x, done, j - i, block.frames)
                for x in (draws.start, draws.renoise, draws.context)
            )
        )
        limit = done + (j - i) * block.frames

        def body(
            carry: Any, step: BlockDraws, block: Block = block, limit: int = limit
        ) -> tuple[Any, jax.Array]:
            cache, start = carry
            x0, new = _both_passes(g, cache, text, block, step, start, limit, context_gradient)
            return (kv.write(cache, new, start, g.window), start + block.frames), x0

        carry, x0 = _scan(jax.checkpoint(body), (cache, jnp.int32(done)), steps, j - i)
        cache, x0 = (carry[0], x0) if i >= first else jax.lax.stop_gradient((carry[0], x0))
        latents.append(_join(x0))
        done += (j - i) * block.frames
    return jnp.concatenate(latents, 1)


def differentiable(
    g: Generator, draws: Draws, text: jax.Array, plan: Plan, first: int, context_gradient: str
) -> jax.Array:
    """Latents of a rollout, with gradient to the model from block `first` on.

    Args:
      context_gradient: "straight_through" or "stop" (replayed in parallel), or "full" (sequential).
    """
    if context_gradient == "full":
        return sequential(g, draws, text, plan, first, context_gradient)
    if context_gradient not in CONTEXT_GRADIENTS:
        raise ValueError(
            f"context gradient: expected one of {CONTEXT_GRADIENTS}, found {context_gradient!r}"
        )
    rollout = jax.lax.stop_gradient(generate(g, draws, text, plan))
    again = replay(g, rollout, text, plan, first, context_gradient == "straight_through")
    before = sum(block.frames for block in plan[:first])
    return jnp.concatenate([rollout.latents[:, :before], again], 1)


def first_of_window(plan: Plan, blocks: int | None) -> int:
    """Number of the first block that takes gradients when the last `blocks` do; None: all."""
    if blocks is not None and blocks < 1:
        raise ValueError(
            f"gradient window: expected a positive number of blocks or None, found {blocks}"
        )
    return 0 if blocks is None else max(0, len(plan) - blocks)
