"""How far a student of eight bits is from itself: PSNR of latents, block by block. The worst counts."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.causal.plan import Plan
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.codec import pad_embeddings
from oneforcing_jax.generation.loading import Loading
from oneforcing_jax.generation.making import STREAMED
from oneforcing_jax.generation.noise import Noise, sample_keys, seeded
from oneforcing_jax.generation.scene import Look
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import Condition, prompted
from oneforcing_jax.models.products.eight_bits import (
    MATRICES,
    EightBits,
    product,
    quantised,
    rounded,
)
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system import room

# dB that every block must reach: between four bits a number (25 of the student in the package, whose clips
# are others then) and five (37).
LIMIT = 35.0
# Of the squared range of latents: errors below it count as this, 120 dB.
LEAST = 1e-12


class Clip(NamedTuple):
    """A clip that the student made without eight bits.

    Attributes:
      name: its prompt and sample, in words.
      noise, condition: that it was made from; the condition is not prepared, for that multiplies, too.
      latents: [1, f, c, y, x].
    """

    name: str
    noise: Noise
    condition: Condition
    latents: jax.Array


class Worst(NamedTuple):
    """The block of the lowest PSNR in dB, in words, and the mean of all blocks."""

    psnr: float
    where: str
    mean: float


def agreement(clean: Any, other: Any, plan: Plan) -> np.ndarray:
    """PSNR in dB of each block of a clip, [blocks]; its peak is the range of the whole clip's latents.

    Args:
      clean, other: latents [b, f, c, y, x], of which the first say the range.
      plan: their blocks.
    """
    first, second = np.asarray(clean, np.float32), np.asarray(other, np.float32)
    ends = np.cumsum([block.frames for block in plan])
    parts = np.split(np.square(first - second), ends[:-1], 1)
    share = np.array([part.mean() for part in parts]) / np.square(np.ptp(first))
    return -10 * np.log10(np.maximum(share, LEAST))


def compared(student: Student, clips: list[Clip], plan: Plan) -> Worst:
    """A student beside clips of another one, whose clean latents lie behind each of its blocks."""
    rows = []
    for clip in clips:
        prepared = student.prepare(clip.condition)
        made = student.stream(clip.noise, prepared, plan, clean=clip.latents)
        rows.append(agreement(clip.latents, jnp.concatenate(list(made), 1), plan))
    found = np.stack(rows)
    row, block = np.unravel_index(found.argmin(), found.shape)
    where = f"block {block} of {clips[row].name}"
    return Worst(float(found.min()), where, float(found.mean()))


def searched(
    student: Student, eight: EightBits, clips: list[Clip], plan: Plan
) -> Iterator[tuple[str, Worst]]:
    """The worst block with all matrices of eight bits, and with each of them left as it is in turn. No
    program is compiled to try them: the student's own has the rounded values."""
    for name in ("", *(name for name in MATRICES if eight.chosen(name))):
        tried = dataclasses.replace(eight, keep=(*eight.keep, *([name] if name else [])))
        yield (
            name or "none",
            compared(student.of(rounded(student.params, tried)), clips, plan),
        )


def report(args: argparse.Namespace) -> None:
    """What the command prints.

    Raises:
      InputError: a block below the limit, or options that do not fit.
    """
    given: dict[str, Any] = STREAMED | vars(args)
    loading, look = options(Loading, given), options(Look, given)
    if (eight := loading.precision) is None:
        raise InputError("--precision: expected int8 or fp8, found none; name one")
    model = dataclasses.replace(loading, precision=None).model()
    settings = look.settings(model.source, model.encoders.codec)
    plan, student = settings.plan(model.source.shift), model.maker
    assert isinstance(student, Student)
    clips = []
    for prompt in args.prompt:
        text = pad_embeddings([model.encode(prompt)], model.source.config.text_len)
        condition = prompted(model.place(text))
        for sample in range(args.samples):
            noise = seeded(sample_keys([args.seed], [sample]), settings.shape[1:])
            latents = student.clip(noise, student.prepare(condition), plan)
            clips.append(Clip(f"{prompt!r}, sample {sample}", noise, condition, latents))
    params = quantised(student.params, eight)
    served = Student(
        student.model.with_product(product(eight)), params, student.window, student.mesh
    )
    found = compared(served, clips, plan)
    sizes = [room.gigabytes(room.size(tree)) for tree in (params, student.params)]
    print(f"{eight} beside {model.source.config.dtype.name}: weights {sizes[0]}, before {sizes[1]}")
    print(f"worst block {found.psnr:.1f} dB ({found.where}), mean {found.mean:.1f} dB")
    if args.search:
        print("| left as it is | worst block, dB | mean, dB |\n|---|---|---|")
        for name, worst in searched(student, eight, clips, plan):
            print(f"| {name} | {worst.psnr:.1f} | {worst.mean:.1f} |", flush=True)
    if not found.psnr >= args.limit:
        raise InputError(
            f"{eight}: expected {args.limit:g} dB or more in every block, found {found.psnr:.1f} in "
            f"{found.where}; leave matrices as they are ({eight.kind}:NAMES; --search says which)"
        )
