"""Clips of video files at the size, length and rate that a store holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from oneforcing_jax.data.frames import Pictures, Shown, decoded, ending
from oneforcing_jax.data.video import ROUNDING, Clip
from oneforcing_jax.errors import InputError


def read_clip(path: str | Path, clip: Clip, log: Callable[[str], None] = print) -> np.ndarray:
    """The beginning of a video at another size and frame rate; see `Clips.read`."""
    return Clips(path, clip, log).read(0.0)


class Clips:
    """Clips of one file at another size and frame rate, in one pass while each begins after the last one.

    Args:
      path: of the file.
      clip: what each is brought to.
      log: is told that a transparent video lies on white.
    """

    def __init__(self, path: str | Path, clip: Clip, log: Callable[[str], None] = print) -> None:
        self._path, self._clip = path, clip
        self._pictures = Pictures(path, log)
        self._rest: Iterator[Shown] | None = None
        self._end = 0.0

    def read(self, start: float) -> np.ndarray:
        """One clip.

        Frame k is the one that a player shows k / fps seconds after the start. It is scaled (bicubic) until
        it covers the clip's rows and columns, and the middle is cut out.

        Args:
          start: seconds from the first frame.

        Returns:
          uint8 [clip.frames, clip.rows, clip.columns, 3].

        Raises:
          MissingInput: there is no such file.
          InputError: see `read_video`; a video that is too short.
        """
        clip, frames, starts = self._clip, list[np.ndarray](), list[float]()
        size = clip.rows, clip.columns
        before: Shown | None = None

        def show(shown: Shown, until: float) -> None:
            """Takes a frame for all times before it ends."""
            wanted = min(clip.frames, math.ceil((until - start) * clip.fps)) - len(frames)
            if wanted > 0:
                frames.extend([self._pictures.of(shown, size)] * wanted)

        rest = self._rest if self._rest and start >= self._end else decoded(self._path)
        self._rest = None
        for shown in rest:
            if before is not None:
                show(before, shown.start - ROUNDING)
                if len(frames) == clip.frames:
                    self._rest = itertools.chain((before, shown), rest)
                    self._end = start + (clip.frames - 1) / clip.fps
                    return np.stack(frames)
            before = shown
            starts = [*starts[-1:], shown.start]
        assert before is not None
        end = ending(starts, before)
        # What ends just where the last frame would begin is long enough: 5 s give 81 frames, 16 a second.
        show(before, end + ROUNDING)
        if len(frames) < clip.frames:
            raise InputError(
                f"{self._path}: expected {(clip.frames - 1) / clip.fps:.2f} s or more ({clip.frames} frames, "
                f"{clip.fps:g} a second), found {max(0.0, end - start):.2f} s; use a longer video"
            )
        return np.stack(frames)
