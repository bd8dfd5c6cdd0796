"""Checksums of whole folders: written when a folder is complete, compared before it is read.

They find damage (a flipped bit, a cut or missing file), not tampering. A folder without any is read as it is.
In a bucket, whose server guards the bits, names and sizes are compared, and nothing is read. Records that lie
beside files that change have checksums of their own (`files.record`).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places
from oneforcing_jax.system.files import LAST, read_record, write_whole

SUMS = LAST
OLD = "its settings cannot be checked, for they have no checksum: an older release wrote them"
_CHUNK = 1 << 22
_THREADS = 4
_said = set[str]()
# What file systems and desktops put beside files. Other hidden ones may be zarr's, and hold arrays.
_OTHERS = re.compile(r"\.(DS_Store|_.*|nfs.*|fuse_hidden.*|directory|git.*|Trash.*)")


def seal(folder: Path) -> None:
    """Writes the size and CRC-32 of every file below a complete folder into it."""
    write_whole(folder / SUMS, json.dumps(dict(sums(folder, _files(folder))), indent=0).encode())


def is_sealed(folder: Path) -> bool:
    """Whether a folder has checksums; `known` says whether they can be read."""
    return (folder / SUMS).exists()


def sealed(folder: Path) -> Path | None:
    """The folder with the checksums of what lies in a folder: itself, or the one around it, for a conversion
    is sealed as a whole; None: there are none."""
    return next((place for place in (folder, folder.parent) if is_sealed(place)), None)


def known(folder: Path) -> dict[str, tuple[int, int | None]]:
    """Size and CRC-32 of each file below a sealed folder; None: it was in a bucket when it was sealed.

    Raises:
      InputError: the checksums are damaged, or of another form.
    """
    file = folder / SUMS
    found = read_record(file)
    for name, sum_ in found.items():
        whole = isinstance(sum_, list) and len(sum_) == 2 and type(sum_[0]) is int and sum_[0] >= 0
        if not whole or type(sum_[1]) not in (int, type(None)):
            raise InputError(
                f"{file}: expected a size and a CRC-32 for each file, found {str(sum_)[:40]}"
                f" for {name[:60]!r}; restore it from a copy, or make its folder again"
            )
    return {name: (size, crc) for name, (size, crc) in found.items()}


def problems(folder: Path, under: str = "") -> list[str]:
    """What is wrong with a sealed folder, or with a file or folder in it; none where all is whole."""
    if not is_sealed(folder):
        return []
    try:
        all_ = known(folder)
    except InputError as error:
        return [f"{folder / SUMS} cannot be read ({error})"]
    expected = {name: sum_ for name, sum_ in all_.items() if _below(name, under)}
    present = [name for name in _files(folder) if _below(name, under)]
    found = dict(sums(folder, [name for name in present if name in expected]))
    missing = [f"{name} is missing" for name in sorted(expected.keys() - set(present))]
    more = [
        f"{name} was not there"
        for name in sorted(set(present) - expected.keys())
        if not _OTHERS.fullmatch(Path(name).name)
    ]
    changed = [
        f"{name} has changed" for name in sorted(found) if _differ(found[name], expected[name])
    ]
    return missing + more + changed


def unknown(folder: Path) -> str:
    """Why nobody knows whether a folder is whole, in words; "": its checksums say."""
    if not is_sealed(folder):
        return f"has no {SUMS}"
    try:
        lacking = [name for name, (_, crc) in known(folder).items() if crc is None]
    except InputError:
        return ""  # which is a problem
    if lacking and not places.is_url(folder):
        return f"was in a bucket, which had sizes alone, for {len(lacking)} of its files, as {lacking[0]}"
    return ""


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


def say(place: Path, words: str) -> None:
    """Says of a file or folder, once and in one line, what nobody can check."""
    if (line := f"{place}: {words}") not in _said:
        _said.add(line)
        tqdm.write(line, file=sys.stderr)


def identity(folder: Path, under: str = "") -> str:
    """A SHA-256 over names, sizes and CRC-32 of the files below a name in a folder.

    It is made of the checksums where there are some, so that no file is read. What was written to a bucket
    has none, and the server's names for the content take their place.

    Raises:
      InputError: checksums that are damaged.
    """
    all_: Mapping[str, Any]
    if is_sealed(folder):
        all_ = known(folder)
    else:
        all_ = dict(sums(folder, [name for name in _files(folder) if _below(name, under)]))
    if any(crc is None for _, crc in all_.values()):
        all_ = places.tags(folder) if places.is_url(folder) else dict(sums(folder, list(all_)))
    lines = [
        f"{name.removeprefix(under)} {all_[name]}" for name in sorted(all_) if _below(name, under)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _differ(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Whether sizes differ, or CRC-32 where both are known."""
    return any(x != y for x, y in zip(a, b, strict=True) if x is not None and y is not None)


def _below(name: str, under: str) -> bool:
    return not under or name == under or name.startswith(f"{under}/")


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
