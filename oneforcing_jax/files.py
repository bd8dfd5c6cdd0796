"""Files and folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file so that no reader ever sees half of it, and no kill leaves half of it.

    Raises:
      InputError: the target cannot be written; an older file of that name is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
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


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object that a file holds, or the one within it below some keys.

    Raises:
      InputError: the file cannot be read, is damaged, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
        for key in keys:
            found = found[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected a JSON object{f' with {keys}' if keys else ''}, found a damaged file; restore "
            "it from a copy, download it again, or make its folder again"
        )
    return found


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes its name at the end.

    On an error it is removed whole, together with the folders that were made for it.
    """
    made = [parent for parent in target.parents if not parent.exists()]
    temporary = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
