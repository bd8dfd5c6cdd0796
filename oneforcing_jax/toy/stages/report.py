"""The toy's last stage: scores of every model, videos to compare, a contact sheet and a table."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from oneforcing_jax.causal.cache import Window
from oneforcing_jax.data.origin import Origin
from oneforcing_jax.data.video import VideoWriter
from oneforcing_jax.generation.jobs import file_name
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup.ranges import Natural
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import PICTURE, Kind, MadeFrom, Stage, leaves, results
from oneforcing_jax.system import places, processes, saved
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.toy import world as worlds
from oneforcing_jax.toy.gallery import Config, Gallery, check, load
from oneforcing_jax.toy.scores import drift
from oneforcing_jax.toy.sheet import contact_sheet, spread
from oneforcing_jax.toy.world import Attributes, World
from oneforcing_jax.training import sources

AVERAGE, RANDOM = "ema ", "random "


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields of the stage.

    Attributes:
      world: stage of the world.
      teacher: "STAGE:NET", or nothing where it is known already.
      students: rows of the table: a name, and "STAGE:NET"; "ema STAGE:NET" is its average, and
        "random STAGE:NET" such a network before any training.
      videos: that the last student streams, and prompts for which the other rows show theirs.
    """

    world: str
    teacher: str
    students: tuple[tuple[str, str], ...]
    videos: Natural


def report(run: Run, name: str, fields: Fields, workdir: Path) -> None:
    """Makes and prints the report; a finished one is printed again.

    Processes divide the videos of each model; the first of them scores and writes.
    """
    folder, mine = workdir / name, processes.is_first()
    if processes.exchange((folder / "scores.json").exists(), f"the start of {name!r}")[0]:
        if mine:
            print((folder / "table.txt").read_text())
        return
    gallery = Gallery(run, workdir, fields.world)
    videos = {"real": gallery.real, "real through the codec": gallery.seen}
    results: dict[str, dict[str, float]] = {}

    def score(row: str, captions: Sequence[str]) -> None:
        if mine:
            results[row] = gallery.against.scores(videos[row], captions)

    for row in videos:
        score(row, gallery.real_captions)
    if fields.teacher:
        videos["teacher"] = gallery.teacher(fields.teacher)
        score("teacher", gallery.captions)
    model = sources.network(run, _plain(fields.students[-1][1])).model
    student = Student(model, {})
    # What it sees of a longer video is no longer than what it was trained on.
    long = Student(model, {}, Window(run.latents.frames))
    for row, source in tqdm(fields.students, desc=name, unit="student", disable=not mine):
        average = source.startswith(AVERAGE)
        student = student.of(load(run, workdir, source.removeprefix(AVERAGE), average))
        videos[row] = gallery.clip(student, gallery.plan)
        score(row, gallery.captions)
        if gallery.settings.long:
            made = gallery.clip(long.of(student.params), gallery.long)
            if mine:
                results[row] |= drift(made, run.latents.frames, gallery.world)
    weights = {row: _identity(run, workdir, source) for row, source in fields.students}
    if fields.teacher:
        weights["teacher"] = _identity(run, workdir, fields.teacher)
    last = weights[fields.students[-1][0]]
    _stream(gallery, student, last, folder / "videos", fields.videos)
    if not mine:
        return
    _compare(gallery, videos, weights, folder / "compared", fields.videos)
    contact_sheet(folder / PICTURE, videos, results, gallery.captions, gallery.real_captions)
    table = _table(results, gallery.world)
    write_whole(folder / "table.txt", table.encode())
    write_whole(folder / "scores.json", json.dumps(results, indent=1).encode())
    print(
        f"{table}\nVideos: {folder / 'videos'}\nContact sheet: {folder / PICTURE}"
        f"\nA page of all of it: oneforcing evaluate report {workdir} --out report.html"
    )


def _identity(run: Run, workdir: Path, source: str) -> str | None:
    """Names the weights of a model; those before any training have none."""
    if source.startswith(RANDOM):
        return None
    place = sources.place(run, workdir, _plain(source))
    return saved.identity(*place, source.startswith(AVERAGE))


