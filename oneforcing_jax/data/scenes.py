"""Recordings to clips: where scenes begin, and which clips of them are worth training on.

Every frame is made as small as a stamp. A scene begins where a frame differs from the one before it by much
more than those around it do; so a hard cut is found, a slow fade is not. Clips follow each other through a
scene from its beginning. Left out, each with its reason, are scenes shorter than a clip, stills and what
nearly equals a clip that came before.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from oneforcing_jax.data.captions import Pair
from oneforcing_jax.data.frames import decoded, ending
from oneforcing_jax.data.video import ROUNDING, Clip
from oneforcing_jax.errors import InputError

# In the description of a store whose clips are chosen so; another number chooses others.
SAID = {"scenes": 1}
# Rows and columns of a stamp, and pixels of it in one of a print's, each way.
_STAMP, _CELL = (32, 48), 4
# A cut: a mean difference of stamps, of 255, and as many times the mean of that many frames on each side.
_CUT, _TIMES, _AROUND = 20.0, 3.0, 4
# Mean differences of prints, of 255: what differs less from its first frame is a still, and what differs less
# from another clip in its first, middle and last frame is the same.
_STILL, _SAME = 1.5, 3.0


class Found(NamedTuple):
    """A clip of a recording: seconds at which it begins, why it is left out, and what it looks like, [288];
    None: of a file that cannot be read."""

    start: float
    reason: str = ""
    looks: np.ndarray | None = None


class _Looks(NamedTuple):
    """All frames of a recording.

    Attributes:
      starts: [f] seconds.
      end: of the last.
      changes: [f] mean differences from the frame before, of 255; 0 of the first.
      prints: [f, 96] grey.
    """

    starts: np.ndarray
    end: float
    changes: np.ndarray
    prints: np.ndarray


def clips(samples: Sequence[Pair], clip: Clip) -> list[Pair]:
    """The clips of all recordings, in the order of the samples; a recording's caption is that of its clips.

    Args:
      samples: from `captions.pair`; one without video or caption stays as it is.
      clip: frames and rate of each.
    """
    kept, chosen = _Kept(), list[Pair]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scanned = pool.map(lambda sample: _scanned(sample, clip), samples)
        for sample, found in zip(samples, tqdm(scanned, "scenes", len(samples)), strict=True):
            for start, reason, looks in found:
                name = f"{sample.name} at {start:.2f} s"
                if not reason and looks is not None:
                    reason = kept.repeats(name, looks)
                said = f"{name}: {reason}" if reason and looks is not None else reason
                chosen.append(sample._replace(reason=said, start=start))
    return chosen


class _Kept:
    """The clips that are kept, by how bright their three prints are. Of two clips that are the same
    these differ by less than a step, so that few are compared."""

    def __init__(self) -> None:
        self._near = dict[tuple[int, ...], list[tuple[str, np.ndarray]]]()

    def repeats(self, name: str, looks: np.ndarray) -> str:
        """Why a clip is left out beside the others; "": it is kept."""
        place = tuple(int(x // (3 * _SAME)) for x in looks.reshape(3, -1).mean(1))
        around = itertools.product(*((x - 1, x, x + 1) for x in place))
        near = [other for at in around for other in self._near.get(at, ())]
        apart = [float(np.abs(other - looks).mean()) for _, other in near]
        if apart and (least := min(apart)) < _SAME:
            other, _ = near[apart.index(least)]
            found = f"one that differs by {least:.1f} of 255 from {other}"
            return f"expected a clip unlike the others, found {found}"
        self._near.setdefault(place, []).append((name, looks))
        return ""


def _scanned(sample: Pair, clip: Clip) -> list[Found]:
    if sample.video is None or sample.caption is None:
        return [Found(0.0, sample.reason)]
    try:
        return of(sample.video, clip)
    except (InputError, OSError) as error:
        return [Found(0.0, str(error))]


def of(path: Path, clip: Clip) -> list[Found]:
    """The clips of one recording.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    looks = _looks(path)
    cuts = _cuts(looks.changes)
    firsts = [0, *cuts]
    ends = [*(float(looks.starts[cut]) for cut in cuts), looks.end + 2 * ROUNDING]
    return [
        found
        for first, end in zip(firsts, ends, strict=True)
        for found in _scene(looks, float(looks.starts[first]), end, clip)
    ]


def _scene(looks: _Looks, start: float, end: float, clip: Clip) -> list[Found]:
    """The clips of a scene, one after the other; what is left at its end is in none."""
    shown, found = (clip.frames - 1) / clip.fps, list[Found]()
    while start + shown < end - ROUNDING:
        at = start + shown * np.array([0.0, 0.5, 1.0]) + ROUNDING
        first, middle, last = np.searchsorted(looks.starts, at, "right") - 1
        prints = looks.prints[first : last + 1]
        moved = float(np.abs(prints - prints[0]).mean(1).max())
        reason = (
            f"expected a clip that moves, found one that changes by {moved:.1f} of 255"
            if moved < _STILL
            else ""
        )
        found.append(Found(start, reason, looks.prints[[first, middle, last]].reshape(-1)))
        # The next begins with a frame of the recording.
        after = np.searchsorted(looks.starts, start + clip.frames / clip.fps - ROUNDING)
        start = float(looks.starts[after]) if after < len(looks.starts) else end
    short = f"expected a scene of {shown:.2f} s or more, found {end - start:.2f} s"
    return found or [Found(start, short, looks.prints[:0])]


def _looks(path: Path) -> _Looks:
    """What all frames look like, in one pass."""
    converter = VideoReformatter()
    starts, changes, prints = list[float](), list[float](), list[np.ndarray]()
    before: np.ndarray | None = None
    rows, columns = _STAMP
    for shown in decoded(path):
        small = converter.reformat(
            shown.frame, width=columns, height=rows, format="rgb24", interpolation="AREA"
        )
        stamp = small.to_ndarray().astype(np.float32)
        changes.append(0.0 if before is None else float(np.abs(stamp - before).mean()))
        cells = stamp.reshape(rows // _CELL, _CELL, columns // _CELL, _CELL, 3)
        prints.append(cells.mean((1, 3, 4)).reshape(-1))
        starts.append(shown.start)
        before = stamp
    end = ending(starts[-2:], shown)
    return _Looks(np.array(starts), end, np.array(changes), np.stack(prints))


def _cuts(changes: np.ndarray) -> list[int]:
    """Numbers of the frames with which a scene begins, but for the first."""
    found = []
    for i in np.flatnonzero(changes > _CUT):
        around = changes[max(1, i - _AROUND) : i + _AROUND + 1]
        others = (around.sum() - changes[i]) / max(1, len(around) - 1)
        if changes[i] > _TIMES * others:
            found.append(int(i))
    return found
