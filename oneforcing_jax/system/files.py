"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import bounded, places

# The file of a folder that is copied last: its checksums.
LAST = "checksums.json"
# What a record says of its own form, and what there is room for below `MORE`: fields there, and others that a
# reader does not know, are left alone. Only a form that older readers would get wrong has another number.
VERSION, MORE, FORM = "version", "more", 1
# The CRC-32 of all else that a record says. Records lie beside files that change, and have no other checksum.
CHECKSUM = "record_crc32"


def unfinished(path: Path) -> str:
    """A hidden name for what is not whole yet, which no other process has, of any host that shares a disk."""
    mine = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    return f".{path.name}.{mine}.tmp"


def write_whole(path: str | Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file so that no reader ever sees half of it, and no kill leaves half of it.

    Args:
      path: of the file.
      content: of the file.
      mode: that a file on a disk has from before its content on, less what the system takes from new files.

    Raises:
      InputError: the target cannot be written; an older file of that name is still there.
    """
    path = places.path(path)
    if places.is_url(path):
        try:
            places.write(path, content)
        except OSError as error:
            raise InputError(str(error)) from error
        return
    temporary = path.with_name(unfinished(path))
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror}; name a file in a folder that exists and can "
            "be written"
        ) from error


def record(content: Mapping[str, Any]) -> bytes:
    """A record as JSON, with the checksum that `read_record` compares."""
    plain = json.loads(json.dumps(content))
    return json.dumps(plain | {CHECKSUM: _crc(plain)}, indent=1).encode()


def _crc(content: dict[str, Any]) -> int:
    """A checksum of what a record says, however it is spaced and in whatever order it says it."""
    try:
        return zlib.crc32(json.dumps(content, sort_keys=True).encode())
    except RecursionError:
        return -1  # no record of ours is that deep


def has_checksum(path: Path) -> bool:
    """Whether a record has one; those of older releases have none, and are read as they are."""
    found = _parsed(path)
    return isinstance(found, dict) and CHECKSUM in found


def _parsed(path: Path) -> Any:
    try:
        return bounded.parsed(bounded.content(path))
    except InputError:
        raise
    except (OSError, ValueError):
        return ()


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object that a file holds, or the one within it below some keys; its checksum is left out.

    Raises:
      InputError: the file cannot be read, is damaged or larger than records are, or holds something else.
    """
    found = _parsed(path)
    if isinstance(found, dict) and CHECKSUM in found and found.pop(CHECKSUM) != _crc(found):
        raise InputError(
            f"{path}: expected what was written, found that it has changed; restore it from a copy, or, if "
            f"you changed it yourself, remove its field {CHECKSUM!r}"
        )
    try:
        for key in keys:
            found = found[key]
    except (LookupError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected a JSON object{f' with {keys}' if keys else ''}, found a damaged file; restore "
            "it from a copy, download it again, or make its folder again"
        )
    return found


def read_versioned(path: Path, *keys: str) -> dict[str, Any]:
    """As `read_record`, of a record that says its version; one of before has none.

    Raises:
      InputError: as `read_record`; the record is of a newer form, or its version is no number.
    """
    found = read_record(path).get(VERSION, FORM)
    if type(found) is not int or found < 1 or found > FORM:
        raise InputError(
            f"{path}: expected a record of version {FORM}, found {found!r}; read it with a newer release of "
            "this package, or make its folder again with this one"
        )
    return read_record(path, *keys)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes its name at the end.

    On an error it is removed whole, together with the folders that were made for it.

    In a bucket nothing can be renamed: it is made on a disk and copied, its checksums last. What is there
    without them does not count.
    """
    if places.is_url(target):
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / target.name
            yield made
            if made.is_file():
                places.write(target, made.read_bytes())
            else:
                for name in sorted(places.sizes(made), key=lambda name: name == LAST):
                    places.write(target / name, (made / name).read_bytes())
        return
    new = [parent for parent in target.parents if not parent.exists()]
    temporary = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        places.remove(temporary)
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        places.remove(temporary)
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class Growing:
    """Files that grow, in a folder: of a disk in itself, of a bucket in a copy on a disk, which is published.

    Args:
      place: the folder.

    Attributes:
      folder: on a disk, to write to.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._published = place, dict[str, int]()
        self._scratch = tempfile.TemporaryDirectory() if places.is_url(place) else None
        self.folder = Path(self._scratch.name) if self._scratch else place
        places.make(self.folder)

    def publish(self) -> None:
        """Copies what has grown to the bucket, each file whole.

        Raises:
          OSError: the server failed; says why.
        """
        if self._scratch:
            for name, size in places.sizes(self.folder).items():
                if self._published.get(name) != size:
                    places.write(self._place / name, (self.folder / name).read_bytes())
                    self._published[name] = size

    def close(self) -> None:
        """Publishes the last, and removes the copy."""
        try:
            self.publish()
        finally:
            if self._scratch:
                self._scratch.cleanup()
