"""Caption files: which words belong to which video."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import bounded, places, textfiles

# Containers that FFmpeg reads. An animated picture (.gif) has 256 colours, and is none of them.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts",
    ".m2ts", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mxf",
)  # fmt: skip


def read_captions(path: str | Path, folder: Path | None = None) -> dict[str, str]:
    """Reads the captions of a folder of videos.

    Args:
      path: a `.jsonl` file with one {"video": name, "caption": text} a line, or a `.csv` file
        with the header `video,caption`. Other fields are ignored.
      folder: of the videos; a path that begins with it is a name in it.

    Returns:
      Path of a video from the folder -> caption, in file order, surrounding white space removed; names are
      in one Unicode form (`textfiles.form`).

    Raises:
      MissingInput: there is no such file.
      InputError: an unknown suffix, no entry at all, no UTF-8, or a line that is malformed, lacks a
        field, has an empty caption, or repeats a video. The message carries the line number.
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
    for line, row in readers[path.suffix](path):
        video, caption = (_text(path, line, row, key) for key in ("video", "caption"))
        name = _name(video, folder)
        if name in captions:
            raise InputError(
                f"{path}:{line}: expected each video once, found {video!r} again; remove one"
            )
        captions[name] = caption
    if not captions:
        raise InputError(f"{path}: expected captions, found none; add one line a video")
    return captions


def _name(video: str, folder: Path | None) -> str:
    """A name in a caption file as names are compared: a path from the folder of the videos."""
    name = textfiles.form(video if places.is_url(video) else posixpath.normpath(video))
    if folder is None:
        return name
    whole = os.fspath(places.normal(places.absolute(folder)))
    return name.removeprefix(f"{textfiles.form(whole)}/")


class Pair(NamedTuple):
    """A video and its caption; None where one of them is missing, and then the reason. Of a clip of a scene
    also the seconds at which it begins, and why it is left out."""

    name: str
    video: Path | None
    caption: str | None
    reason: str = ""
    start: float = 0.0


def pair(videos_dir: str | Path, captions_path: str | Path) -> list[Pair]:
    """Matches the videos of a folder with their captions by file name.

    Args:
      videos_dir: a folder; its files ending in one of VIDEO_SUFFIXES count; those in subfolders where
        the caption file names them (x/a.mp4).
      captions_path: see `read_captions`.

    Returns:
      One entry a name in either, sorted by name.

    Raises:
      MissingInput: the folder or the caption file is missing.
      InputError: no video at all, two videos of one name, or a malformed caption file.
    """
    folder = places.path(videos_dir)
    if not folder.is_dir():
        raise MissingInput(f"no folder of videos at {folder}; check the path")
    captions = read_captions(captions_path, folder)
    below = (name for name in captions if "/" in name)
    videos = _videos(folder) | _found_below(folder, below)
    if not videos:
        raise _no_videos(folder)
    absent = [name for name in captions if name not in videos]
    why = dict(zip(absent, map(_reasons(folder), absent), strict=True)) if absent else {}
    pairs = [Pair(name, None, captions[name], why[name]) for name in absent]
    for name, file in videos.items():
        reason = (
            ""
            if name in captions
            else "expected a caption, found none; add a line to the caption file"
        )
        # As the file is spelt.
        pairs.append(Pair(os.path.relpath(file, folder), file, captions.get(name), reason))
    return sorted(pairs, key=lambda found: found.name)


def videos_in(folder: Path) -> dict[str, Path]:
    """The videos in a folder that is there, by names in one Unicode form, sorted; subfolders do not count.

    Raises:
      InputError: no video at all, or two of one name.
    """
    videos = _videos(folder)
    if not videos:
        raise _no_videos(folder)
    return videos


def _is_video(name: str) -> bool:
    # Names that start with a dot are files that a writer has not finished.
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _videos(folder: Path) -> dict[str, Path]:
    videos: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if _is_video(file.name) and videos.setdefault(textfiles.form(file.name), file) != file:
            raise InputError(
                f"{folder}: expected each name once, found {file.name!r} in two Unicode forms; remove one"
            )
    return videos


def _no_videos(folder: Path) -> InputError:
    others = ", ".join(sorted(file.name for file in folder.iterdir())[:3])
    return InputError(
        f"{folder}: expected videos ({' '.join(VIDEO_SUFFIXES)}), found none"
        f"{f' among {others}' if others else ''}; check the folder"
    )


def _found_below(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The videos among paths from a folder, whose every part may be in another Unicode form."""
    listings: dict[Path, dict[str, Path]] = {}
    found = {}
    for name in names:
        place: Path | None = folder
        for part in name.split("/"):
            if place is not None and place not in listings:
                inner = sorted(place.iterdir()) if place.is_dir() else []
                listings[place] = {textfiles.form(file.name): file for file in inner}
            place = listings[place].get(part) if place is not None else None
        if place is not None and _is_video(place.name):
            found[name] = place
    return found


def _reasons(folder: Path) -> Callable[[str], str]:
    """Why a name in a caption file has no video: a function that knows all files below the folder."""
    spelt = {textfiles.form(name): name for name in sorted(places.sizes(folder))}
    videos = [name for name in spelt if _is_video(posixpath.basename(name))]
    alike: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("in another case", str.casefold),
        ("with another suffix", lambda name: posixpath.splitext(name)[0].casefold()),
        ("in another folder", lambda name: posixpath.basename(name).casefold()),
    )
    known = [{key(name): spelt[name] for name in reversed(videos)} for _, key in alike]

    def reason(name: str) -> str:
        if name in spelt and posixpath.basename(name).startswith("."):
            return "expected a name without a dot before it, which files have that are not whole; rename it"
        if name in spelt:
            ending = posixpath.splitext(name)[1] or "no suffix"
            return (
                f"expected a video ({' '.join(VIDEO_SUFFIXES)}), found {ending}; convert it to .mp4"
            )
        for (how, key), index in zip(alike, known, strict=True):
            if found := index.get(key(name.replace("\\", "/"))):
                return f"expected a video of this name in {folder}, found {found!r} {how}; write that name"
        if places.is_url(name) or posixpath.isabs(name) or name.startswith("../"):
            return f"expected a path from {folder}, found one that leaves it; put the video there"
        return f"expected a video of this name in {folder}, found only its caption; add the file"

    return reason


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(textfiles.lines(textfiles.read(path)), start=1):
        if not line.strip():
            continue
        try:
            row = bounded.line(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: expected a JSON object, found bad JSON ({error.msg} at "
                f"column {error.colno}); correct the line"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: expected a JSON object, found another text ({error}); correct it"
            ) from None
        if not isinstance(row, dict):
            raise InputError(  # noqa: TRY004, bad input is a ValueError everywhere
                f"{path}:{number}: expected a JSON object, found {type(row).__name__}; write "
                '{"video": ..., "caption": ...}'
            )
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Lines keep their ends, which may lie within quotes.
    with io.StringIO(textfiles.read(path), newline="") as lines:
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


def _text(path: Path, line: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = "none" if value is None else f"{type(value).__name__} {value!r}"
        raise InputError(  # noqa: TRY004, bad input is a ValueError everywhere
            f"{path}:{line}: expected a text {key!r}, found {found}; add it"
        )
    if not value.strip():
        raise InputError(f"{path}:{line}: expected a {key}, found an empty one; write one")
    textfiles.check_unicode(f"{path}:{line}", value)
    return value.strip()
