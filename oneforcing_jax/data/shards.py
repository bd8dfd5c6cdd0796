"""Layout 2 of a store: many samples a file, each read without the others.

    pending/<i>             the bytes of sample i, field after field, and their CRC-32 (little-endian)
    arrays/<field>/c.<r>... zarr3, sharded: samples [r * n, (r + 1) * n), with a checksum each

A sample is first pending, in one file that is written whole. Whoever finds the n samples of a range there, or
left out, adds them to its shards, and then removes from `pending` what is as it is in the shards. Both can be
done again, or by several at once, so that a kill at any moment loses nothing.
"""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from oneforcing_jax.data.store_meta import Fields
from oneforcing_jax.system import places

# States of a sample beside 0, not written: in a shard, left out, or pending.
PACKED, OUT, PENDING = 1, 2, 3
# A range has so many bytes before compression, or so many samples: what is reached first.
SHARD_BYTES, SHARD_SAMPLES = 2**28, 1024

# Names of files of samples, left out and pending, and of shards.
_NUMBERED = re.compile(rb"(\d+)|(\d+)\.txt|c\.(\d+)(?:\.0)*")


def per_shard(count: int, fields: Fields) -> int:
    """Samples of a shard of a new store."""
    return max(1, min(SHARD_BYTES // _size(fields), SHARD_SAMPLES, count))


class Shards:
    """Samples of one store; what fails raises OSError or ValueError.

    Args:
      path: the folder of the store.
      count: number of samples.
      fields: name -> (shape of one sample, dtype name).
      shard: samples of a shard.
      create: make the arrays that are not there, and finish what a kill left.
    """

    def __init__(self, path: Path, count: int, fields: Fields, shard: int, create: bool) -> None:
        self._count, self._fields, self._shard = count, fields, shard
        self._files: ts.KvStore = places.store(path)
        self._arrays = {
            name: self._open(name, places.kvstore(path / "arrays" / name), create)
            for name in fields
        }
        # Samples never become unwritten, so one that was seen written needs no second look.
        self._seen = np.zeros(count, np.uint8)
        if create:
            states = self.states()
            for start in range(0, count, shard):
                part = states[start : start + shard]
                if part.all() and (part == PENDING).any():
                    self._pack(start)

    def _open(self, name: str, place: Mapping[str, Any], create: bool) -> ts.TensorStore:
        shape, dtype = self._fields[name]
        codecs = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            # The padding of texts takes no room once it is compressed; latents are noise to a compressor.
            *([{"name": "zstd", "configuration": {"level": 1}}] if len(shape) == 2 else []),
            {"name": "crc32c"},
        ]
        # Not every server of objects has ranges that count from the end.
        inner = {"chunk_shape": [1, *shape], "codecs": codecs, "index_location": "start"}
        spec = {
            "driver": "zarr3",
            "kvstore": place,
            "metadata": {
                "shape": [self._count, *shape],
                "data_type": dtype,
                "fill_value": 0,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [self._shard, *shape]},
                },
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            },
            # Zeros are data, and what is absent is damage.
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        return _opened(spec, create)

    def write(self, index: int, sample: Mapping[str, np.ndarray]) -> None:
        """Writes a sample; it is on disk when this returns."""
        self._files.write(f"pending/{index}", self._encoded(sample)).result()
        self._seen[index] = PENDING

    def filled(self, index: int) -> None:
        """Packs the range of a sample that was written or left out, if it was the last."""
        start = index - index % self._shard
        for other in range(start, min(start + self._shard, self._count)):
            if not self._seen[other]:
                if self._is_there(f"pending/{other}"):
                    self._seen[other] = PENDING
                elif self._is_there(f"left_out/{other}.txt"):
                    self._seen[other] = OUT
                else:
                    return
        self._pack(start)

    def states(self) -> np.ndarray:
        """The state of every sample as of now, uint8 [count]."""
        # In this order: samples go from left out to pending, and from pending to shards.
        out, pending = self._numbers("left_out/"), self._numbers("pending/")
        packed = set.intersection(*(self._numbers(f"arrays/{name}/") for name in self._fields))
        states = np.zeros(self._count, np.uint8)
        for number in packed:
            states[number * self._shard : (number + 1) * self._shard] = PACKED
        states[[index for index in out if index < self._count]] = OUT
        states[[index for index in pending if index < self._count]] = PENDING
        self._seen = states
        return states.copy()

    def has(self, index: int) -> bool:
        """Whether a sample is written."""
        return self._seen[index] in (PACKED, PENDING) or self.states()[index] in (PACKED, PENDING)

    def read(self, index: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads fields of a sample that is written."""
        if self._seen[index] == PENDING:
            found = self._files.read(f"pending/{index}").result()
            if found.state == "value":
                sample = self._decoded(found.value)
                return {name: sample[name] for name in names}
            self._seen[index] = PACKED  # by another process
        reads = [self._arrays[name][index].read() for name in names]
        return {name: read.result() for name, read in zip(names, reads, strict=True)}

    def _pack(self, start: int) -> None:
        """Adds the pending samples of a range to its shards, then removes those that the shards hold."""
        indices = range(start, min(start + self._shard, self._count))
        pending = {i: self._files.read(f"pending/{i}") for i in indices}
        # What is not there any more is packed by another process.
        found = {i: r for i, read in pending.items() if (r := read.result()).state == "value"}
        samples = {}
        for index, content in found.items():
            with contextlib.suppress(ValueError):  # damaged: who reads it is told
                samples[index] = self._decoded(content.value)
        for name, array in self._arrays.items():
            with ts.Transaction() as transaction:
                for index, sample in samples.items():
                    array.with_transaction(transaction)[index].write(sample[name]).result()
        packed = {i: [array[i].read() for array in self._arrays.values()] for i in samples}
        removals = []
        for index in self._numbers("left_out/") & samples.keys():  # a kill came before its removal
            self._files.write(f"left_out/{index}.txt", None).result()
        for index, reads in packed.items():
            sample = dict(zip(self._arrays, (read.result() for read in reads), strict=True))
            if self._encoded(sample) == found[index].value:
                same = found[index].stamp.generation
                removals.append(self._files.write(f"pending/{index}", None, if_equal=same))
                self._seen[index] = PACKED
        for removal in removals:
            removal.result()

    def _encoded(self, sample: Mapping[str, np.ndarray]) -> bytes:
        content = b"".join(sample[name].tobytes() for name in self._fields)
        return content + zlib.crc32(content).to_bytes(4, "little")

    def _decoded(self, content: bytes) -> dict[str, np.ndarray]:
        body, sample, at = bytearray(content[:-4]), {}, 0
        if (
            len(body) != _size(self._fields)
            or zlib.crc32(body).to_bytes(4, "little") != content[-4:]
        ):
            raise ValueError("expected the bytes that were written, found others")
        for name, (shape, dtype) in self._fields.items():
            values = np.frombuffer(body, dtype, math.prod(shape), at)
            sample[name], at = values.reshape(shape), at + values.nbytes
        return sample

    def _numbers(self, folder: str) -> set[int]:
        """Numbers of the samples or shards that have a file in a folder."""
        names = (self._files / folder).list().result()
        matches = (_NUMBERED.fullmatch(name) for name in names)
        return {int(match[match.lastindex or 0]) for match in matches if match}

    def _is_there(self, key: str) -> bool:
        return bool(self._files.list(ts.KvStore.KeyRange(key, key + "\0")).result())


def _opened(spec: Mapping[str, Any], create: bool) -> ts.TensorStore:
    """Opens an array, or with `create` makes it if it is not there.

    Where another process makes it at the same moment, TensorStore may say that it is neither there nor to be
    made; asked again, it finds it.
    """
    try:
        return ts.open(spec, open=True, create=create).result()
    except (OSError, ValueError) as error:
        if not create or "NOT_FOUND" not in str(error):
            raise
    return ts.open(spec, open=True, create=create).result()


def _size(fields: Fields) -> int:
    """Bytes of a sample."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values())
