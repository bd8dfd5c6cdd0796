"""The original's LMDB of latents and prompts to a store.

A database holds `latents_shape` (text, "rows frames channels y x", or with the steps of a trajectory
after the rows), `latents_{i}_data` (float16, raw) and `prompts_{i}_data` (UTF-8). The last entry of a
trajectory is the real clip.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.encode import embed_padded, leave_out
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import Encoders
from oneforcing_jax.system import textfiles

FILE = "data.mdb"


class _Database(NamedTuple):
    path: Path
    rows: Any
    shape: tuple[int, ...]


def import_lmdb(
    source: str | Path,
    folder: str | Path,
    encoders: Encoders,
    store_path: str | Path,
    shard: tuple[int, int] = (0, 1),
) -> Store:
    """Copies latents and embeds prompts; to continue after an error or a kill, call it again.

    Args:
      source: folder of one LMDB (data.mdb in it), or of folders of them, which are taken in order.
      folder: where `encoders` were loaded from; the store remembers it.
      encoders: their text encoder embeds the prompts.
      store_path: folder of the store.
      shard: (i, n): do every n-th row from the i-th on; other processes do the others.

    Returns:
      The store: `latents` float16 [f, c, y, x], `text` [length, dim], and where the rows are
      trajectories, `trajectory` float16 [steps - 1, f, c, y, x]. Rows that are missing or damaged
      are left out.

    Raises:
      InputError: no database, or a damaged one; a store that was begun otherwise.
    """
    databases = _open(Path(source))
    shape, text = databases[0].shape[1:], encoders.text
    fields: dict[str, tuple[Sequence[int], str]] = {
        "latents": (shape[-4:], "float16"),
        "text": ((text.length, text.dim), text.dtype),
    }
    if len(shape) == 5:
        fields["trajectory"] = ((shape[0] - 1, *shape[1:]), "float16")
    if shape[-3] != encoders.codec.channels:
        raise InputError(
            f"{source}: expected latents of {encoders.codec.channels} channels, as the codec of {folder} "
            f"makes, found {shape[-3]}; name the encoders that these latents are of"
        )
    names = [database.path.name for database in databases]
    count = sum(database.shape[0] for database in databases)
    store = Store.create(store_path, count, fields, {"lmdb": names, "text": text.digest()})
    encoding.record(store.path, folder)
    store.write_shared(NEGATIVE_TEXT, embed_padded(text, encoders.negative).astype(np.float32))

    done, places = store.done(), [(d, row) for d in databases for row in range(d.shape[0])]
    mine = range(shard[0], count, shard[1])
    for index in tqdm(
        [i for i in mine if not done[i]],
        total=len(mine),
        initial=int(done[shard[0] :: shard[1]].sum()),
        desc=f"import {source}",
        unit="row",
        mininterval=1.0,
    ):
        database, row = places[index]
        try:
            sample = _row(database, row, encoders)
        except ValueError as error:
            leave_out(store, index, f"{database.path} row {row}", str(error))
        else:
            store.write(index, sample)
    return store


def _row(database: _Database, row: int, encoders: Encoders) -> dict[str, np.ndarray]:
    prompt = textfiles.decoded(_value(database, f"prompts_{row}_data"), "its prompt")
    content, shape = _value(database, f"latents_{row}_data"), database.shape[1:]
    if len(content) != 2 * math.prod(shape):
        raise InputError(
            f"expected {2 * math.prod(shape)} bytes of float16 {list(shape)}, found {len(content)}"
        )
    latents = np.frombuffer(content, np.float16).reshape(shape)
    if not np.isfinite(latents).all():
        raise InputError("expected finite latents, found values that are not")
    sample = {"text": embed_padded(encoders.text, prompt)}
    if len(shape) == 4:
        return sample | {"latents": latents}
    return sample | {"latents": latents[-1], "trajectory": latents[:-1]}


def _value(database: _Database, key: str) -> bytes:
    with database.rows.begin() as transaction:
        value = transaction.get(key.encode())
    if value is None:
        raise InputError(f"expected the key {key}, found none")
    return value


def _open(source: Path) -> list[_Database]:
    folders = [file.parent for file in sorted(source.glob(f"**/{FILE}"))]
    if not folders:
        raise InputError(f"{source}: expected a folder with {FILE}, found none; check the path")
    databases = list(_databases(folders))
    shapes = {database.shape[1:] for database in databases}
    if len(shapes) > 1:
        raise InputError(f"{source}: expected rows of one shape, found {sorted(shapes)}")
    return databases


def _databases(folders: Sequence[Path]) -> Iterator[_Database]:
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError as error:
        raise MissingPackage(
            'reading an LMDB needs the package lmdb: pip install "oneforcing_jax[lmdb]"'
        ) from error
    for folder in folders:
        try:
            rows = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise InputError(
                f"{folder}: expected an LMDB, found: {error}; copy it again"
            ) from error
        _check_whole(folder / FILE, rows)
        try:
            found = _value(_Database(folder, rows, ()), "latents_shape").decode()
            shape = tuple(int(size) for size in found.split())
        except (lmdb.Error, ValueError) as error:
            raise InputError(
                f"{folder}: expected an LMDB of latents and prompts, found: {error}; copy it again"
            ) from error
        if len(shape) not in (5, 6) or min(shape) < 1:
            raise InputError(
                f"{folder}: expected latents_shape of 5 or 6 sizes, rows first, found {found!r}"
            )
        size = (folder / FILE).stat().st_size
        if 2 * math.prod(shape) > size:
            raise InputError(
                f"{folder}: expected {2 * math.prod(shape)} bytes or more for the {list(shape)} of its "
                f"latents_shape, found a file of {size}; copy it again"
            )
        yield _Database(folder, rows, shape)


def _check_whole(file: Path, rows: Any) -> None:
    """Raises InputError where a file ends before its last page, which to read would end the process."""
    needed = (rows.info()["last_pgno"] + 1) * rows.stat()["psize"]
    if needed > (found := file.stat().st_size):
        raise InputError(
            f"{file}: expected {needed} bytes, found {found}; it was cut, copy it again"
        )
