"""What a report shows, read from work directories of runs and folders of studies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation.curves import GAP, LOSSES, Curve, series
from oneforcing_jax.evaluation.study import ROWS, SCORES, Estimate
from oneforcing_jax.generation.jobs import file_name
from oneforcing_jax.system.files import read_record
from oneforcing_jax.system.textfiles import form
from oneforcing_jax.training.metrics import ROWS as METRICS
from oneforcing_jax.training.metrics import read_rows
from oneforcing_jax.training.samples import FOLDER as SAMPLES

CONFIG, REPORT, VIDEOS, COMPARED = "config.json", "report", "videos", "compared"
# The model of a run that streams its videos: the last one that is scored.
OWN = ""
# The entry of a study's scores that is the row's own.
STUDENT = "student"
# A row of scores: whose it is, its name, and each metric.
Row = tuple[str, str, dict[str, Estimate]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory.

    Attributes:
      method: what it is called in the report; runs of one method differ in their seeds.
      seed: as text; "" where there is only one.
      config: fields by dotted names, without the seed where `seed` holds it.
      scores: of each model that was scored.
      curves: iterations [n] and values [n] of panels, which are named "stage: metric".
      clips: video files by what they show and by model: OWN, SAMPLES, or another one that was scored.
    """

    method: str
    seed: str
    config: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Curve]
    clips: Mapping[str, Mapping[str, Path]]

    @property
    def own(self) -> str:
        """The name of OWN among its models."""
        return [self.method, *self.scores][-1]


@dataclasses.dataclass
class Found:
    """All that a report shows; `notes` says what could not be read or is not finished."""

    runs: list[Run] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Names of methods in order."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def alone(self) -> Run | None:
        """The only run, whose models are compared; None where runs are."""
        return self.runs[0] if len(self.runs) == 1 and not self.runs[0].seed else None

    @property
    def names(self) -> list[str]:
        """What can be shown or hidden: methods, or the models of a single run."""
        return list(self.alone.scores) if self.alone else self.methods


