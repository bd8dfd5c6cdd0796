"""Clips as browsers play them: H.264 in mp4, colour at half resolution, nothing beside the frames."""

from __future__ import annotations

import contextlib
import tempfile
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from oneforcing_jax.data.frames import Screen, decoded, video_stream
from oneforcing_jax.data.video import at_rate, read_video, write_video

# Below this many rows and columns pixels are doubled: a colour for every four pixels is then one for every
# pixel of the original.
SMALL = 256
_CRF = 12


def playable(path: Path) -> bytes:
    """An mp4 file that a browser plays, without the original's metadata and sound.

    The whole clip is decoded first. What browsers play is copied; other clips are encoded again.

    Raises:
      MissingInput, InputError: no such file, or one that is damaged or no video.
    """
    frames, rate = steady(path)
    with contextlib.closing(decoded(path)) as shown:
        plain = next(shown).screen == Screen()
    with av.open(str(path)) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if plain and context.name == "h264" and context.pix_fmt == "yuv420p":
            return _copied(container, stream)
    return encoded(frames, rate)


def steady(path: Path) -> tuple[np.ndarray, float]:
    """Frames of a video, uint8 [f, y, x, 3], at its average rate, and that.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    frames, times = read_video(path)
    return at_rate(frames, times, times.rate), times.rate


def encoded(frames: np.ndarray, fps: float) -> bytes:
    """Frames, uint8 [f, y, x, 3], as such a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, even(frames), fps, crf=_CRF)
        return file.read_bytes()


def even(frames: np.ndarray) -> np.ndarray:
    """Frames, uint8 [f, y, x, 3], as such a file can hold them: small ones doubled, odd sizes with a row or
    column more."""
    if max(frames.shape[1:3]) < SMALL:
        frames = frames.repeat(2, 1).repeat(2, 2)
    pads = [(0, 0), *((0, size % 2) for size in frames.shape[1:3]), (0, 0)]
    return np.pad(frames, pads, mode="edge")


def _copied(source: av.container.InputContainer, stream: av.VideoStream) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as target:
        copy = target.add_stream_from_template(stream)
        copy.metadata.clear()
        for packet in source.demux(stream):
            if packet.dts is not None:  # None: the mark of the end
                packet.stream = copy
                target.mux(packet)
    return file.getvalue()
