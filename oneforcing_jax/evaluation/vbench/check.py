"""What of a folder of videos VBench would find, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from oneforcing_jax.data.video import Clip, measured
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation.vbench.suite import Suite, names
from oneforcing_jax.system.textfiles import form

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Found:
    """What is wrong, by file name.

    Attributes:
      missing: not there.
      extra: there, and no video of a prompt of the list.
      wrong: another number of frames, size or rate, or unreadable, each with what it is.
      whole: how many videos are as they should be.
    """

    missing: Sequence[str]
    extra: Sequence[str]
    wrong: Mapping[str, str]
    whole: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.extra or self.wrong)

    def lines(self) -> Iterator[str]:
        """A line for each file with something wrong, and one with the counts."""
        yield from (f"missing: {name}" for name in self.missing)
        yield from (f"extra: {name}" for name in self.extra)
        yield from (f"wrong: {name}: {what}" for name, what in self.wrong.items())
        yield (
            f"{self.whole:,} videos as expected, {len(self.missing):,} missing, {len(self.wrong):,} wrong, "
            f"{len(self.extra):,} extra files"
        )


def listed(folder: Path) -> set[str]:
    """The names in a folder, as its file system spells them.

    Raises:
      MissingInput: there is no such folder.
    """
    if not folder.is_dir():
        raise MissingInput(f"--videos: expected a folder of videos, found none at {folder}")
    return {path.name for path in folder.iterdir()}


def respelt(expected: Sequence[str], present: Collection[str]) -> dict[str, str]:
    """Expected names that are there in another Unicode form, in which VBench does not find them."""
    spelt = {form(name): name for name in present}
    absent = (name for name in expected if name not in present)
    return {name: spelt[form(name)] for name in absent if form(name) in spelt}


def rename(name: str, found: str) -> str:
    """What to do about a file that is spelt in another Unicode form."""
    return f"found it as {ascii(found)}, where VBench does not find it; rename it to {ascii(name)}"


def check(suite: Suite, wanted: Sequence[str], samples: int, folder: Path, clip: Clip) -> Found:
    """Compares a folder with the list; every expected video is decoded.

    Args:
      suite: the whole list.
      wanted: prompts whose videos are expected.
      samples: of each.
      folder: of the videos.
      clip: what each video should be.
    """
    present, expected = listed(folder), names(wanted, samples)
    known = set(suite.first())
    # VBench takes the ending of all videos from the first file that it is shown: nothing else may lie there.
    extra = [name for name in sorted(present) if re.sub(r"-\d+\.mp4$", "", name) not in known]
    others = respelt(expected, present)
    extra = [name for name in extra if name not in others.values()]
    there = [name for name in expected if name in present]
    pool = ThreadPoolExecutor(_THREADS)
    try:
        said = pool.map(lambda name: _wrong(folder / name, clip), there)
        bar = tqdm(said, total=len(there), unit="video", disable=None)
        wrong = {name: what for name, what in zip(there, bar, strict=True) if what}
        whole = len(there) - len(wrong)
    finally:  # Ctrl-C does not wait for those that are still to be decoded
        pool.shutdown(cancel_futures=True)
    missing = [name for name in expected if name not in present and name not in others]
    return Found(
        missing, extra, wrong | {n: rename(n, found) for n, found in others.items()}, whole
    )


def _wrong(path: Path, expected: Clip) -> str:
    """What is wrong with a video; "" where nothing is."""
    try:
        found = measured(path)
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    if abs(found.fps - expected.fps) < 0.01:
        found = dataclasses.replace(found, fps=expected.fps)
    return "" if found == expected else f"expected {_words(expected)}, found {_words(found)}"


def _words(clip: Clip) -> str:
    return f"{clip.frames} frames of {clip.rows}x{clip.columns} at {clip.fps:.4g} a second"