def _compare(
    gallery: Gallery,
    videos: Mapping[str, np.ndarray],
    weights: Mapping[str, str | None],
    folder: Path,
    count: int,
) -> None:
    """Writes what the other rows show for the prompts of the streamed videos, a folder a row.

    Args:
      videos: uint8 [n, f, y, x, 3] by row; the last one is the streamed one.
      weights: of the rows that a model made.
      count: prompts.
    """
    prompts = [gallery.captions[i] for i in _chosen(gallery, count)]
    for row, clips in list(videos.items())[:-1]:
        made, place = row in weights, folder / file_name(row)
        own = gallery.captions if made else gallery.real_captions
        places.make(place)
        for n, caption in ((own.index(caption), caption) for caption in prompts if caption in own):
            origin = Origin(weights[row], caption, gallery.run.seed, n) if made else Origin()
            with _writer(place, caption, origin) as writer:
                writer.write(clips[n])


def _writer(folder: Path, caption: str, origin: Origin) -> VideoWriter:
    """What writes the video of a caption."""
    path = folder / f"{caption.replace(' ', '_')}.mp4"
    return VideoWriter(path, worlds.FPS, crf=worlds.CRF, full_chroma=True, origin=origin)


def _chosen(gallery: Gallery, count: int) -> list[int]:
    """Numbers of the prompts whose videos are kept."""
    return spread(len(gallery.world.captions()), count)


def _stream(
    gallery: Gallery, student: Student, weights: str | None, folder: Path, count: int
) -> None:
    """Writes videos of the last student as they are made, block by block; processes divide them."""
    places.make(folder)
    noise = gallery.draws(gallery.plan)
    index, parts = processes.part()
    own = _chosen(gallery, count)[index::parts]
    for i in tqdm(own, desc="stream", unit="video", disable=not processes.is_first()):
        draws = jax.tree.map(lambda x, i=i: x[i : i + 1], noise)
        said = gallery.run.blocks.said
        origin = Origin(weights, gallery.captions[i], gallery.run.seed, i, said)
        with _writer(folder, gallery.captions[i], origin) as writer:
            text = jnp.asarray(gallery.text[i : i + 1])
            condition = student.prepare(prompted(text))
            for block in student.stream(draws, condition, gallery.plan):
                writer.write(gallery.decode(block)[0])


def _table(results: dict[str, dict[str, float]], world: World) -> str:
    columns = [*Attributes._fields, "joint", "clear", "sharpness", "motion", "frechet", "scene"]
    if world.told != Attributes._fields:
        columns.insert(columns.index("clear") + 1, "variety")
    width = max(map(len, results))
    head = " " * width + "".join(f"{c:>11}" for c in columns)
    rows = [
        f"{row:<{width}}" + "".join(f"{found[c]:11.2f}" for c in columns)
        for row, found in results.items()
    ]
    return "\n".join([head, *rows])


def _plain(source: str) -> str:
    return source.removeprefix(AVERAGE).removeprefix(RANDOM)


def prepare(run: Run, name: str, fields: Fields) -> Stage:
    """Checks the stage."""
    check(run, fields.world)
    teacher = (fields.teacher,) if fields.teacher else ()
    for source in (*teacher, *(source for _, source in fields.students)):
        sources.network(run, _plain(source))
    own = f"stages.{name}"
    shown = {f"{own}.students": fields.students, f"{own}.videos": fields.videos}
    networks = {f"{own}.students: {row}": source for row, source in fields.students}
    if fields.teacher:
        networks[f"{own}.teacher"] = fields.teacher
    made_from = MadeFrom(
        results(run, (Config,), ("fps",)) | leaves({**shown, f"{own}.teacher": fields.teacher}),
        networks=networks,
        stores={f"{own}.world": f"{fields.world}/store"},
    )
    return Stage(name, functools.partial(report, run, name, fields), made_from=made_from)


KIND = Kind(Fields, lambda fields: (Config,), prepare)