def collect(folders: Sequence[Path]) -> Found:
    """Reads work directories of oneforcing_jax.main and folders of tools/study.py.

    Raises:
      MissingInput, InputError: another folder, or one with nothing to show.
    """
    found = Found()
    names = _names(folders)
    for folder in folders:
        if (folder / "rows").is_dir():
            _study(folder, names[folder] if len(folders) > 1 else "", found)
        elif (folder / CONFIG).is_file():
            run = _run(folder, names[folder], "", found.notes)
            if not (run.scores or run.curves or run.clips):
                raise InputError(
                    f"{folder}: expected metrics, scores or videos, found none; run a stage"
                )
            found.runs.append(run)
        else:
            raise MissingInput(
                f"{folder}: expected the work directory of a run ({CONFIG}) or the folder of a study "
                "(rows/), found neither; check the path"
            )
    return found


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Last parts of paths, or whole paths where these are alike."""
    last = [folder.resolve().name for folder in folders]
    return {
        f: name if last.count(name) == 1 else str(f) for f, name in zip(folders, last, strict=True)
    }


def _study(folder: Path, name: str, found: Found) -> None:
    known = {row.folder: row.name for row in ROWS}
    order = {folder: n for n, folder in enumerate(known)}
    rows = [row for row in (folder / "rows").iterdir() if row.is_dir()]
    before = len(found.runs)
    for row in sorted(rows, key=lambda row: (order.get(row.name, len(order)), row.name)):
        method = known.get(row.name, row.name)
        for seed in sorted(
            (x for x in row.iterdir() if x.is_dir()), key=lambda x: (len(x.name), x.name)
        ):
            if (seed / REPORT / SCORES).is_file():
                shown = f"{name}: {method}" if name else method
                found.runs.append(_run(seed, shown, seed.name, found.notes))
            else:
                found.notes.append(f"{method}, seed {seed.name}, is not finished")
    if len(found.runs) == before:
        raise InputError(
            f"{folder}: expected a finished run, found {len(rows)} rows and none; go on with tools/study.py"
        )


def _run(folder: Path, method: str, seed: str, notes: list[str]) -> Run:
    """Reads what is whole; of the rest goes a line to `notes`."""

    def record(file: Path) -> dict[str, Any]:
        try:
            return read_record(file) if file.is_file() else {}
        except InputError as error:
            notes.append(str(error))
            return {}

    config = dict(flat(record(folder / CONFIG)))
    curves: dict[str, Curve] = {}
    for stage in _stages(folder, config):
        try:
            rows = read_rows(stage)
            curves |= {
                f"{stage.name}: {title}": series(rows, metric) for title, metric in _panels(rows)
            }
        except InputError as error:
            notes.append(str(error))
    if seed:
        config.pop("seed", None)
    scores = _scores(record(folder / REPORT / SCORES))
    return Run(method, seed, config, scores, curves, _clips(folder, list(scores)))


def _stages(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Stages that were trained in this work directory, as the config has them, others by their time; links
    are to those of others."""
    known = list(dict.fromkeys(f.split(".")[1] for f in config if f.startswith("stages.")))
    files = [file for file in folder.glob(f"*/{METRICS}") if not file.parent.is_symlink()]

    def place(file: Path) -> tuple[int, float, Path]:
        name = file.parent.name
        return known.index(name) if name in known else len(known), file.stat().st_mtime, file

    return [file.parent for file in sorted(files, key=place)]


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Titles and metrics of a stage's curves: those of the paper's figures, and other losses."""
    metrics = {name for row in rows for name, value in row.items() if isinstance(value, float)}
    titles = {metric: title for title, metric in (LOSSES | GAP).items()}
    losses = sorted(m for m in metrics - titles.keys() if m.endswith("/loss"))
    chosen = [metric for metric in titles if metric in metrics] + losses
    return [(titles.get(m, m.replace("/", "'s ", 1)), m) for m in chosen]


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    rows = {name: row for name, row in record.items() if isinstance(row, dict)}
    return {name: {k: float(v) for k, v in row.items() if isinstance(v, (int, float))}
            for name, row in rows.items()}  # fmt: skip


def _clips(folder: Path, models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Videos of the report, and sample videos of stages, by what they show and by model."""
    found: dict[str, dict[str, Path]] = {}
    compared = [(folder / REPORT / COMPARED / file_name(model), model) for model in models]
    for place, model in (*compared, (folder / REPORT / VIDEOS, OWN)):
        for file in sorted(place.glob("*.mp4")):
            found.setdefault(form(file.stem).replace("_", " "), {})[model] = file
    for stage in sorted(folder.iterdir()):
        for file in sorted((stage / SAMPLES).glob("*.mp4")) if not stage.is_symlink() else ():
            shown = f"{stage.name}: samples at iteration {file.stem.lstrip('0')}"
            found[shown] = {SAMPLES: file}
    return found


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a nested record by dotted names."""
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def table(found: Found) -> list[Row]:
    """Rows of scores: which of `Found.names` they belong to, their name, and each metric over seeds.

    Where runs have seeds, a row is a method's student; otherwise it is any model that a run scored.
    """
    rows: list[Row] = []
    for method in found.methods:
        runs = [run for run in found.runs if run.method == method]
        seeded = bool(runs[0].seed)
        for model in [STUDENT] if seeded else runs[0].scores:
            scored = [run.scores[model] for run in runs if model in run.scores]
            metrics = list(dict.fromkeys(metric for row in scored for metric in row))
            values = {m: Estimate.of([row[m] for row in scored if m in row]) for m in metrics}
            if found.alone:
                rows.append((model, model, values))
            else:
                rows.append((method, method if seeded else f"{method}: {model}", values))
    return [row for row in rows if row[2]]


def tiles(found: Found, run: Run, prompt: str) -> dict[str, Path]:
    """What of a run is shown for a prompt, by name: all models of a single run, otherwise its own videos."""
    clips = run.clips.get(prompt, {})
    if found.alone:
        return {run.own if model == OWN else model: file for model, file in clips.items()}
    own = clips.get(OWN, clips.get(SAMPLES))
    return {run.method: own} if own else {}


def shown(value: Any) -> str:
    """A field of a config as text."""
    return value if isinstance(value, str) and value else json.dumps(value)
