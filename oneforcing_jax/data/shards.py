"""Layout 2 of a store: many samples a file, and files that are written once and whole.

    pending/<field>/c.<i>...   zarr3, one sample a chunk: samples whose range is not full yet
    arrays/<field>/c.<r>...    zarr3, sharded: samples [r * n, (r + 1) * n), read one by one

A sample is written once all its fields are pending. Whoever fills a range packs it: the shard of a
field is made in memory and written only where there is none, then the pending samples that it holds
are removed. So a kill at any moment, or two that pack at once, lose nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

# States of a sample beside 0, not written: in a shard, left out, or pending.
PACKED, OUT, PENDING = 1, 2, 3
# Bytes of a range before compression, as far as a range of 1024 samples has them.
SHARD_BYTES, SHARD_SAMPLES = 2**28, 1024

Fields = Mapping[str, tuple[tuple[int, ...], str]]
FAILURES = (OSError, ValueError)


class Shards:
    """Samples of one store; what fails raises OSError or ValueError.

    Args:
      path: the folder of the store.
      count: number of samples.
      fields: name -> (shape of one sample, dtype name).
      left_out: folder with a file <i>.txt for each sample that is left out.
      create: make the arrays that are not there.
    """

    def __init__(
        self, path: Path, count: int, fields: Fields, left_out: Path, create: bool
    ) -> None:
        self._path, self._count, self._fields, self._left_out = path, count, fields, left_out
        size = sum(math.prod(s) * np.dtype(d).itemsize for s, d in fields.values())
        self._range = max(1, min(SHARD_BYTES // size, SHARD_SAMPLES, count))
        self._pending: dict[str, ts.TensorStore] = {}
        self._arrays: dict[str, ts.TensorStore] = {}
        for name in fields:
            for folder, arrays in (("arrays", self._arrays), ("pending", self._pending)):
                place = {"driver": "file", "path": f"{path.resolve()}/{folder}/{name}/"}
                arrays[name] = self._open(name, place, folder == "arrays", create)
        self._seen = np.zeros(count, np.uint8)
        if create:
            for start in self._starts(self.states()):
                self._pack(start)

    def _open(
        self, name: str, place: Mapping[str, Any], sharded: bool, create: bool
    ) -> ts.TensorStore:
        shape, dtype = self._fields[name]
        # The padding of texts takes no room once it is compressed; latents are noise to a compressor.
        codecs: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            *([{"name": "zstd", "configuration": {"level": 1}}] if len(shape) == 2 else []),
            {"name": "crc32c"},
        ]
        if sharded:
            inner = {"chunk_shape": [1, *shape], "codecs": codecs}
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        chunk = [self._range if sharded else 1, *shape]
        spec = {
            "driver": "zarr3",
            "kvstore": place,
            "metadata": {
                "shape": [self._count, *shape],
                "data_type": dtype,
                "fill_value": 0,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "codecs": codecs,
            },
            # Zeros are data, and what is absent is damage.
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        return ts.open(spec, open=True, create=create, context=ts.Context()).result()

    def write(self, index: int, sample: Mapping[str, np.ndarray]) -> None:
        """Writes a sample; it is on disk when this returns."""
        writes = [self._pending[name][index].write(sample[name]) for name in self._fields]
        for write in writes:
            write.result()
        self._seen[index] = PENDING

    def filled(self, index: int) -> None:
        """Packs the range of a sample that was written or left out, if it was the last."""
        start = index - index % self._range
        for other in range(start, min(start + self._range, self._count)):
            if not self._seen[other]:
                if not self._is_pending(other) and not self._reason(other).is_file():
                    return
                self._seen[other] = PENDING if self._is_pending(other) else OUT
        self._pack(start)

    def states(self) -> np.ndarray:
        """The state of every sample as of now, uint8 [count]."""
        states = np.zeros(self._count, np.uint8)
        # In this order: samples go from left out to pending, and from pending to a shard.
        out = [int(file.stem) for file in self._left_out.glob("*.txt") if file.stem.isdecimal()]
        pending = self._keys(self._pending)
        for number in self._keys(self._arrays):
            states[number * self._range : (number + 1) * self._range] = PACKED
        states[[index for index in out if index < self._count]] = OUT
        states[[index for index in pending if index < self._count]] = PENDING
        self._seen = states
        return states.copy()

    def has(self, index: int) -> bool:
        """Whether a sample is written; none becomes unwritten, so one that was seen needs no second look."""
        return self._seen[index] in (PACKED, PENDING) or self.states()[index] in (PACKED, PENDING)

    def read(self, index: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads fields of a sample that is written."""
        place = self._seen[index]
        try:
            return self._read(self._pending if place == PENDING else self._arrays, index, names)
        except FAILURES:
            # Another process may have packed it since.
            if self.states()[index] == place:
                raise
            return self._read(
                self._pending if self._seen[index] == PENDING else self._arrays, index, names
            )

    @staticmethod
    def _read(
        arrays: Mapping[str, ts.TensorStore], index: int, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        reads = [arrays[name][index].read() for name in names]
        return {name: read.result() for name, read in zip(names, reads, strict=True)}

    def _pack(self, start: int) -> None:
        """Packs a full range, and removes the pending samples that its shards hold.

        Of several at once one writes each shard, and what one removes lies in the shard as it is on disk.
        """
        indices = range(start, min(start + self._range, self._count))
        for name in self._fields:
            files, key = _files(self._arrays[name]), self._key(name, start // self._range)
            absent = files.read(key).result() if not self._file("arrays", name, key) else None
            if absent is None or absent.state != "missing":
                continue
            made = self._open(name, {"driver": "memory"}, sharded=True, create=True)
            transaction = ts.Transaction()
            try:
                for index in indices:
                    if self._is_pending(index):
                        value = self._pending[name][index].read().result()
                        made.with_transaction(transaction)[index].write(value).result()
            except FAILURES:
                # Another process packs it, or a sample is damaged, which whoever reads it is told.
                return
            transaction.commit_async().result()
            content = _files(made).read(key).result()
            if content.state == "missing":  # all are left out
                return
            files.write(key, content.value, if_equal=absent.stamp.generation).result()
        for index in indices:
            self._tidy(index)

    def _tidy(self, index: int) -> None:
        """Removes a pending sample if its shards hold the same."""
        names = [n for n in self._fields if self._file("pending", n, self._key(n, index))]
        try:
            packed = self._read(self._arrays, index, names)
            pending = self._read(self._pending, index, names)
        except FAILURES:
            return
        if all(packed[name].tobytes() == pending[name].tobytes() for name in names):
            for name in names:
                with contextlib.suppress(*FAILURES):
                    _files(self._pending[name]).delete_range(
                        ts.KvStore.KeyRange(self._key(name, index), self._key(name, index) + "\0")
                    ).result()
            self._seen[index] = PACKED

    def _starts(self, states: np.ndarray) -> list[int]:
        """Ranges that are full and have pending samples."""
        parts = ((i, states[i : i + self._range]) for i in range(0, self._count, self._range))
        return [i for i, part in parts if part.all() and (part == PENDING).any()]

    def _keys(self, arrays: Mapping[str, ts.TensorStore]) -> list[int]:
        """First coordinates of the chunks that all fields have."""
        found = None
        for array in arrays.values():
            keys = (key.split(b".") for key in _files(array).list().result())
            numbers = {
                int(k[1]) for k in keys if k[0] == b"c" and k[1].isdigit() and k[-1].isdigit()
            }
            found = numbers if found is None else found & numbers
        return sorted(found or ())

    def _key(self, name: str, number: int) -> str:
        return ".".join(["c", str(number), *("0" for _ in self._fields[name][0])])

    def _file(self, folder: str, name: str, key: str) -> bool:
        return (self._path / folder / name / key).is_file()

    def _is_pending(self, index: int) -> bool:
        return all(self._file("pending", name, self._key(name, index)) for name in self._fields)

    def _reason(self, index: int) -> Path:
        return self._left_out / f"{index}.txt"


def _files(array: ts.TensorStore) -> ts.KvStore:
    assert array.kvstore is not None
    return array.kvstore
