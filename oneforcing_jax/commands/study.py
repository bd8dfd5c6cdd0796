"""Compares the methods of the paper over seeds, from the same teacher and initialisations.

    oneforcing evaluate study --out=runs/study
    oneforcing evaluate study --out=runs/study --seeds=2 --rows "DMD alone" One-Forcing

The shared stages are run once; each method and seed then has a work directory in which they are links. The
same command continues; a run that fails is named in the table and does not stop the others. Writes the page
OUT/study.md after every run, with the losses over iterations, pictures, and the curvature of the teacher.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation import study
from oneforcing_jax.evaluation.curves import GAP, LOSSES, plot
from oneforcing_jax.evaluation.figures import strips
from oneforcing_jax.evaluation.study import (
    BASES,
    COMMON,
    LOW_RANK,
    METHODS,
    OWN,
    ROWS,
    SCORES,
    SHARED,
    Row,
)
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.config import PREFIX
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system.command import Help, any_path, count, ending
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.training import lineage

CURVATURE = "curvature.json"
# Runs that end with this process; they save what they have.
RUNNING: set[subprocess.Popen[bytes]] = set()


class Study(NamedTuple):
    """Where a study lies, its config, and fields of it that all runs have."""

    out: Path
    config: Path
    fields: tuple[str, ...]

    def base(self, name: str) -> Path:
        """Work directory of shared stages."""
        return self.out / "shared" / name

    def folder(self, row: Row, seed: int) -> Path:
        """Work directory of a run."""
        return self.out / "rows" / row.folder / str(seed)

    def finished(self, row: Row, seed: int) -> bool:
        """Whether a run has its scores."""
        return (self.folder(row, seed) / OWN[1] / SCORES).exists()


def run(
    study: Study,
    folder: Path,
    fields: Mapping[str, Any],
    stages: Sequence[str],
    cpus: Set[int] = frozenset(),
) -> str:
    """Runs stages in a work directory, or what is missing of them; "" or the line with which they failed."""
    main = ["-m", "oneforcing_jax.main", f"--config={study.config}", f"--workdir={folder}"]
    return call(study, folder, [*main, *overrides(study, fields, stages)], cpus)


def overrides(study: Study, fields: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """Options of a command that runs some stages with some fields."""
    given = [f"{PREFIX}{k}={v}" for k, v in {**fields, "run": ",".join(stages)}.items()]
    return [*given, *study.fields]


def call(study: Study, folder: Path, command: Sequence[str], cpus: Set[int] = frozenset()) -> str:
    """Runs Python with a command line, on some CPUs or on all, and logs what it says; "" or the line with
    which it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    # Rows differ in few programs, so what is compiled for one serves others.
    kept = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(study.out / "compiled")}
    with (
        (folder / "log.txt").open("a") as log,
        subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=kept
        ) as process,
    ):
        RUNNING.add(process)
        if cpus:
            os.sched_setaffinity(process.pid, cpus)  # before it makes its threads
        try:
            ended = process.wait()
        finally:
            process.terminate()  # where this one was asked to end
            RUNNING.discard(process)
    if not ended:
        return ""
    said = (folder / "log.txt").read_text().replace("\r", "\n").strip().splitlines()[-1]
    return said[max(0, said.rfind("error: ")) :]  # a progress bar may stand before it


def link(folder: Path, shared: Path, stages: Sequence[str]) -> None:
    """Makes stages of another work directory those of this one too."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if not (folder / stage).exists():
            (folder / stage).symlink_to(shared / stage)


def prepare(study: Study, names: Sequence[str]) -> None:
    """Runs the shared stages of some bases.

    Raises:
      InputError: one that failed; nothing can be compared without them.
    """
    for name in tqdm(["framewise", *(n for n in names if n != "framewise")], desc="shared stages"):
        folder, stages = study.base(name), list(SHARED)
        if name != "framewise":
            link(folder, study.base("framewise"), COMMON)
            stages = [stage for stage in SHARED if stage not in COMMON]
        if failed := run(study, folder, BASES[name], stages):
            raise InputError(f"{folder}: {failed.removeprefix('error: ')}")
    report, first = study.out / CURVATURE, study.base("framewise")
    if not report.exists():
        command = ["-m", "oneforcing_jax.cli", "evaluate", "curvature", f"--checkpoint={first / 'teacher'}",
                   f"--store={first / 'world' / 'store'}", "--clips=32", "--batch=8", "--guidance=1",
                   f"--out={report}"]  # fmt: skip
        if failed := call(study, study.out, command):
            raise InputError(f"{report}: {failed.removeprefix('error: ')}")


def shares(jobs: int) -> Queue[Set[int]]:
    """CPUs for each of some runs at once: small programs gain little from a second CPU, and lose much where
    two of them quarrel over all."""
    free: Queue[Set[int]] = Queue()
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for i in range(jobs):
        free.put(frozenset(known[i::jobs]) if jobs > 1 else frozenset())
    return free


def one(study: Study, row: Row, seed: int, free: Queue[Set[int]]) -> str:
    """Runs a method with a seed on CPUs that are free; "" or the line with which it failed."""
    folder = study.folder(row, seed)
    link(folder, study.base(row.base), SHARED)
    cpus = free.get()
    try:
        return run(study, folder, fields_of(row, seed), row.stages, cpus)
    finally:
        free.put(cpus)


def fields_of(row: Row, seed: int) -> dict[str, Any]:
    """What a run's config has beside what all have."""
    students = f"(('student', '{row.student}'),)"
    return {**row.fields, "stages.report.students": students, "seed": seed}


