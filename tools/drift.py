"""Measures what streams of the toy lose that go on for many times the length of training.

    python tools/drift.py --workdir=runs/toy --out=drift.json

Streams of one prompt, through several windows, and streams whose prompt changes in the middle, with and
without their context passed anew under the new prompt. Each training length is read like a video of its own:
shape, the share that shows the shape of its caption; clear; sharpness, a part of that of real videos; motion.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from tqdm import tqdm

from oneforcing_jax.causal.cache import Window
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint
from oneforcing_jax.system.command import Help, any_path, count, ending
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.toy.gallery import Gallery, load
from oneforcing_jax.training import sources

SCORES = ("shape", "clear", "sharpness", "motion")


class Row(NamedTuple):
    """How streams are made.

    Attributes:
      sink, relative: of the window.
      switch: whether the prompt changes in the middle.
      recompute: whether the context then passes anew.
    """

    sink: int = 0
    relative: bool = False
    switch: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        parts = [f"sink {self.sink}" if self.sink else "no sink"]
        parts += ["relative"] * self.relative + ["context anew"] * self.recompute
        return ", ".join(parts)


STEADY = [Row(), *(Row(sink, near) for sink in (1, 3) for near in (False, True))]
SWITCHED = [Row(s, bool(s), True, anew) for s in (0, 1) for anew in (False, True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="drift", description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--workdir", required=True, type=any_path, help="of a toy run that has ended")
    add("--student", default="one_forcing:generator", help="STAGE:NET")
    add("--ema", action="store_true", help="the moving average of its weights")
    add("--times", type=count, default=10, help="training lengths of a stream")
    add("--out", required=True, type=any_path, help=".json")
    args = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ending("nothing was written; the same command begins anew"):
        measure(args.workdir, args.student, args.ema, args.times, args.out)


def measure(workdir: Path, source: str, ema: bool, times: int, out: Path) -> None:
    """Makes the streams, prints a table and writes all scores.

    Raises:
      InputError: too short a stream, or no toy run.
    """
    if times < 4:
        raise InputError(f"--times: expected 4 or more training lengths, found {times}")
    run = Run.read(workdir / checkpoint.CONFIG)
    gallery = Gallery(run, workdir, "world")
    student = Student(sources.network(run, source).model, load(run, workdir, source, ema), Window())
    found = []
    for row in tqdm([*STEADY, *SWITCHED], unit="row"):
        found.append(row._asdict() | {"parts": _streamed(gallery, student, row, times)})
    write_whole(out, json.dumps({"times": times, "rows": found}, indent=1).encode())
    middle = times // 2
    print(_table("one prompt", STEADY, found, [0, 1, times - 1]))
    print(_table("a new prompt in the middle", SWITCHED, found, [middle - 1, middle, times - 1]))


def _streamed(gallery: Gallery, student: Student, row: Row, times: int) -> list[dict[str, float]]:
    """Scores of each training length of a row's streams."""
    frames = gallery.run.latents.frames
    plan, middle = gallery.run.plan_of(times * frames), times // 2 * frames
    captions, text = gallery.captions, jnp.asarray(gallery.text)
    others = [_other(gallery, caption) for caption in captions] if row.switch else captions
    later = jnp.asarray(gallery.embedded(others)) if row.switch else text
    one, two = (student.prepare(prompted(x)) for x in (text, later))
    asked: Any = (lambda frame: one if frame < middle else two) if row.switch else one
    window = Window(frames, row.sink, row.relative)
    blocks = student.stream(
        gallery.draws(plan), asked, plan, recompute=row.recompute, window=window
    )
    clip = jnp.concatenate(list(blocks), 1)
    parts = []
    for start in range(0, times * frames, frames):
        said = others if row.switch and start >= middle else captions
        scores = gallery.against.scores(gallery.decode(clip[:, start : start + frames]), said)
        parts.append({name: float(scores[name]) for name in SCORES})
    return parts


def _other(gallery: Gallery, caption: str) -> str:
    """A caption that differs in its shape alone."""
    world, said = gallery.world, gallery.world.parse(caption)
    shape = world.shapes[(world.shapes.index(said.shape) + 1) % len(world.shapes)]
    return next(c for c in world.captions() if world.parse(c) == said._replace(shape=shape))


def _table(title: str, rows: Sequence[Row], found: list[dict[str, Any]], parts: list[int]) -> str:
    known = {Row(**{name: r[name] for name in Row._fields}): r["parts"] for r in found}
    names = "".join(f"{name:>{8 * len(parts)}}" for name in SCORES)
    numbers = "".join(f"{part + 1:8}" for part in parts) * len(SCORES)
    lines = [f"\n{title:30}{names}", " " * 30 + numbers]
    for row in rows:
        values = (known[row][part][name] for name in SCORES for part in parts)
        lines.append(f"{row!s:30}" + "".join(f"{value:8.2f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
