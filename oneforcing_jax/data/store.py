"""A store of training samples: zarr3 arrays, in one folder.

    store/
      meta.json          layout, count, fields {name: {shape, dtype}}, attributes
      arrays/, pending/  the samples, as data/shards.py lays them out
      left_out/<i>.txt   why sample i was left out
      shared/<name>.npy  arrays that belong to the whole store, such as a negative prompt

Fields of rank 2, [length, width], are texts: their padding takes no room.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.data import store_meta
from oneforcing_jax.data.shards import OUT, Shards, per_shard
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.setup.ranges import not_finite
from oneforcing_jax.system import bounded, places, room
from oneforcing_jax.system.files import write_whole

META = "meta.json"
LEFT_OUT = "left_out"

# Name of the shared array that holds the embedding of the negative prompt, [length, dim].
NEGATIVE_TEXT = "negative_text"

# How TensorStore begins to say that a server has failed.
_FAILED = ("ABORTED", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE")


class Store:
    """Samples that are written once, in any order, by any number of processes.

    Make one with `Store.create` or `Store.open`. A sample counts only when `done`, and it is
    marked done after all its fields are on disk. So a process that is killed half-way runs again
    and writes the samples that are not done.

    Attributes:
      path: the folder.
      fields: name -> (shape of one sample, dtype name).
      attributes: what `create` was given, as JSON gives it back.
    """

    def __init__(self, path: Path, meta: dict[str, Any], create: bool) -> None:
        self.path = path
        self.attributes: dict[str, Any] = meta["attributes"]
        self.fields: dict[str, tuple[tuple[int, ...], str]] = {
            name: (tuple(field["shape"]), field["dtype"]) for name, field in meta["fields"].items()
        }
        self._count: int = meta["count"]
        try:
            shard = meta["samples_per_shard"]
            self._samples = Shards(path, self._count, self.fields, shard, create)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected arrays of {self._count} samples of {sorted(self.fields)}, found: "
                f"{places.reason(error)}; run the command that fills the store again"
            ) from error

    @classmethod
    def create(
        cls,
        path: str | Path,
        count: int,
        fields: store_meta.Fields,
        attributes: Mapping[str, Any] | None = None,
    ) -> Store:
        """Makes a store, or opens the one that is there if it is described identically.

        Args:
          path: the folder; made with its parents.
          count: number of samples.
          fields: name -> (shape of one sample, dtype out of store_meta.DTYPES).
          attributes: free JSON: what the samples were made from and with.

        Raises:
          InputError: a bad description, or a store at `path` that is described otherwise; the
            message names the difference and nothing on disk is changed.
        """
        path = places.path(path)
        meta = store_meta.describe(count, fields, attributes or {})
        if not (path / META).exists():
            layout = {"version": store_meta.VERSION, "samples_per_shard": per_shard(count, fields)}
            _make_folder(path, count, _least(fields))
            # A store is there once its description is, so its arrays come first.
            cls(path, meta | layout, create=True)
            if not (path / META).exists():  # no other process was faster
                write_whole(path / META, json.dumps(meta | layout, indent=1).encode())
        old = store_meta.read(path / META)
        meta = {**old, **meta}  # a store keeps its layout
        if difference := store_meta.difference(old, meta):
            raise InputError(
                f"{path} holds another store: {difference}; choose another folder or remove it"
            )
        return cls(path, meta, create=True)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Opens a store that exists.

        Raises:
          MissingInput: no folder, or no meta.json in it.
          InputError: a meta.json that is damaged or of another version, or a missing array.
        """
        path = places.path(path)
        return cls(path, store_meta.read(path / META), create=False)

    def __len__(self) -> int:
        return self._count

    def write(self, index: int, sample: Mapping[str, np.ndarray]) -> None:
        """Writes one sample, all its fields, and then marks it done.

        Args:
          index: 0 <= index < len(self).
          sample: name -> array of the shape and dtype of the field.

        Raises:
          InputError: a bad index, a missing or unknown field, another shape or dtype, a value
            that is not finite, or a failed write. The sample is then not marked done.
        """
        self._check_index(index)
        if sample.keys() != self.fields.keys():
            raise InputError(
                f"{self.path}: expected the fields {sorted(self.fields)}, found {sorted(sample)}"
            )
        for name, (shape, dtype) in self.fields.items():
            value = sample[name]
            if value.shape != shape or value.dtype.name != dtype:
                raise InputError(
                    f"{self.path}, sample {index}: expected {name} {dtype} {list(shape)}, found "
                    f"{value.dtype.name} {list(value.shape)}; convert it first"
                )
            if wrong := not_finite(value):
                raise InputError(
                    f"{self.path}, sample {index}: expected finite {name}, found {wrong} values that "
                    "are not; look at its source"
                )
        try:
            self._samples.write(index, sample)
            self._reason(index).unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path}: sample {index} was not written: {places.reason(error)}"
            ) from error
        self._filled(index)

    def leave_out(self, index: int, reason: str) -> None:
        """Notes that a sample cannot be made; a store whose other samples are done is complete.

        Whoever can make it later writes it as if nothing had been noted.
        """
        self._check_index(index)
        places.make(self.path / LEFT_OUT)
        write_whole(self._reason(index), reason.encode())
        self._filled(index)

    def _filled(self, index: int) -> None:
        try:
            self._samples.filled(index)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path}: the samples around {index} cannot be packed: {places.reason(error)}; they "
                "stay as they are, and the same command goes on"
            ) from error

    def left_out(self) -> dict[int, str]:
        """The samples that are left out, and why."""
        out = np.flatnonzero(self._states() == OUT).tolist()
        return {index: self._reason(index).read_text() for index in out}

    def _reason(self, index: int) -> Path:
        return self.path / LEFT_OUT / f"{index}.txt"

    def done(self) -> np.ndarray:
        """Which samples are written, bool [count], as of now."""
        states = self._states()
        return (states != 0) & (states != OUT)

    def _states(self) -> np.ndarray:
        try:
            return self._samples.states()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path}: cannot read which samples are done: {places.reason(error)}"
            ) from error

    def read(self, index: int, fields: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Reads one sample: all its fields, or the named ones.

        Raises:
          InputError: a bad index, an unknown field, a sample that is not done, or a damaged file.
        """
        self._check_index(index)
        names = list(self.fields) if fields is None else list(fields)
        self.check_fields(names)
        if not self._samples.has(index):
            raise InputError(
                f"{self.path}: sample {index} is left out or not written yet; run the command that "
                "fills the store again"
            )
        try:
            return self._samples.read(index, names)
        except (OSError, ValueError) as error:
            reason = places.reason(error)
            of_server = places.is_url(self.path) and reason.startswith(_FAILED)
            advice = places.AGAIN if of_server else "the store is damaged, make it again"
            raise InputError(
                f"{self.path}: cannot read sample {index}: {reason}; {advice}"
            ) from error

    def check_fields(self, names: Sequence[str]) -> None:
        """Raises InputError unless every name is a field."""
        unknown = sorted(set(names) - self.fields.keys())
        if unknown:
            raise InputError(
                f"{self.path}: expected fields of {sorted(self.fields)}, got {unknown}"
            )

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises InputError unless there are fields of these names and shapes."""
        self.check_fields(list(shapes))
        for name, shape in shapes.items():
            if self.fields[name][0] != shape:
                raise InputError(
                    f"{self.path}: expected {name} {list(shape)} as in the config, found "
                    f"{list(self.fields[name][0])}; change the config, or make the store again"
                )

    def require_complete(self) -> None:
        """Raises InputError unless every sample is done or left out, and at least one is done."""
        states = self._states()
        missing = int((states == 0).sum())
        if missing:
            raise InputError(
                f"{self.path}: expected {self._count} samples, {missing} are missing; run the "
                "command that fills the store again, it continues where it stopped"
            )
        if (states == OUT).all():
            raise InputError(
                f"{self.path}: expected a sample or more, found all {self._count} left out; "
                f"{self.path / LEFT_OUT} says why"
            )

    def write_shared(self, name: str, value: np.ndarray) -> None:
        """Writes an array that belongs to the whole store; replaces one of the same name."""
        if value.dtype.kind not in "fiub":
            raise InputError(f"expected {name} of a NumPy dtype, found {value.dtype}; use float32")
        content = io.BytesIO()
        np.save(content, value)
        places.make(self.path / "shared")
        write_whole(self.path / "shared" / f"{name}.npy", content.getvalue())

    def read_shared(self, name: str) -> np.ndarray:
        """Reads what `write_shared` wrote.

        Raises:
          MissingInput: there is none of that name.
          InputError: the file is damaged.
        """
        file = self.path / "shared" / f"{name}.npy"
        if not file.is_file():
            raise MissingInput(
                f"no {file}; run the command that fills the store again, it writes this file"
            )
        try:
            array = bounded.arrays(file)[""]
        except (OSError, ValueError, LookupError) as error:
            raise InputError(f"{file}: expected an array, found a damaged file") from error
        if wrong := not_finite(array):
            raise InputError(
                f"{file}: expected finite values, found {wrong} that are not; run the "
                "command that fills the store again"
            )
        return array

    def negative_text(self) -> np.ndarray:
        """The embedding of the negative prompt, of the shape of the samples' texts.

        Raises:
          MissingInput: there is none.
          InputError: the file is damaged, or of another shape.
        """
        found, (shape, _) = self.read_shared(NEGATIVE_TEXT), self.fields.get("text", ((), ""))
        if shape and found.shape != tuple(shape):
            raise InputError(
                f"{self.path}: expected a negative text {list(shape)} as the texts of its samples, found "
                f"{list(found.shape)}; run the command that fills the store again"
            )
        return found

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self._count:
            raise InputError(f"{self.path}: expected 0 <= sample < {self._count}, found {index}")


def _make_folder(path: Path, count: int, least: int) -> None:
    """Makes the folder of a new store of `count` samples of `least` bytes."""
    room.check_disk(f"{path}: a store of {count} samples", count * least, path)
    try:
        places.make(path)
        # A bucket has folders as far as they have files.
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except OSError as error:
        raise InputError(f"cannot make a store at {path}: {error.strerror}") from error
    # Arrays, or a hidden file that becomes a meta.json, are of another process or of one that was killed.
    foreign = [name for name in names if not name.startswith(".") and name not in (META, "arrays")]
    if foreign:
        raise InputError(
            f"{path}: expected an empty folder or a store, found other files ({foreign[0]}); choose "
            "another folder"
        )


def _least(fields: store_meta.Fields) -> int:
    """Bytes that a sample takes at least: texts are compressed, and may take next to nothing."""
    others = ((shape, dtype) for shape, dtype in fields.values() if len(shape) != 2)
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in others)
