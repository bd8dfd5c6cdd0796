"""Files that are either whole or absent."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file so that no reader, and no kill, ever sees half of it.

    Raises:
      ValueError: the target cannot be written; an older file of that name is still there.
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
        raise ValueError(
            f"cannot write {path}: {error.strerror}; name a file in a folder that exists and can "
            "be written"
        ) from error
