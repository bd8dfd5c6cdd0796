"""What the stages of a run were made from, and which are stale: made from something else than is asked for.

A stage's folder holds a record from before its first work on: the fields that its results follow from, and
the checksums of what it read. Folders without one are of a version that wrote none, and are not judged. A
stage is also stale where something that it reads will be another when its turn comes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from oneforcing_jax.data.store import META
from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import MadeFrom, Stage
from oneforcing_jax.system import checkpoint, files, places, processes, saved
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.training import sources

# In a stage's folder; and in a work directory, what an unfinished command has begun to make anew.
RECORD, ANEW = "made_from.json", "anew.json"
VERSION = 1
AVERAGE, UNTRAINED = "ema ", "random "


class Record(NamedTuple):
    """What a stage was made from.

    Attributes:
      fields: values by their names in the config.
      inputs: what was read by the field that names it: its name, and its checksum, "" where it has none.
      course: (iteration, fields): those that hold from there on, the first of them from 0.
    """

    fields: dict[str, Any]
    inputs: dict[str, tuple[str, str]]
    course: list[tuple[int, dict[str, Any]]]

    def during(self, iteration: int) -> dict[str, Any]:
        """The course in which an iteration, from 1, is trained."""
        return [fields for since, fields in self.course if since < iteration][-1]


class Found(NamedTuple):
    """What a look at a work directory came to.

    Attributes:
      stale: stages by name, and why.
      anew: those of them and of others that are to be made anew, in order.
      unknown: those that say nothing.
    """

    stale: dict[str, str]
    anew: list[str]
    unknown: list[str]


def look(run: Run, prepared: Sequence[Stage], workdir: Path, redo: Sequence[str] = ()) -> Found:
    """Compares the stages of a command, in order, with what it asks for; changes nothing.

    Args:
      run, prepared: the run, and its stages that the command is to do.
      workdir: where they lie.
      redo: stages to make anew; one that an unfinished command has begun anew is not begun again.
    """
    found, begun_anew = Found({}, [], []), _begun_anew(workdir)
    # Stages whose results will be others, and how so.
    changed: dict[str, str] = {}
    for stage in prepared:
        name, folder = stage.name, workdir / stage.name
        if not _begun(stage, folder):
            changed[name] = "is to be made"
            continue
        record, again = folder / RECORD, name in redo and name not in begun_anew
        if not record.is_file():
            reason = ""
            if not again:
                found.unknown.append(name)
        else:
            reason = _reason(run, stage, workdir, _read(record), changed)
        if again or reason and name in redo:
            found.anew.append(name)
            changed[name] = "is to be made anew"
        elif reason:
            found.stale[name] = reason
            changed[name] = "is stale"
        elif (more := _made_from(stage).iterations) > (done := _done(folder)):
            changed[name] = f"trains on from iteration {done} to {more}"
    return found


def refuse(
    run: Run, prepared: Sequence[Stage], workdir: Path, redo: Sequence[str] = ()
) -> list[str]:
    """The stages that are to be made anew; see `look`.

    Raises:
      InputError: names all stages that are stale and may not be made anew, and what to do; or a stage
        that cannot be made anew.
    """
    shares = {stage.name: stage.share[1] for stage in prepared}
    for name in redo:
        if name not in shares:
            raise InputError(f"--redo: expected stages among {list(shares)}, found {name!r}")
        if shares[name] > 1:
            raise InputError(
                f"--redo: expected a stage that one command does, found a share of {name!r}; rename "
                f"{workdir / name}, and start the commands again"
            )
    found = look(run, prepared, workdir, redo)
    if found.anew and places.is_url(workdir):
        raise InputError(
            f"--redo: expected a work directory on a disk, found {workdir}, where nothing can be renamed; "
            f"copy {workdir / found.anew[0]} elsewhere and remove it, or use another work directory"
        )
    if found.stale:
        named = "; ".join(f"{name} ({reason})" for name, reason in found.stale.items())
        listed = ",".join(name for name in shares if name in {*redo, *found.stale})
        raise InputError(
            f"work directory {workdir}: expected stages made from what the config says now, found stale "
            f"ones: {named}. Set it back, use another work directory, or give --redo={listed}, which makes "
            "them anew and keeps the old folders beside the new ones"
        )
    if found.unknown and processes.is_first():
        tqdm.write(
            f"{workdir}: taken as they are, for an older version has not recorded what they were made from: "
            + ", ".join(found.unknown)
        )
    return found.anew


def put_aside(workdir: Path, names: Sequence[str]) -> None:
    """Renames the folders of stages that are to be made anew, on a disk; nothing in them is lost."""
    for name in names:
        folders = (workdir / f"{name}.old-{number}" for number in itertools.count(1))
        old = next(folder for folder in folders if not os.path.lexists(folder))
        (workdir / name).rename(old)
        tqdm.write(f"{name} is made anew; what was there is in {old}")
        begun = json.dumps({"stages": [*_begun_anew(workdir), name]})
        write_whole(workdir / ANEW, begun.encode())


def finish(workdir: Path) -> None:
    """Ends a command: what it made anew may be made anew again."""
    places.remove(workdir / ANEW)


def begin(run: Run, stage: Stage, workdir: Path) -> None:
    """Records what a stage is made from, before its first work, and the course of one that trains on."""
    folder, made = workdir / stage.name, _made_from(stage)
    file, done = folder / RECORD, _done(folder)
    if not _begun(stage, folder):
        inputs = {field: found for field, *found in _inputs(run, made, workdir)}
        _write(file, made.fields, inputs, [(0, made.course)])
    elif file.is_file() and done < made.iterations:
        record = _read(file)
        if record.during(done + 1) != made.course:
            kept = [entry for entry in record.course if entry[0] < done]
            _write(file, record.fields, record.inputs, [*kept, (done, made.course)])


def _write(file: Path, fields: Any, inputs: Any, course: Any) -> None:
    content = {"version": VERSION, "fields": fields, "inputs": inputs, "course": course}
    write_whole(file, files.record(content))


def _read(file: Path) -> Record:
    """A record that was written.

    Raises:
      InputError: it is damaged, or of a later version.
    """
    found = read_record(file)
    try:
        if found["version"] != VERSION:
            raise ValueError
        inputs = {field: (str(name), str(sum_)) for field, (name, sum_) in found["inputs"].items()}
        course = [(int(since), dict(fields)) for since, fields in found["course"]]
        return Record(dict(found["fields"]), inputs, course)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{file}: expected a record of version {VERSION}, found another or a damaged one; remove the "
            "file, and the stage is taken as it is"
        ) from None


def _made_from(stage: Stage) -> MadeFrom:
    return stage.made_from or MadeFrom({})


def _begun_anew(workdir: Path) -> list[str]:
    file = workdir / ANEW
    return list(read_record(file).get("stages", ())) if file.is_file() else []


def _done(folder: Path) -> int:
    """Iterations that a stage has trained, as far as they are saved."""
    return saved.newest(folder / checkpoint.FOLDER) or 0


def _begun(stage: Stage, folder: Path) -> bool:
    """Whether there is anything of a stage that its next start would go on from."""
    if _made_from(stage).iterations:
        return _done(folder) > 0
    entries = folder.iterdir() if folder.exists() else iter(())
    return any(entry.name != RECORD and not entry.name.startswith(".") for entry in entries)


def _reason(
    run: Run, stage: Stage, workdir: Path, record: Record, changed: Mapping[str, str]
) -> str:
    """Why a stage that has begun is stale, in words; "": it is not."""
    made, done = _made_from(stage), _done(workdir / stage.name)
    fields = list(_other_fields(record, made, done))
    words = [*fields, *_other_inputs(run, made, workdir, record, changed)]
    return f"{words[0]}, and {len(words) - 1} more" if len(words) > 1 else "".join(words)


def _other_fields(record: Record, made: MadeFrom, done: int) -> Iterator[str]:
    if made.iterations and done > made.iterations:
        yield f"it has trained {done} iterations, now {made.iterations}"
    then, now = record.fields, made.fields
    if made.iterations and done >= made.iterations:
        then, now = then | record.during(done), {**now, **made.course}
    # A field that only one of two versions has says nothing.
    for field in sorted(then.keys() & now.keys()):
        if then[field] != now[field]:
            yield f"{field} was {then[field]!r}, now {now[field]!r}"


def _other_inputs(
    run: Run, made: MadeFrom, workdir: Path, record: Record, changed: Mapping[str, str]
) -> Iterator[str]:
    for field, name, checksum in _inputs(run, made, workdir):
        maker = _maker(run, name)
        name_then, checksum_then = record.inputs.get(field, (name, checksum))
        if maker in changed:
            yield f"{maker!r}, which it reads, {changed[maker]}"
        elif checksum and checksum_then:
            if checksum != checksum_then:
                yield f"{name!r} has other checksums than when it was read"
        elif name != name_then:
            yield f"{field} was {name_then!r}, now {name!r}"


def _maker(run: Run, name: str) -> str:
    """The stage of a run that makes what is read by some name; "": none of them."""
    plain = name.removeprefix(AVERAGE)
    known = (plain.rpartition(":")[0], plain.partition("/")[0])
    return next((stage for stage in known if stage in run.stages), "")


def _inputs(run: Run, made: MadeFrom, workdir: Path) -> Iterator[tuple[str, str, str]]:
    """Each input: the field that names it, its name, and its checksum; "": it is not there, or has none."""
    for field, name in made.networks.items():
        yield field, name, _network(run, workdir, name)
    for field, name in made.stores.items():
        yield field, name, _store(places.within(workdir, name))


def _network(run: Run, workdir: Path, name: str) -> str:
    if name == sources.RANDOM or name.startswith(UNTRAINED):
        return ""
    try:
        place = sources.place(run, workdir, name.removeprefix(AVERAGE))
        return saved.identity(*place, name.startswith(AVERAGE))
    except InputError:  # whoever reads it says what is wrong
        return ""


def _store(folder: Path) -> str:
    """A digest of the description of a store, and of the record of the stage that filled it."""
    files = [file for file in (folder / META, folder.parent / RECORD) if file.is_file()]
    if not files:
        return ""
    return hashlib.sha256(b"\n".join(places.read(file) for file in files)).hexdigest()
