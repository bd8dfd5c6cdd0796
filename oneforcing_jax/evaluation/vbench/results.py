"""What VBench's evaluator wrote: JSON files {dimension: [score, [a row for each video]]}, apart, in a folder
or in a zip."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.system import bounded

# Bytes of the results in an archive, unpacked.
WHOLE = 4 * bounded.JSON
EXPECTED = '{"dimension": [score, [a row for each video]]} as VBench\'s evaluator writes it'


def read(path: Path) -> dict[str, float]:
    """Raw scores by dimension, of a JSON file, or of those in a folder or zip and in folders just below it.

    Raises:
      MissingInput, InputError: no result there, a damaged or foreign file, a zip whose paths climb out of
        it, or two different scores of one dimension.
    """
    found: dict[str, float] = {}
    origin: dict[str, str] = {}
    for name, content in _contents(path):
        for dimension, value in scores(name, content).items():
            if found.setdefault(dimension, value) != value:
                raise InputError(
                    f"{path}: expected one score of {dimension}, found {found[dimension]:g} in "
                    f"{origin[dimension]} and {value:g} in {name}; remove one"
                )
            origin.setdefault(dimension, name)
    if not found:
        raise MissingInput(f"{path}: expected results, {EXPECTED}, found none")
    return found


def scores(name: str, content: bytes) -> dict[str, float]:
    """The raw scores of one file; none where it is a list, as VBench's own list of prompts beside them is.

    Raises:
      InputError: it is damaged, of another benchmark or version, or has a score that cannot be one.
    """
    try:
        parsed: Any = bounded.parsed(content)
    except ValueError:
        raise InputError(
            f"{name}: expected JSON, found a damaged file; evaluate it again"
        ) from None
    if isinstance(parsed, list):
        return {}
    if not isinstance(parsed, dict):
        raise InputError(f"{name}: expected {EXPECTED}, found {str(parsed)[:60]}")  # noqa: TRY004
    return {key.replace(" ", "_"): _score(name, key, row) for key, row in parsed.items()}


def _score(name: str, key: str, row: Any) -> float:
    if key.replace(" ", "_") not in DIMENSIONS:
        raise InputError(
            f"{name}: expected VBench's 16 dimensions, found {key[:40]!r}: the results of another benchmark "
            "or version; leave it out"
        )
    value: Any = row[0] if isinstance(row, list) and row else None
    if type(value) not in (int, float):
        raise InputError(f"{name}: expected {EXPECTED}, found {key}: {str(row)[:60]}")
    if math.isnan(value):
        raise InputError(
            f"{name}: expected a score of {key}, found nan: no video was found; see `check`"
        )
    # Cosines may lie below 0. Versions before the release gave imaging quality in percent.
    if not -1 <= value <= 1:
        raise InputError(
            f"{name}: expected a raw score of {key} from -1 to 1, found {value:g}; evaluate it with the "
            "released version"
        )
    return float(value)


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the JSON files of a result."""
    if path.is_dir():
        for file in sorted([*path.glob("*.json"), *path.glob("*/*.json")]):
            if _counts(file.relative_to(path).as_posix()):
                yield str(file), bounded.content(file)
    elif not path.is_file():
        raise MissingInput(f"expected results, a folder, .zip or .json, found nothing at {path}")
    elif path.suffix == ".zip":
        yield from _unzipped(path)
    else:
        yield str(path), bounded.content(path)


def _unzipped(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file, bounded.archive(file, path) as opened:
            for name in opened.namelist():
                parts = PurePosixPath(name.replace("\\", "/")).parts
                if ".." in parts or parts[:1] == ("/",):
                    raise InputError(
                        f"{path}: expected paths inside it, found {name[:60]!r}, which "
                        "climbs out; do not trust it"
                    )
            members = [
                member
                for member in opened.infolist()
                if member.filename.endswith(".json") and _counts(member.filename)
            ]
            bounded.check_members(members, path, bounded.JSON, WHOLE)
            for member in members:
                yield f"{path}, {member.filename}", opened.read(member)
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: expected a whole .zip without a password: {error}") from None


def _counts(name: str) -> bool:
    """Whether VBench reads a file: no hidden one, and at most one folder down."""
    parts = PurePosixPath(name).parts
    return len(parts) <= 2 and not any(part.startswith((".", "__")) for part in parts)
