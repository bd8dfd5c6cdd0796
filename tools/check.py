"""Says what of a folder is whole and what is damaged: checkpoints, converted weights, stores, or a whole run.

    python tools/check.py runs/framewise            # all checkpoints and stores below it
    python tools/check.py weights/wan_1.3b store

Checkpoints and weights are compared with the checksums that were written with them. Every sample of a store
is read, which compares its bytes with theirs, and must be finite; the line says how many are written, for a
store does not know that a lost file was there. The exit code is 1 if anything is damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from oneforcing_jax import integrity, places
from oneforcing_jax.command import Help, any_path, ending
from oneforcing_jax.convert.sizes import MODEL
from oneforcing_jax.data.pipeline import check_finite
from oneforcing_jax.data.store import META, Store
from oneforcing_jax.errors import InputError, MissingInput


class Found(NamedTuple):
    """A folder that was looked at, what is wrong with it, and how much of it is there, in words."""

    folder: Path
    kind: str
    wrong: list[str]
    there: str = ""


def look(folder: Path) -> Iterator[Found]:
    """Looks at everything below a folder that has checksums or is a store.

    Raises:
      MissingInput: there is nothing of the kind.
    """
    if not folder.is_dir():
        raise MissingInput(
            f"expected a folder of a run, a store or weights, found nothing at {folder}"
        )
    files = [folder / name for name in places.sizes(folder)]
    stores = sorted(f.parent for f in files if f.name == META and (f.parent / "arrays").is_dir())
    sealed = sorted(f.parent for f in files if f.name == integrity.SUMS)
    for path in sealed:
        yield Found(
            path, "weights" if _is_converted(path) else "checkpoint", integrity.problems(path)
        )
    for path in stores:
        yield _of_store(path)
    if not stores and not sealed:
        raise MissingInput(
            f"{folder}: expected checkpoints or weights with a {integrity.SUMS}, or stores, found none; "
            "those of version 0.1 have no checksums"
        )


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="check", description=__doc__, formatter_class=Help)
    parser.add_argument("folders", nargs="+", type=any_path, help="of runs, stores or weights")
    given = parser.parse_args(arguments)
    damaged = 0
    with ending("nothing was changed"):
        for folder in given.folders:
            for found in look(folder):
                damaged += bool(found.wrong)
                verdict = "damaged" if found.wrong else "whole"
                print(f"{verdict:<8}{found.kind:<11}{found.folder}{found.there}")
                for line in found.wrong:
                    print(f"        {line}")
    if damaged:
        sys.exit(1)


if __name__ == "__main__":
    main()
