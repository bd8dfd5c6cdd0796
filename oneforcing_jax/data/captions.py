"""Caption files: which words belong to which video."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax import places
from oneforcing_jax.errors import InputError, MissingInput

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def read_captions(path: str | Path) -> dict[str, str]:
    """Reads the captions of a folder of videos.

    Args:
      path: a `.jsonl` file with one {"video": name, "caption": text} a line, or a `.csv` file
        with the header `video,caption`. Other fields are ignored.

    Returns:
      Video file name -> caption, in file order, surrounding white space removed.

    Raises:
      MissingInput: there is no such file.
      InputError: an unknown suffix, no entry at all, or a line that is malformed, lacks a field,
        has an empty caption, or repeats a video. The message carries the line number.
    """
    path = places.path(path)
    if not path.is_file():
        raise MissingInput(f"no caption file at {path}; check the path")
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix not in readers:
        raise InputError(
            f"{path}: expected a caption file ending in .jsonl or .csv, found {path.suffix!r}"
        )
    captions: dict[str, str] = {}
    try:
        for line, row in readers[path.suffix](path):
            video, caption = (_text(path, line, row, key) for key in ("video", "caption"))
            if video in captions:
                raise InputError(
                    f"{path}:{line}: expected each video once, found {video!r} again; remove one"
                )
            captions[video] = caption
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found {error.reason}; convert it") from None
    if not captions:
        raise InputError(f"{path}: expected captions, found none; add one line a video")
    return captions


class Pair(NamedTuple):
    """A video and its caption; None where one of them is missing."""

    name: str
    video: Path | None
    caption: str | None


def pair(videos_dir: str | Path, captions_path: str | Path) -> list[Pair]:
    """Matches the videos of a folder with their captions by file name.

    Args:
      videos_dir: a folder; its files ending in one of VIDEO_SUFFIXES count, subfolders do not.
      captions_path: see `read_captions`.

    Returns:
      One entry a name in either, sorted by name.

    Raises:
      MissingInput: the folder or the caption file is missing.
      InputError: no video at all, or a malformed caption file.
    """
    folder = places.path(videos_dir)
    if not folder.is_dir():
        raise MissingInput(f"no folder of videos at {folder}; check the path")
    captions = read_captions(captions_path)
    videos = videos_in(folder)
    names = sorted(videos.keys() | captions.keys())
    return [Pair(name, videos.get(name), captions.get(name)) for name in names]


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos in a folder that is there, by their names, sorted; subfolders do not count.

    Raises:
      InputError: no video at all.
    """
    # Names that start with a dot are files that a writer has not finished.
    videos = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith(".")
    }
    if not videos:
        raise InputError(
            f"{folder}: expected videos ({' '.join(VIDEO_SUFFIXES)}), found none; check the folder"
        )
    return videos


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with io.StringIO(path.read_bytes().decode(), newline=None) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise InputError(
                    f"{path}:{number}: expected a JSON object, found one nested too deep; correct the line"
                ) from None
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}:{number}: expected a JSON object, found bad JSON ({error.msg} at "
                    f"column {error.colno}); correct the line"
                ) from None
            if not isinstance(row, dict):
                raise InputError(  # noqa: TRY004, bad input is a ValueError everywhere
                    f"{path}:{number}: expected a JSON object, found {type(row).__name__}; write "
                    '{"video": ..., "caption": ...}'
                )
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # utf-8-sig: spreadsheets put a byte-order mark before the header.
    with io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="") as lines:
        reader = csv.DictReader(lines)
        header = list(reader.fieldnames or [])
        if not {"video", "caption"} <= set(header):
            raise InputError(
                f"{path}:1: expected the header video,caption, found {','.join(header)[:60]!r}; add it"
            )
        for row in _rows(path, reader):
            if None in row:
                raise InputError(
                    f"{path}:{reader.line_num}: expected {len(header)} columns, found more; put "
                    "captions that hold commas in double quotes"
                )
            yield reader.line_num, row


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str | Any, str | Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: expected a row of CSV, found: {error}; close quotes that are open"
        ) from None


def check_unicode(where: str, words: str) -> None:
    """Refuses half a surrogate pair, which JSON can hold and UTF-8 cannot.

    Raises:
      InputError: names the place.
    """
    try:
        words.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: expected Unicode text, found half a pair in it; correct it"
        ) from None


def _text(path: Path, line: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = "none" if value is None else f"{type(value).__name__} {value!r}"
        raise InputError(  # noqa: TRY004, bad input is a ValueError everywhere
            f"{path}:{line}: expected a text {key!r}, found {found}; add it"
        )
    if not value.strip():
        raise InputError(f"{path}:{line}: expected a {key}, found an empty one; write one")
    check_unicode(f"{path}:{line}", value)
    return value.strip()
