"""Checkpoints: Orbax, one item a network, so that a later stage reads just the network that it needs.

A checkpoint is written under another name and renamed when it is whole; before it is removed, it is
renamed into `TRASH`. So a process killed at any time leaves only whole checkpoints under their numbers.
Buckets cannot rename. There a checkpoint counts once the object `COMMIT` is in it, which is written last, or
its checksums.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import integrity, places, saved
from oneforcing_jax.system.bases import BASES, Base
from oneforcing_jax.system.files import (
    FORM,
    VERSION,
    read_record,
    read_versioned,
    record,
    write_whole,
)

# A stage has its checkpoints in the first of these, and a work directory the run's config in the second.
FOLDER, CONFIG = "checkpoints", "config.json"
TRASH = "trash"
# What `RUN_FILE` notes where a stage has its config beside its checkpoints; runs of version 0.1 had none.
SETTINGS = "settings"
CLEAR_TRIES, CLEAR_PAUSE = 50, 0.2  # seconds
MODES = ("min", "max")


@contextlib.contextmanager
def manager(
    folder: str | Path, keep: int = 2, metric: str = "", mode: str = "min"
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, of which the last `keep` stay; saving is asynchronous.

    Args:
      folder: made if need be; what an interrupted save left in it is removed.
      keep: the newest checkpoints, which are kept.
      metric, mode: also the one whose metric is least ("min") or greatest ("max") is kept; "": none.

    Raises:
      InputError: a bad argument.
      OSError: a checkpoint could not be written.
    """
    if keep < 1 or mode not in MODES:
        raise InputError(
            f"checkpoints: expected keep >= 1 and a mode among {MODES}, found {keep} and {mode!r}"
        )
    policies: list[Any] = [LatestN(n=keep)]
    if metric:
        # A checkpoint from before the first samples lacks their metrics, and counts as the worst.
        worst = math.inf if mode == "min" else -math.inf
        value = lambda metrics: metrics.get(metric, worst)  # noqa: E731
        policies.append(BestN(get_metric_fn=value, reverse=mode == "min", n=1))
    options = ocp.CheckpointManagerOptions(
        create=True,
        preservation_policy=AnyPreservationPolicy(policies),
        # Orbax keeps metrics beside a checkpoint only where it could rank by them.
        best_fn=lambda metrics: 0.0,
        todelete_subdir=TRASH,
    )
    made = ocp.CheckpointManager(places.absolute(folder), options=options)
    _clear(made)
    try:
        yield made
    finally:
        with _written(made):
            try:
                made.close()
                _seal(made)
            finally:
                _clear(made)


@contextlib.contextmanager
def _written(to: ocp.CheckpointManager) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise, while they write, into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0].split(" [")[0] if str(error) else type(error).__name__
        raise OSError(
            f"checkpoint: could not be written to {to.directory}: {reason}; those before it are whole: "
            "make room there, and the same command continues from the last"
        ) from error


