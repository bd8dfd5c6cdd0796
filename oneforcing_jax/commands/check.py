"""Says what of a folder is whole and what is damaged: checkpoints, converted weights, stores, or a whole run.

    oneforcing check runs/framewise            # all checkpoints and stores below it
    oneforcing check weights/wan_1.3b store

Checkpoints, weights and what runs say of themselves are compared with the checksums that were written with
them; what has none, and should or might have had some, is unknown. Every sample of a store is read, which
compares its bytes with theirs, and must be finite; the line says how many are written, for a store does not
know that a lost file was there. The exit code is 1 if anything is damaged or unknown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from oneforcing_jax.data.pipeline import check_finite
from oneforcing_jax.data.store import META, Store
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families.records import MODEL, STEP
from oneforcing_jax.system import checkpoint, integrity, places, saved
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import has_checksum, read_record
from oneforcing_jax.training import lineage


class Found(NamedTuple):
    """What was looked at, what is wrong with it, how much of it is there, and why nobody knows, in words."""

    folder: Path
    kind: str
    wrong: list[str]
    there: str = ""
    unknown: str = ""

    @property
    def verdict(self) -> str:
        """In one word."""
        return "damaged" if self.wrong else "unknown" if self.unknown else "whole"


def look(folder: Path) -> Iterator[Found]:
    """Looks at everything below a folder that has checksums, or should have, or is a store.

    Raises:
      MissingInput: there is nothing of the kind.
    """
    if not folder.is_dir():
        raise MissingInput(
            f"expected a folder of a run, a store or weights, found nothing at {folder}"
        )
    files = [folder / name for name in places.sizes(folder)]
    stores = sorted(f.parent for f in files if f.name == META and (f.parent / "arrays").is_dir())
    strange, steps = _checkpoints(folder, files)
    sealed = {f.parent for f in files if f.name == integrity.SUMS}
    weights = {f.parent for f in files if f.name == MODEL}
    # One of the two has the checksums of weights: the folder, or the checkpoint in it.
    weights = {path for path in weights if not integrity.is_sealed(path / STEP)}
    inner = {path / STEP for path in weights}
    for path in sorted((sealed | steps | weights) - (inner - sealed)):
        kind = "weights" if _is_converted(path) else "checkpoint"
        yield Found(path, kind, integrity.problems(path), unknown=integrity.unknown(path))
    yield from strange
    for path in sorted(f for f in files if _is_record(f)):
        yield _of_record(path)
    for path in stores:
        yield _of_store(path)
    if not (stores or sealed or steps or weights or strange):
        raise MissingInput(
            f"{folder}: expected checkpoints or weights with a {integrity.SUMS}, or stores, found none; "
            "those of version 0.1 have no checksums"
        )


def _checkpoints(folder: Path, files: list[Path]) -> tuple[list[Found], set[Path]]:
    """What lies among checkpoints and is none, and the checkpoints."""
    strange, steps = list[Found](), set[Path]()
    around = {path for f in files for path in f.parents if path.name == checkpoint.FOLDER}
    around |= {f.parent for f in files if f.name == MODEL and (f.parent / STEP).is_dir()}
    for path in sorted(path for path in around if path == folder or folder in path.parents):
        try:
            steps |= set(saved.numbered(path))
        except InputError as error:
            strange.append(Found(path, "checkpoint", [str(error)]))
    return strange, steps


def _is_record(file: Path) -> bool:
    """Whether a file is a record of a stage or of weights that no checksums of a folder cover."""
    of_run = file.parent.name == checkpoint.FOLDER and file.name == saved.RUN_FILE
    of_stage = file.name in (checkpoint.CONFIG, lineage.RECORD)
    of_weights = file.name == MODEL and not integrity.is_sealed(file.parent)
    return of_run or of_weights or of_stage and (file.parent / checkpoint.FOLDER).is_dir()


def _of_record(file: Path) -> Found:
    try:
        read_record(file)
    except InputError as error:
        return Found(file, "record", [str(error)])
    return Found(file, "record", [], unknown="" if has_checksum(file) else "has no checksum")


def _is_converted(folder: Path) -> bool:
    return (folder / MODEL).is_file() or (folder.parent / MODEL).is_file()


def _of_store(path: Path) -> Found:
    try:
        store = Store.open(path)
        done = store.done().nonzero()[0]
    except InputError as error:
        return Found(path, "store", [str(error)])
    wrong = []
    for index in tqdm(done, desc=str(path), unit="sample", leave=False):
        try:
            check_finite(store, int(index), store.read(int(index)))
        except InputError as error:
            wrong.append(str(error))
    left_out = f", {n} left out" if (n := len(store.left_out())) else ""
    there = f": {len(done)} of {len(store)} samples written{left_out}"
    return Found(path, "store", wrong, there)


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing check") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("folders", nargs="+", type=any_path, help="of runs, stores or weights")
    given = parser.parse_args(arguments)
    damaged = 0
    with ending("nothing was changed"):
        for folder in given.folders:
            for found in look(folder):
                damaged += found.verdict != "whole"
                there = f": {found.unknown}" if found.verdict == "unknown" else found.there
                print(f"{found.verdict:<8}{found.kind:<11}{found.folder}{there}")
                for line in found.wrong:
                    print(f"        {line}")
    if damaged:
        sys.exit(1)
