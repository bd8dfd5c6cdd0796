"""Plans of a causal clip: its blocks, their denoising steps, and the noise that each of them takes.

A block is the frames that are made together. `pieces` groups equal blocks into runs that one scan can make.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import kernels

# Where hidden keys cost time, a growing cache is read in this many static lengths, so that short prefixes
# cost less. Each length costs a compilation of the layer, so short clips have fewer.
BUCKETS, BUCKET_FRAMES = 4, 6
# Blocks of a clip, which are listed before it is begun.
MOST = 1_000_000


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
      InputError: frames that the blocks do not fill, or more blocks than anybody waits for.
    """
    first = first_block_frames or frames_per_block
    rest, left = divmod(num_frames - first, frames_per_block)
    if left or rest < 0:
        raise InputError(
            f"blocks: expected {num_frames} frames = {first} (first block) + a multiple of "
            f"{frames_per_block}, found {num_frames - first} left over; change num_frames, "
            "frames_per_block or first_block_frames"
        )
    if rest >= MOST:
        raise InputError(
            f"blocks: expected at most {MOST:,} of a clip, found {1 + rest:,}; ask for fewer frames"
        )
    sigmas = flow.warp_steps(steps, shift)
    head = sigmas if first_block_steps is None else flow.warp_steps(first_block_steps, shift)
    return (Block(first, head), *(Block(frames_per_block, sigmas),) * rest)


def with_one_more_step(plan: Plan, shift: float) -> Plan:
    """The same blocks in one step more each, their steps evenly spaced before the schedule is warped."""

    @functools.cache
    def longer(block: Block) -> Block:
        count = len(block.sigmas) + 1
        steps = [flow.TRAIN_STEPS * (1 - i / count) for i in range(count)]
        return Block(block.frames, flow.warp_steps(steps, shift))

    return tuple(longer(block) for block in plan)


def num_frames(plan: Plan) -> int:
    """Latent frames of a plan."""
    return sum(block.frames for block in plan)


class ClipDraws(NamedTuple):
    """The randomness of a rollout, drawn by the caller; samples first, so that a batch can be cut.

    Attributes:
      start: [b, f, c, y, x], what each block starts from.
      context: [b, f, c, y, x], added before the clean pass; None where context_sigma is 0.
      renoise: [b, steps - 1, f, c, y, x], added between steps; None where no block has a second step.
      exit: int [b], all equal: the number of the step whose prediction is the output of a block that
        `exits`; None: the last.
      given: bool [b], clips whose first block is given: it lies clean in `start`, at noise level 0, and so
        stays what it is; None: no clip's.
    """

    start: jax.Array
    context: jax.Array | None = None
    renoise: jax.Array | None = None
    exit: jax.Array | None = None
    given: jax.Array | None = None

    def beginning(self, latents: jax.Array, plan: Plan) -> ClipDraws:
        """With the first block of latents [b, f, c, y, x] in `start`, where it is given."""
        if self.given is None:
            return self
        size, given = plan[0].frames, self.given[:, None, None, None, None]
        first = jnp.where(given, latents[:, :size], self.start[:, :size])
        return self._replace(start=jnp.concatenate([first, self.start[:, size:]], 1))

    def frame_levels(self, sigma: jax.Array, plan: Plan) -> jax.Array:
        """Noise levels [b] of clips as those of their frames [b, f], 0 of given ones; None given: [b]."""
        return sigma if self.given is None else _clean(self.given, sigma[:, None], plan)

    def last_levels(self, plan: Plan) -> jax.Array:
        """Noise level [f] of the step at which each frame's block ends; [b, f] where some are given."""

        def level(block: Block) -> jax.Array:
            exit = self.exit_of(block, plan)
            return jnp.full(block.frames, jnp.array(block.sigmas)[-1 if exit is None else exit])

        levels = jnp.concatenate([level(block) for block in plan])
        return levels if self.given is None else _clean(self.given, levels[None], plan)

    def exit_of(self, block: Block, plan: Plan) -> jax.Array | None:
        """Number of the step at which a block of the plan ends; None: its last."""
        return None if self.exit is None or not exits(block, plan) else self.exit[0]


def _clean(given: jax.Array, sigma: jax.Array, plan: Plan) -> jax.Array:
    """Levels [b or 1, f or 1] as [b, f], 0 of the first block where it is given [b]."""
    first = jnp.arange(num_frames(plan))[None] < plan[0].frames
    return jnp.where(given[:, None] & first, 0.0, sigma)


