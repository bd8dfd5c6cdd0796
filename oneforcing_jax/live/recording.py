"""The frames of a session that are kept, and the video file that is made of them."""

from __future__ import annotations

import collections
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from oneforcing_jax.data.origin import Origin
from oneforcing_jax.data.playable import even
from oneforcing_jax.data.video import VideoWriter

# Bytes of frames that a session keeps; of more the oldest go.
MOST_BYTES = 128 << 20
# As of JPEG; colours stay at full resolution, for small frames need it.
QUALITY = 92
_CRF = 12


class Shown(NamedTuple):
    """A frame as it is sent.

    Attributes:
      serial: among all frames of the session, whatever was begun anew.
      epoch: grows when a prompt takes effect or the video begins anew.
      number: in the video.
      time: seconds from the video's beginning at which it is to be seen.
      jpeg: the picture.
    """

    serial: int
    epoch: int
    number: int
    time: float
    jpeg: bytes


def to_jpeg(pixels: np.ndarray) -> bytes:
    """A frame uint8 [y, x, 3] as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


class Recording:
    """The newest frames of a video, within `MOST_BYTES`. One thread appends, and any may read."""

    def __init__(self) -> None:
        self._frames: collections.deque[Shown] = collections.deque()
        self.bytes = 0

    def append(self, frame: Shown) -> None:
        """Adds the newest frame."""
        self._frames.append(frame)
        self.bytes += len(frame.jpeg)
        while self.bytes > MOST_BYTES and len(self._frames) > 1:
            self.bytes -= len(self._frames.popleft().jpeg)

    @property
    def count(self) -> int:
        """Frames that are kept."""
        return len(self._frames)

    @property
    def newest(self) -> Shown | None:
        """The last frame; None: there is none."""
        try:
            return self._frames[-1]
        except IndexError:
            return None

    def at(self, serial: int) -> Shown | None:
        """A frame by its serial number, or the oldest after it; None: it is not made yet."""
        try:
            first = self._frames[0].serial
            return self._frames[max(0, serial - first)]
        except IndexError:
            return None

    def frames(self) -> list[Shown]:
        """All that are kept."""
        return list(self._frames)


def mp4(frames: Iterable[Shown], fps: float, origin: Origin) -> bytes:
    """A video file that browsers play, which says how it was made."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        with VideoWriter(file, fps, crf=_CRF, origin=origin) as writer:
            for frame in frames:
                with Image.open(io.BytesIO(frame.jpeg)) as image:
                    writer.write(even(np.asarray(image)[None]))
        return file.read_bytes()
