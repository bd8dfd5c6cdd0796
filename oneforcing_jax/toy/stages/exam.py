"""The teacher's exam: nothing is distilled from a teacher that fails it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import PICTURE, Kind, MadeFrom, Stage, results
from oneforcing_jax.system import processes
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.toy.gallery import Config, Gallery, check
from oneforcing_jax.toy.sheet import contact_sheet
from oneforcing_jax.training import sources


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields of the stage.

    Attributes:
      world: stage of the world.
      source: the teacher, "STAGE:NET".
      least: scores that it must reach; below one of them the run ends.
    """

    world: str
    source: str
    least: Mapping[str, float]


def examine(run: Run, name: str, fields: Fields, workdir: Path) -> None:
    """Scores the teacher.

    Raises:
      InputError: a score below what the stage asks for.
    """
    file = workdir / name / "scores.json"
    if not processes.exchange(file.exists(), f"the start of {name!r}")[0]:
        gallery = Gallery(run, workdir, fields.world)
        videos = gallery.teacher(fields.source)
        with processes.first(f"scores of {fields.source!r}") as mine:
            if mine:
                found = gallery.against.scores(videos, gallery.captions)
                shown = {"real through the codec": gallery.seen, "teacher": videos}
                rows = (gallery.captions, gallery.real_captions)
                contact_sheet(workdir / name / PICTURE, shown, {"teacher": found}, *rows)
                write_whole(file, json.dumps(found, indent=1).encode())
    found = read_record(file)
    if processes.is_first():
        tqdm.write(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    low = [key for key, least in fields.least.items() if found[key] < least]
    if low:
        teacher = fields.source.rpartition(":")[0]
        with processes.first("the exam's end") as mine:
            if mine:
                file.unlink()
        raise InputError(
            f"{name}: expected of the teacher at least {dict(fields.least)}, found "
            f"{ {key: round(found[key], 2) for key in low} }; train it longer "
            f"(--config.stages.{teacher}.iterations), or anew with other settings (--redo={teacher})"
        )


def prepare(run: Run, name: str, fields: Fields) -> Stage:
    """Checks the stage."""
    check(run, fields.world)
    sources.network(run, fields.source)
    work, own = functools.partial(examine, run, name, fields), f"stages.{name}"
    made_from = MadeFrom(
        results(run, (Config,), ("fps", "blocks", "evaluation.long")),
        networks={f"{own}.source": fields.source},
        stores={f"{own}.world": f"{fields.world}/store"},
    )
    return Stage(name, work, made_from=made_from)


KIND = Kind(Fields, lambda fields: (Config,), prepare)
