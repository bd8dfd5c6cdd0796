"""Checksums of whole folders: written when a folder is complete, compared before it is read.

They find damage (a flipped bit, a cut or missing file), not tampering. A folder without any is read as it is.
In a bucket, whose server guards the bits, names and sizes are compared, and nothing is read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from oneforcing_jax import places
from oneforcing_jax.errors import InputError
from oneforcing_jax.files import LAST, read_record, write_whole

SUMS = LAST
_CHUNK = 1 << 22
_THREADS = 4


def seal(folder: Path) -> None:
    """Writes the size and CRC-32 of every file below a complete folder into it."""
    write_whole(folder / SUMS, json.dumps(dict(sums(folder, _files(folder))), indent=0).encode())


def is_sealed(folder: Path) -> bool:
    """Whether a folder has checksums."""
    return (folder / SUMS).is_file()


def sealed(folder: Path) -> Path | None:
    """The folder with the checksums of what lies in a folder: itself, or the one around it, for a conversion
    is sealed as a whole; None: there are none."""
    return next((place for place in (folder, folder.parent) if is_sealed(place)), None)


def problems(folder: Path, under: str = "") -> list[str]:
    """What is wrong with a sealed folder, or with the part of it below a name; none where all is whole."""
    file = folder / SUMS
    try:
        sealed: dict[str, list[int | None]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return [f"{file} cannot be read"] if file.exists() else []
    expected = {name: tuple(sum_) for name, sum_ in sealed.items() if _below(name, under)}
    present = [name for name in _files(folder) if _below(name, under)]
    found = dict(sums(folder, [name for name in present if name in expected]))
    missing = [f"{name} is missing" for name in sorted(expected.keys() - set(present))]
    # A file system or a desktop may put hidden files beside them.
    more = [
        f"{name} was not there"
        for name in sorted(set(present) - expected.keys())
        if not Path(name).name.startswith(".")
    ]
    changed = [
        f"{name} has changed" for name in sorted(found) if _differ(found[name], expected[name])
    ]
    return missing + more + changed


def verify(folder: Path, under: str = "") -> None:
    """Refuses a sealed folder, or a part of it, that is not as it was sealed.

    Raises:
      InputError: names the first file that differs.
    """
    if wrong := problems(folder, under):
        raise InputError(
            f"{folder}: expected the files that were written, found that {wrong[0]}"
            + (f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
            + "; restore it from a copy, or make it again"
        )


def identity(folder: Path, under: str = "") -> str:
    """A SHA-256 over names, sizes and CRC-32 of the files below a name in a folder.

    It is made of the checksums where there are some, so that no file is read. What was written to a bucket
    has none, and the server's names for the content take their place.
    """
    known: Mapping[str, Any]
    if is_sealed(folder):
        known = {name: tuple(found) for name, found in read_record(folder / SUMS).items()}
    else:
        known = dict(sums(folder, [name for name in _files(folder) if _below(name, under)]))
    if any(crc is None for _, crc in known.values()):
        known = places.tags(folder)
    lines = [
        f"{name.removeprefix(under)} {known[name]}" for name in sorted(known) if _below(name, under)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _differ(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Whether sizes differ, or CRC-32 where both are known."""
    return any(x != y for x, y in zip(a, b, strict=True) if x is not None and y is not None)


def _below(name: str, under: str) -> bool:
    return not under or name.startswith(f"{under}/")


def _files(folder: Path) -> list[str]:
    """Files below a folder by their relative names, but for its checksums."""
    return sorted(places.sizes(folder).keys() - {SUMS})


def sums(folder: Path, names: list[str]) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Names of files below a folder, with the size and CRC-32 of each; in a bucket the size alone."""
    if places.is_url(folder):
        sizes = places.sizes(folder)
        yield from ((name, (sizes[name], None)) for name in names)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True)


def _sum(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
