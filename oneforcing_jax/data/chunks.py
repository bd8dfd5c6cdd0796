"""Layout 1 of a store, of versions before 0.3: a file or more for every field of every sample.

    arrays/<field>/    zarr3, [count, *shape], one sample a chunk
    arrays/done/       zarr3, uint8 [count]: 1 once every field of a sample is on disk, 2: left out

Chunks of texts are (1, 64, width), and those that are all zero are not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from oneforcing_jax import places
from oneforcing_jax.data.shards import OUT
from oneforcing_jax.data.store_meta import Fields

# What `done` says of a sample: COUNTED + n is written, with n chunks of texts; version 0.1 did not count.
WRITTEN, COUNTED = 1, 3
TEXT_CHUNK = 64
DONE_CHUNK = 4096

# Of new arrays: each chunk ends with a checksum, which is compared whenever it is read.
CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


class Chunks:
    """Samples of one store; what fails raises OSError or ValueError."""

    def __init__(self, path: Path, count: int, fields: Fields, create: bool) -> None:
        self._path, self._fields = path, fields
        self._arrays = {
            name: _open_array(path, name, count, shape, dtype, create)
            for name, (shape, dtype) in fields.items()
        }
        self._done = _open_array(path, "done", count, (), "uint8", create)
        # Samples never become undone, so one that was seen done needs no second look.
        self._seen = np.zeros(count, np.uint8)

    def write(self, index: int, sample: Mapping[str, np.ndarray]) -> None:
        """Writes a sample, all its fields, and then marks it done."""
        writes = [self._arrays[name][index].write(sample[name]) for name in self._fields]
        for write in writes:
            write.result()
        state = np.uint8(min(COUNTED + self._text_chunks(index), 255))
        self._done[index].write(state).result()
        self._seen[index] = state

    def filled(self, index: int) -> None:
        """Marks a sample left out, if its reason was written and it was not."""
        if (self._path / "left_out" / f"{index}.txt").is_file():
            self._done[index].write(np.uint8(OUT)).result()

    def states(self) -> np.ndarray:
        """The state of every sample as of now, uint8 [count]."""
        self._seen = np.asarray(self._done.read().result())
        return self._seen.copy()

    def has(self, index: int) -> bool:
        """Whether a sample is written."""
        return self._seen[index] not in (0, OUT) or self.states()[index] not in (0, OUT)

    def read(self, index: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads fields of a sample that is written."""
        expected = int(self._seen[index]) - COUNTED
        if 0 <= expected < 255 - COUNTED and (found := self._text_chunks(index)) != expected:
            raise ValueError(f"expected {expected} chunks of its texts, found {found}")
        reads = [self._arrays[name][index].read() for name in names]
        return {name: read.result() for name, read in zip(names, reads, strict=True)}

    def _text_chunks(self, index: int) -> int:
        """Files of a sample's texts. Chunks of padding have none, so a lost file would read as padding."""
        return sum(
            (self._path / "arrays" / name / f"c.{index}.{chunk}.0").is_file()
            for name, (shape, _) in self._fields.items()
            if len(shape) == 2
            for chunk in range(-(-shape[0] // TEXT_CHUNK))
        )


def _open_array(
    path: Path, name: str, count: int, shape: Sequence[int], dtype: str, create: bool
) -> ts.TensorStore:
    """Opens, or makes if it is not there, the array of one field."""
    text = len(shape) == 2
    chunk = [1, min(TEXT_CHUNK, shape[0]), shape[1]] if text else [1, *shape]
    if name == "done":
        chunk = [min(count, DONE_CHUNK)]
    spec = {
        "driver": "zarr3",
        "kvstore": places.kvstore(path / "arrays" / name),
        "metadata": {
            "shape": [count, *shape],
            "data_type": dtype,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            # Names are flat, because a folder for each dimension would make five folders a sample.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            **({} if (path / "arrays" / name / "zarr.json").is_file() else {"codecs": CODECS}),
        },
        # A chunk that is absent is padding in a text, but damage anywhere else.
        "store_data_equal_to_fill_value": not (text or name == "done"),
        "fill_missing_data_reads": text or name == "done",
    }
    return ts.open(spec, open=True, create=create).result()
