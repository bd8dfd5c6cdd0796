"""The programs of generation as abstract calls: a student's blocks, and the decoding of what they make."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import families, sharding
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.plan import Block, BlockDraws, num_frames
from oneforcing_jax.generation.student import Settings, Student
from oneforcing_jax.models import params as parameters
from oneforcing_jax.models.wan import WanConfig, WanDiT
from oneforcing_jax.setup.run import Latents, Run
from oneforcing_jax.targets import programs
from oneforcing_jax.targets.programs import Program, Reading
from oneforcing_jax.training.train import student

# Steady blocks are reported in so many groups of neighbours, by the number of frames that they see.
GROUPS = 4


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Abstract arrays of one video's stream, on a mesh."""

    config: WanConfig
    latents: Latents
    mesh: Mesh

    def array(self, shape: Sequence[int], axes: tuple[str | None, ...] = ()) -> Any:
        """An abstract float32 array."""
        place = NamedSharding(self.mesh, sharding.spec(axes))
        return jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=place)

    def frames(self, *more: int) -> Any:
        """Latents [1, *more, c, y, x]."""
        size = self.latents
        return self.array((1, *more, size.channels, size.rows, size.columns))

    def params(self) -> Any:
        """Parameters as they are used, layers apart."""
        placed = parameters.in_use(WanDiT(self.config), self.mesh)
        layers = range(self.config.num_layers)

        def one(leaf: Any) -> Any:
            place = NamedSharding(self.mesh, P(*leaf.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)

        return placed | {"blocks": tuple(jax.tree.map(one, placed["blocks"]) for _ in layers)}

    def stored(self, tree: Any) -> Any:
        """A cache with its heads laid over the mesh."""
        return jax.tree.map(lambda leaf: self._laid(leaf, sharding.STORED[leaf.ndim]), tree)

    def prompt(self, tree: Any) -> Any:
        """Keys and values of a prompt, [..., h, k], with their heads laid over the mesh."""
        return jax.tree.map(
            lambda leaf: self._laid(leaf, (*[None] * (leaf.ndim - 2), "heads", None)), tree
        )

    def _laid(self, leaf: Any, axes: tuple[str | None, ...]) -> Any:
        return leaf.update(sharding=NamedSharding(self.mesh, sharding.spec(axes)))


def generate(run: Run, devices: Sequence[Any], decoder: str | None = None) -> list[Program]:
    """One video of the config's size by a student in the steps of its family, and its decoding.

    Args:
      run, devices: the config, and where the video is made.
      decoder: see `programs.decode`.

    Raises:
      InputError: a mesh that does not fit, latents that are not those of the family's codec.
    """
    shapes = _Shapes(student(run).config, run.latents, programs.video_mesh(run, devices))
    video, first = families.of_run(run).video, run.blocks.first_frames or None
    settings = Settings(run.latents.shape, run.blocks.frames, video.steps, first, video.first_steps)
    plan = settings.plan(run.shift)
    with jax.set_mesh(shapes.mesh):
        found = _diffusion(shapes, plan)
    decoded = programs.decode(run, shapes.mesh, decoder)
    # Both lie in memory all the time.
    student_state, decoder_state = found[-1].state, decoded[-1].state
    return [
        *(dataclasses.replace(program, frozen=decoder_state) for program in found),
        *(dataclasses.replace(program, frozen=student_state) for program in decoded),
    ]


def _diffusion(shapes: _Shapes, plan: Sequence[Block]) -> list[Program]:
    c, params = shapes.config, shapes.params()
    size = shapes.latents
    tokens, slots = c.frame_tokens(size.rows, size.columns), num_frames(tuple(plan))
    streamed = Student(c, params, mesh=shapes.mesh)
    text = shapes.array((1, c.text_len, c.text_dim))
    text_kv = shapes.prompt(jax.eval_shape(streamed._text, params, text))
    cache = jax.eval_shape(lambda: kv.init(c, 1, slots, tokens, stacked=False))
    cache = shapes.stored(cache)
    state, start = (params, cache, text_kv), shapes.array(()).update(dtype=jnp.int32)

    def block(number: int, readings: tuple[Reading, ...]) -> Program:
        one = plan[number]
        more = len(one.sigmas) - 1
        draws = BlockDraws(
            shapes.frames(one.frames), shapes.frames(more, one.frames) if more else None, None
        )
        before = shapes.frames(plan[number - 1].frames) if number else None
        arguments = (params, cache, text_kv, draws, before, start, one, slots, streamed.window)
        return Program(readings, streamed._step, arguments, shapes.mesh, state)

    first = flops.generation(c, tokens, tuple(plan[:1])).forward
    keys = plan[0].frames / slots
    found = [
        Program(
            (Reading("generate/text", 1),), streamed._text, (params, text), shapes.mesh, params
        ),
        block(0, (Reading("generate/first block", 1, first, first, keys),)),
    ]
    # The second follows a first block that may have another size; the third stands for all others.
    kinds = ([1], list(range(2, len(plan)))) if len(plan) > 1 and plan[0].frames != plan[1].frames else (
        [], list(range(1, len(plan))))  # fmt: skip
    return found + [
        block(numbers[0], tuple(_readings(c, tokens, plan, numbers, slots)))
        for numbers in kinds
        if numbers
    ]


def _readings(
    c: WanConfig, tokens: int, plan: Sequence[Block], numbers: Sequence[int], slots: int
) -> list[Reading]:
    """Blocks of one program in groups; each makes a noisy pass, and a clean one of the block before it."""
    ends = list(itertools.accumulate(block.frames for block in plan))
    size, found = -(-len(numbers) // GROUPS), []
    for begin in range(0, len(numbers), size):
        group = numbers[begin : begin + size]
        seen = [(ends[i - 1], ends[i]) for i in group]
        work = sum(_passes(c, tokens, plan[i - 1], plan[i], ends[i]) for i in group) / len(group)
        keys = sum(a + b for a, b in seen) / (2 * len(seen) * slots)
        name = f"generate/steady, {seen[0][1]}-{seen[-1][1]} of {slots} frames"
        found.append(Reading(name, len(group), work, work, keys))
    return found


def _passes(c: WanConfig, tokens: int, before: Block, block: Block, stop: int) -> float:
    clean = flops.dit(c, tokens, before.frames, before.frames * (stop - block.frames), prompts=0)
    noisy = flops.dit(c, tokens, block.frames, block.frames * stop, prompts=0)
    return clean.forward + len(block.sigmas) * noisy.forward
