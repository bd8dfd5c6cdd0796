"""Files of other people, measured before memory is spent on them: JSON, archives, and arrays of NumPy.

What a file says of itself need not be true: an archive of a megabyte may unpack to gigabytes, and a header
may claim any length.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places

# Bytes of a record or a list in JSON; parsed, the worst takes some twenty times as much.
JSON = 16 * 2**20
# Bytes of a line of JSON, and of what all members of an archive unpack to, where nobody knows their sizes.
LINE, UNPACKED = 2**20, 256 * 2**20
# Bytes of the list of an archive's members, some hundred each, and of an array's header.
_DIRECTORY, _HEADER = 4 * 2**20, 10_000
# Lists and objects of JSON within each other: whoever walks through them calls himself for each.
_DEPTH = 100
# Bytes of the names and shapes of tensors in a file of PyTorch.
_PICKLE = 64 * 2**20
# The end of an archive: its mark, six numbers, and the length of the comment behind it.
_END, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")

Shape = tuple[int, ...]


def content(file: Path, most: int = JSON) -> bytes:
    """The bytes of a file.

    Raises:
      InputError: it is larger than its kind ever is.
      OSError: it cannot be read.
    """
    check_size(file, places.size(file), most)
    return places.read(file)


def check_size(what: object, size: int, most: int) -> None:
    """Refuses what is larger than its kind ever is.

    Raises:
      InputError: names it, and both sizes.
    """
    if size > most:
        raise InputError(
            f"{what}: expected {most / 2**20:,.0f} MiB at most, found {size:,} bytes; give the file that its "
            "program wrote, or split it"
        )


def parsed(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
      ValueError: it is no JSON, or nested too deep.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    layer = [found]
    for _ in range(_DEPTH):
        inner = (
            x.values() if isinstance(x, dict) else x for x in layer if isinstance(x, dict | list)
        )
        layer = list(itertools.chain.from_iterable(inner))
        if not layer:
            return found
    raise ValueError("nested too deep")


def line(text: str | bytes, most: int = LINE) -> Any:
    """What a line of JSON says.

    Raises:
      ValueError: it is no JSON, nested too deep, or longer than lines are.
    """
    if len(text) > most:
        raise ValueError(f"a line of {len(text):,} characters")
    return parsed(text)


def archive(file: IO[bytes], where: object) -> zipfile.ZipFile:
    """A zip archive, whose list of members is not read before its length is known.

    Raises:
      InputError: the list is longer than archives of few files have.
      zipfile.BadZipFile, OSError: it is none.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 2**16 - _END.size - _END64.size - 20))
    tail = file.read()
    at, at64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if 0 <= at <= len(tail) - _END.size:
        length = _END.unpack_from(tail, at)[5]
        if length == 2**32 - 1 and 0 <= at64 <= len(tail) - _END64.size:
            length = _END64.unpack_from(tail, at64)[8]
        check_size(f"{where}, its list of files", length, _DIRECTORY)
    file.seek(0)
    return zipfile.ZipFile(file)


def check_members(members: list[zipfile.ZipInfo], where: object, each: int, whole: int) -> None:
    """Refuses members of an archive that unpack to more than their kind ever does.

    Args:
      members: those that are to be read.
      where: the archive, for errors.
      each, whole: bytes of one, and of all of them.

    Raises:
      InputError: names the member, or the archive.
    """
    for member in members:
        check_size(f"{where}, {member.filename[:60]!r} unpacked", member.file_size, each)
    check_size(f"{where}, unpacked", sum(member.file_size for member in members), whole)


def check_torch(path: Path) -> None:
    """Refuses a file of PyTorch whose members are packed, as PyTorch never does, or whose pickle is large.

    Raises:
      InputError: names the member.
    """
    with path.open("rb") as file:
        try:
            members = archive(file, path).infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            if isinstance(error, InputError):
                raise
            return  # no archive, of which PyTorch knows more
    check_members([m for m in members if m.filename.endswith(".pkl")], path, _PICKLE, _PICKLE)
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(
                f"{path}: expected a file of torch.save, found {member.filename[:60]!r} packed in it; load "
                "and save it with torch once"
            )


def arrays(
    path: Path, kinds: str = "fiub", check: Callable[[Mapping[str, Shape]], None] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, or the one of a .npy file under "".

    Args:
      path: of the file.
      kinds: of dtypes, as NumPy's letters.
      check: refuses shapes, before an array is read; None: an archive unpacks to `UNPACKED` at most.

    Raises:
      ValueError: a damaged file, or arrays of other kinds. InputError: by `check`, or it is too large.
      OSError: it cannot be read.
    """
    with io.BytesIO(places.read(path)) if places.is_url(path) else path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                _check_heads({"": _head(file, size, kinds)}, check)
                file.seek(0)
                return {"": _array(file)}
            with archive(file, path) as opened:
                members = [m for m in opened.infolist() if m.filename.endswith(".npy")]
                named = {member.filename.removesuffix(".npy"): member for member in members}
                if not check:
                    check_members(members, path, UNPACKED, UNPACKED)
                heads, made = dict[str, tuple[Shape, str]](), dict[str, np.ndarray]()
                for name, member in named.items():
                    with opened.open(member) as inner:
                        heads[name] = _head(inner, member.file_size, kinds)
                _check_heads(heads, check)
                for name, member in named.items():
                    with opened.open(member) as inner:
                        made[name] = _array(inner)
                return made
        except (InputError, OSError, MemoryError):
            raise
        except (
            Exception
        ) as error:  # NumPy parses headers as Python, and archives fail in a dozen types
            raise ValueError(str(error)) from None


def _check_heads(
    heads: Mapping[str, tuple[Shape, str]], check: Callable[[Mapping[str, Shape]], None] | None
) -> None:
    """Refuses arrays by what `_head` found of them: first by their shapes."""
    if check:
        check({name: shape for name, (shape, _) in heads.items()})
    for _, wrong in heads.values():
        if wrong:
            raise ValueError(wrong)


def _head(file: IO[bytes], size: int, kinds: str) -> tuple[Shape, str]:
    """The shape that an array says it has, and what is wrong with it beside that.

    Args:
      file: of NumPy.
      size: its bytes.
      kinds: letters of its dtype, of which it must be one.
    """
    head = io.BytesIO(file.read(_HEADER))  # what reads headers would read any length
    old = np.lib.format.read_magic(head) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head)
    least, found = math.prod(shape) * dtype.itemsize, size - head.tell()
    wrong = "" if dtype.kind in kinds else f"expected numbers, found {dtype}"
    return tuple(shape), wrong or (least != found) * f"expected {least:,} bytes, found {found:,}"


def _array(file: IO[bytes]) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)