def exits(block: Block, plan: Plan) -> bool:
    """Whether a block can end before its last step: if it has several, in the list that the last block has.

    A first block with a list of its own runs all of it, as it will when it is served.
    """
    return len(block.sigmas) > 1 and block.sigmas == plan[-1].sigmas


def draw(
    key: jax.Array,
    shape: tuple[int, ...],
    plan: Plan,
    context_sigma: float,
    random_exit: bool = False,
    given_rate: float = 0.0,
) -> ClipDraws:
    """Fresh randomness for latents of `shape`; a share `given_rate` of the clips is given its first block.

    With `random_exit` one exit step is drawn from the plan's list for all clips and blocks: steps after it
    are not computed, which a step for each clip of a batch would not allow.
    """
    start, context, renoise = jax.random.split(key, 3)
    extra, exit, given = max(len(block.sigmas) for block in plan) - 1, None, None
    if random_exit and exits(plan[-1], plan):
        renoise, step = jax.random.split(renoise)
        exit = jnp.full(shape[:1], jax.random.randint(step, (), 0, len(plan[-1].sigmas)))
    if given_rate:
        given = jax.random.bernoulli(jax.random.fold_in(key, 3), given_rate, shape[:1])
    return ClipDraws(
        jax.random.normal(start, shape),
        jax.random.normal(context, shape) if context_sigma else None,
        jax.random.normal(renoise, (shape[0], extra, *shape[1:])) if extra else None,
        exit,
        given,
    )


def mean_steps(plan: Plan, random_exit: bool = False) -> tuple[float, ...]:
    """Steps that each block takes, their mean where the last is drawn."""
    counts = ((len(block.sigmas), random_exit and exits(block, plan)) for block in plan)
    return tuple((count + 1) / 2 if drawn else float(count) for count, drawn in counts)


class BlockDraws(NamedTuple):
    """`ClipDraws` of one block; `context` is for the block before it, or in `sequential` for itself."""

    start: jax.Array
    renoise: jax.Array | None
    context: jax.Array | None
    given: jax.Array | None = None

    def level(self, sigma: Any) -> Any:
        """Noise level of a step: of all clips, or [b] of each, where some are given the block."""
        return sigma if self.given is None else jnp.where(self.given, 0.0, sigma)


def first_of_window(plan: Plan, blocks: int | None) -> int:
    """Number of the first block that takes gradients when the last `blocks` do; None: all."""
    if blocks is not None and blocks < 1:
        raise InputError(
            f"gradient window: expected a positive number of blocks or None, found {blocks}"
        )
    return 0 if blocks is None else max(0, len(plan) - blocks)


def bucket(frames: int) -> int:
    """Frames by which the static length of a growing cache grows, in a clip of so many."""
    if kernels.chosen().skips:
        return frames + 1
    return max(-(-frames // BUCKETS), BUCKET_FRAMES)


def pieces(plan: Plan, cut: int = 0) -> list[tuple[int, int]]:
    """Ranges [i, j) of blocks that one scan can run.

    The blocks of a range are equal, follow blocks of one size, and lie in one bucket of prefix lengths.
    The first range holds the very first block alone, and no range crosses block number `cut`.
    """
    starts = list(itertools.accumulate((b.frames for b in plan), initial=0))
    per_bucket = bucket(starts[-1])

    def kind(i: int) -> Any:
        return plan[i], plan[i - 1].frames if i else None, starts[i] // per_bucket, i >= cut

    groups = itertools.groupby(range(len(plan)), kind)
    members = [list(group) for _, group in groups]
    return [(m[0], m[-1] + 1) for m in members]


def cut(x: Any, start: int, count: int, size: int) -> Any:
    """`count` blocks of `size` frames from frame `start`, stacked on a leading axis."""
    if x is None:
        return None
    frames = jax.lax.slice_in_dim(x, start, start + count * size, axis=x.ndim - 4)
    blocks = frames.reshape(*x.shape[:-4], count, size, *x.shape[-3:])
    return jnp.moveaxis(blocks, -5, 0)


def join(blocks: jax.Array) -> jax.Array:
    """[blocks, b, f, c, y, x] -> [b, blocks f, c, y, x]."""
    return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])
