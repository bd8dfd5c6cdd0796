"""The programs of generation as abstract calls: a student's blocks, and the decoding of what they make."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from oneforcing_jax import families
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.plan import Block, Plan, num_frames
from oneforcing_jax.generation.student import Settings, Student
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.run import Latents, Run
from oneforcing_jax.targets import programs
from oneforcing_jax.targets.programs import Program, Reading
from oneforcing_jax.training.train import student


def generate(run: Run, devices: Sequence[Any], decoder: str | None = None) -> list[Program]:
    """One video of the config's size by a student in the steps of its family, and its decoding.

    Args:
      run, devices: the config, and where the video is made.
      decoder: see `programs.decode`.

    Raises:
      InputError: a mesh that does not fit, latents that are not those of the family's codec.
    """
    model, mesh = student(run).model, programs.video_mesh(run, devices)
    video, first = families.of_run(run).video, run.blocks.first_frames or None
    settings = Settings(run.latents.shape, run.blocks.frames, video.steps, first, video.first_steps)
    streamed = Student(model, model.in_use(mesh, apart=True), mesh=mesh)
    found = _diffusion(streamed, mesh, run.latents, settings.plan(run.shift))
    decoded = programs.decode(run, mesh, decoder)
    # Both lie in memory all the time.
    student_state, decoder_state = found[-1].state, decoded[-1].state
    return [
        *(dataclasses.replace(program, frozen=decoder_state) for program in found),
        *(dataclasses.replace(program, frozen=student_state) for program in decoded),
    ]


def _diffusion(streamed: Student, mesh: Mesh, size: Latents, plan: Plan) -> list[Program]:
    c, slots = streamed.model.config, num_frames(plan)
    tokens = c.frame_tokens(size.rows, size.columns)
    first = flops.generation(c, tokens, plan[:1]).forward
    found = []
    for numbers, call, arguments in streamed.programs(plan, size.shape[1:]):
        if not numbers:
            readings, state = [Reading("generate/text", 1)], arguments[:1]
        else:
            state = arguments[:3]
            begins = [Reading("generate/first block", 1, first, first, plan[0].frames / slots)]
            steady = [i for i in numbers if i]
            readings = begins * (0 in numbers) + _readings(c, tokens, plan, steady, slots)
        found.append(Program(tuple(readings), call, arguments, mesh, state))
    return found


def _readings(
    c: WanConfig, tokens: int, plan: Sequence[Block], numbers: Sequence[int], slots: int
) -> list[Reading]:
    """Blocks of one program; each makes a noisy pass, and a clean one of the block before it."""
    ends, found = list(itertools.accumulate(block.frames for block in plan)), []
    for i in numbers:
        work = _passes(c, tokens, plan[i - 1], plan[i], ends[i])
        keys = (ends[i - 1] + ends[i]) / (2 * slots)
        name = f"generate/steady, {ends[i]} of {slots} frames"
        found.append(Reading(name, 1, work, work, keys))
    return found


def _passes(c: WanConfig, tokens: int, before: Block, block: Block, stop: int) -> float:
    clean = flops.dit(c, tokens, before.frames, before.frames * (stop - block.frames), prompts=0)
    noisy = flops.dit(c, tokens, block.frames, block.frames * stop, prompts=0)
    return clean.forward + len(block.sigmas) * noisy.forward