def _clear(of: ocp.CheckpointManager) -> None:
    """Removes the trash and what no save will finish. It is called while no save runs.

    After a save has failed, some of its writers go on for a moment and make their folders anew.
    """
    if jax.process_index() != 0:
        return
    folder = places.path(of.directory)
    if places.is_url(folder):
        for path in _unfinished(folder):
            places.remove(path)
        return
    shutil.rmtree(folder / TRASH, ignore_errors=True)
    if (folder / TRASH).is_file():
        raise InputError(
            f"{folder / TRASH}: expected nothing, or a folder of checkpoints that are being removed, found a "
            "file; rename it"
        )
    for path in folder.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty folder would stand in the way of the checkpoint of that number
    for _ in range(CLEAR_TRIES):
        unfinished = list(folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
        if not unfinished:
            return
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(CLEAR_PAUSE)


def _unfinished(bucket: Path) -> list[Path]:
    """What a save or a removal has left that was cut short in a bucket."""
    contents = dict[str, set[str]]()
    for name in places.sizes(bucket):
        number, _, rest = name.partition("/")
        if number.isdigit() and rest:
            contents.setdefault(number, set()).add(rest)
    whole = {path.name for path in saved.numbered(bucket)}
    # All but the newest have checksums, unless they are being removed.
    for number in whole - {max(whole, key=int, default="")}:
        names, sums = contents[number], bucket / number / integrity.SUMS
        if integrity.SUMS not in names or read_record(sums).keys() - names:
            whole.remove(number)
    return [bucket / number for number in contents.keys() - whole]


def _seal(of: ocp.CheckpointManager) -> None:
    """Writes checksums into checkpoints that have none yet, while no save runs. One before another that has
    some had them, too, and nobody knows what has become of it."""
    if jax.process_index() == 0:
        for path in reversed(saved.numbered(places.path(of.directory))):
            if integrity.is_sealed(path):
                break
            integrity.seal(path)


def check_claim(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether a folder has checkpoints, all of them this run's; changes nothing.

    Args:
      folder: of checkpoints.
      run: what must not change when a run is continued, or a part of it, as JSON gives it back.

    Raises:
      InputError: there are checkpoints of another run; names the field.
    """
    file = folder / saved.RUN_FILE
    if not file.is_file() or not saved.numbered(folder):
        return False
    found = read_versioned(file)
    for name, value in run.items():
        if found.get(name) != value:
            raise InputError(
                f"checkpoints in {folder} are of a run with {name} {found.get(name)!r}, found "
                f"{value!r}: set it back, or use another work directory"
            )
    return True


def claim(
    of: ocp.CheckpointManager, run: Mapping[str, Any], stands_on: Mapping[str, Base] | None = None
) -> None:
    """Records which run the checkpoints belong to, as `check_claim` checks it.

    Args:
      of: the checkpoints.
      run: see `check_claim`.
      stands_on: what holds the rest of each network of which they hold a part, by its name.

    Raises:
      InputError: there are checkpoints of another run; names the field.
    """
    folder = places.path(of.directory)
    if not check_claim(folder, run) and jax.process_index() == 0:
        rest = {net: base._asdict() for net, base in (stands_on or {}).items()}
        said = {VERSION: FORM, SETTINGS: CONFIG, **run} | ({BASES: rest} if rest else {})
        write_whole(folder / saved.RUN_FILE, record(said))


def latest(of: ocp.CheckpointManager) -> int | None:
    """The iteration of the newest checkpoint; None if there is none."""
    return saved.newest(places.path(of.directory))


def last(of: ocp.CheckpointManager) -> str:
    """The last whole checkpoint, in words."""
    of.wait_until_finished()
    step = latest(of)
    return (
        "there is no checkpoint yet" if step is None else f"the last is {of.directory / str(step)}"
    )


def _items(state: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}_{net}": tree for part, nets in state.items() for net, tree in nets.items()}


def save(
    to: ocp.CheckpointManager,
    iteration: int,
    state: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Begins to save {"params": {net: tree}, "opt": ..., "ema": ...} after `iteration` iterations.

    Raises:
      OSError: this checkpoint, or the one before it, could not be written.
    """
    args = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    with _written(to):
        to.wait_until_finished()
        _seal(to)
        _clear(to)
        to.save(iteration, args=ocp.args.Composite(**args), metrics=dict(metrics or {}))


def restore(
    source: ocp.CheckpointManager, abstract: Mapping[str, Any]
) -> tuple[int, Any, dict[str, float]] | None:
    """The last iteration, its state, placed by the shardings of `abstract`, and its metrics.

    Returns:
      None if there is no checkpoint.

    Raises:
      InputError: the checkpoint is of another model.
    """
    iteration = latest(source)
    if iteration is None:
        return None
    folder = places.path(source.directory) / str(iteration)
    _check_whole(folder)
    saved.check_known(folder)
    state = {
        part: {net: saved.read(folder / f"{part}_{net}", tree) for net, tree in nets.items()}
        for part, nets in abstract.items()
    }
    return iteration, state, dict(source.metrics(iteration) or {})


def _check_whole(newest: Path) -> None:
    """Refuses a damaged checkpoint, and names the newest whole one.

    Raises:
      InputError: says what is damaged and how to go on.
    """
    wrong = integrity.problems(newest)
    if not wrong:
        return
    others = (p for p in reversed(saved.numbered(newest.parent)) if p != newest)
    whole = next((p for p in others if not (integrity.unknown(p) or integrity.problems(p))), None)
    go_on = (
        f"remove it, and the same command continues from {whole}, which is whole"
        if whole
        else "no other is whole; restore it from a copy, or begin in another work directory"
    )
    raise InputError(
        f"checkpoint {newest}: expected the files that were written, found that {wrong[0]}; {go_on}"
    )