def stale(study: Study, row: Row, seed: int) -> str:
    """Why the scores of a run are not those of what is asked for now; "": they are."""
    given = overrides(study, fields_of(row, seed), row.stages)
    asked = Run.of(configs.load(study.config, given))
    folder = study.folder(row, seed)
    found = lineage.look(asked, stages.prepare(asked), folder).stale
    why = "; ".join(f"{stage}: {reason}" for stage, reason in found.items())
    return why and f"{why}; remove {folder}, or set it back"


def compare(study_: Study, rows: Sequence[Row], seeds: int | None, jobs: int) -> None:
    """Runs everything that is missing, and writes the page and the figure."""
    prepare(study_, sorted({row.base for row in rows}))
    # All methods with one seed before any with the next, so that an unfinished study says something of all.
    runs = [(row, seed) for row in rows for seed in range(seeds or row.seeds)]
    runs.sort(key=lambda run: run[1])
    todo = [(row, seed) for row, seed in runs if not study_.finished(row, seed)]
    failed: dict[str, str] = {}
    for row, seed in tqdm([run for run in runs if run not in todo], desc="finished", unit="run"):
        if why := stale(study_, row, seed):
            failed[row.name] = f"seed {seed}: {why}"
            runs.remove((row, seed))
    free = shares(jobs)
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(one, study_, row, seed, free): (row, seed) for row, seed in todo}
        bar = tqdm(total=len(runs), initial=len(runs) - len(todo), desc="rows", unit="run")
        try:
            for future in as_completed(started):
                row, seed = started[future]
                if line := future.result():
                    failed[row.name] = f"seed {seed}: {line}"
                publish(study_, rows, runs, failed)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                process.terminate()
            raise
        finally:
            bar.close()
    if not todo:
        publish(study_, rows, runs, failed)
    print((study_.out / "study.md").read_text())


def publish(
    study_: Study, rows: Sequence[Row], runs: Sequence[tuple[Row, int]], failed: Mapping[str, str]
) -> None:
    """Writes the page and the figures from the runs that are finished."""
    results: dict[str, dict[int, dict[str, float]]] = {}
    for row, seed in runs:
        if study_.finished(row, seed):
            results.setdefault(row.name, {})[seed] = study.read(study_.folder(row, seed))
    made = [row for row in rows if row.name in results and row in METHODS]
    trained = {
        row.name: [study_.folder(row, seed) / OWN[0] for seed in results[row.name]]
        for row in made
        if row.stages == OWN
    }
    if trained:
        plot(study_.out / "curves.png", trained, LOSSES | GAP)
    if made:
        strips(study_.out / "pictures.png", {
            row.name: study_.folder(row, min(results[row.name])) / OWN[1] / "videos" for row in made
        })  # fmt: skip
    teacher = read_record(study_.base("framewise") / "exam" / SCORES)
    curvature = read_record(study_.out / CURVATURE)
    name = Path(sys.argv[0]).name  # where the package is installed, a path of no interest
    words = [name] if name == "oneforcing" else ["python", sys.argv[0]]
    said = shlex.join([*words, *sys.argv[1:]])
    page = study.page(results, failed, curvature, teacher, said)
    write_whole(study_.out / "study.md", page.encode())


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing evaluate study") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("--out", required=True, type=any_path, help="folder of all runs")
    parser.add_argument("--config", type=any_path, default=Path("study"), help="default: ours")
    known = {row.name: row for row in (*ROWS, *LOW_RANK)}
    usual, others = ([row.name for row in rows] for rows in (ROWS, LOW_RANK))
    parser.add_argument(
        "--rows", nargs="+", default=usual, metavar="NAME",
        help=f"some of (default all): {', '.join(map(repr, usual))}; or {', '.join(map(repr, others))}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, help="of each row; default: its own number")
    parser.add_argument("--jobs", type=count, default=1, help="runs at once")
    given, fields = parser.parse_known_args(arguments)
    with ending("the same command continues after the finished runs"):
        if unknown := [name for name in given.rows if name not in known]:
            raise InputError(f"--rows: expected names among {list(known)}, found {unknown[0]!r}")
        made = Study(given.out.absolute(), given.config, tuple(fields))
        compare(made, [known[name] for name in given.rows], given.seeds, given.jobs)
