"""Video files to arrays and back, through PyAV.

Frames are uint8 [f, y, x, 3] in RGB order everywhere, turned as a player shows them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Set
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from oneforcing_jax.data import colour
from oneforcing_jax.data.frames import Pictures, Shown, Times, decoded, reason
from oneforcing_jax.data.origin import FIELD, UNSAID, Origin
from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places, room
from oneforcing_jax.system.files import unfinished

# Frames of a video that is read whole, from one look at the memory to the next.
_LOOK = 64
# Seconds that a time stamp may be off: some files keep milliseconds alone.
ROUNDING = 6e-4
# These are in the files that are written, in H.273's numbers.
_LIMITED, _BT709 = 1, 1
# With AVX-512 instructions libx264 gives other bytes for equal frames, in up to a tenth of all writes on a
# busy machine. With those of 2008 it gives the same on all machines.
_INSTRUCTIONS = {"x264-params": "asm=sse4.2"} if platform.machine() in ("x86_64", "AMD64") else {}


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a video is, or is brought to before it is encoded.

    Attributes:
      frames: how many; of a longer video those from the beginning.
      rows, columns: pixels.
      fps: frames per second.
    """

    frames: int
    rows: int
    columns: int
    fps: float


def read_video(path: str | Path, log: Callable[[str], None] = print) -> tuple[np.ndarray, Times]:
    """Decodes the video of a file.

    Args:
      path: a file in any container and codec that FFmpeg reads.
      log: is told that a transparent video lies on white.

    Returns:
      The frames, uint8 [f, y, x, 3], and when they are shown.

    Raises:
      MissingInput: there is no such file.
      InputError: the file is empty, is no video, is damaged, holds no frame, or would be read wrongly:
        interlaced, of high dynamic range, with time stamps that jump.
    """
    frames, starts = list[np.ndarray](), list[float]()
    last: Shown | None = None
    for image, shown in _seen(path, log):
        last = shown
        frames.append(image)
        starts.append(last.start)
        if len(frames) % _LOOK == 0:  # in the end they are copied into one array
            needed = len(frames) * frames[0].nbytes
            room.check_memory(f"{path}, {len(frames)} frames", needed, "cut the video")
    assert last is not None
    return np.stack(frames), Times.of(starts, last)


def frames_of(path: str | Path, log: Callable[[str], None] = print) -> Iterator[np.ndarray]:
    """Frames of a file one by one, uint8 [y, x, 3]; at least one.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    return (image for image, _ in _seen(path, log))


def _seen(path: str | Path, log: Callable[[str], None]) -> Iterator[tuple[np.ndarray, Shown]]:
    """Frames as they are seen, of one size."""
    pictures, size = Pictures(path, log), None
    for shown in decoded(path):
        size = size or shown.size
        if shown.size != size:
            raise _of_sizes(path, {size, shown.size})
        yield pictures.of(shown), shown


def measured(path: str | Path) -> Clip:
    """What a video is. All of it is decoded, so that damage is found, and no frame is kept.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    starts, sizes, last = list[float](), set[tuple[int, int]](), None
    for last in decoded(path):
        starts.append(last.start)
        sizes.add(last.size)
    assert last is not None
    if len(sizes) > 1:
        raise _of_sizes(path, sizes)
    return Clip(len(starts), *sizes.pop(), Times.of(starts, last).rate)


def at_rate(video: np.ndarray, times: Times, fps: float) -> np.ndarray:
    """Frames [f, y, x, 3] at a steady rate, from the beginning to the end, as `clips.read_clip` takes them.

    A frame that would be shown for less than a quarter of its time is not begun.
    """
    at = np.arange(max(1, math.ceil(times.end * fps - 0.25))) / fps
    return video[np.searchsorted(times.starts, at + ROUNDING, "right") - 1]


def _of_sizes(path: str | Path, sizes: Set[tuple[int, ...]]) -> InputError:
    found = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
    return InputError(f"{path}: expected frames of one size, found {found}; encode the video again")


class VideoWriter:
    """Streams frames into an H.264 mp4 file; a context manager.

    The frames go to a temporary file beside the target (on a disk, for one in a bucket), which takes the
    target's name when the `with` block ends well and is removed when it raises. A file that was already at
    `path` stays whole until then.

    Args:
      path: the target; its folder must exist.
      fps: frames per second.
      crf: H.264 quality, 0 (lossless in the chosen pixel format) to 51 (worst).
      full_chroma: store colour at full resolution (yuv444p). Tiny videos need it to keep their
        colours; few players other than FFmpeg show it. Otherwise the file is yuv420p, which
        every player shows and which needs even sizes.
      origin: what the file says of how it was made, in its metadata.

    Raises:
      InputError: a bad argument, or a target that cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        *,
        crf: int = 18,
        full_chroma: bool = False,
        origin: Origin = UNSAID,
    ) -> None:
        if not 0.1 <= fps <= 1000:
            raise InputError(f"expected 0.1 to 1000 frames per second, found {fps}; correct fps")
        if not 0 <= crf <= 51:
            raise InputError(f"expected a crf in 0..51, found {crf}; lower is better")
        self._path = places.path(path)
        beside = Path(tempfile.gettempdir()) if places.is_url(path) else self._path.parent
        self._temporary = beside / unfinished(self._path)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._crf, self._origin = crf, origin
        self._pixels = "yuv444p" if full_chroma else "yuv420p"
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._size: tuple[int, int] | None = None
        self._converter = VideoReformatter()

    def __enter__(self) -> Self:
        if self._path.is_dir():
            raise InputError(f"cannot write {self._path}: it is a folder; name a file")
        try:
            self._container = av.open(str(self._temporary), "w", format="mp4")
            self._container.metadata[FIELD] = self._origin.text
        except (OSError, av.FFmpegError) as error:
            raise InputError(
                f"cannot write {self._path}: {reason(error)}; name a file in a folder that exists "
                "and can be written"
            ) from error
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 [f, y, x, 3]; any number of them, one size a file.

        Raises:
          InputError: another shape or dtype, a size that changed, odd sizes in yuv420p, or a
            disk that is full.
        """
        if self._container is None:
            raise InputError(f"{self._path}: write outside `with`; use `with VideoWriter(...)`")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise InputError(
                f"{self._path}: expected frames uint8 [f, y, x, 3], found {frames.dtype} "
                f"{list(frames.shape)}; convert them first"
            )
        if len(frames) == 0:
            return
        rows, columns = frames.shape[1:3]
        if self._size is None:
            self._open_stream(rows, columns)
        elif self._size != (rows, columns):
            raise InputError(
                f"{self._path}: expected frames of {self._size[0]}x{self._size[1]} as before, "
                f"found {rows}x{columns}; write one size a file"
            )
        try:
            matrix = colour.usual(rows, columns)
            for frame in frames:
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                self._encode(
                    self._converter.reformat(image, format=self._pixels, dst_colorspace=matrix)
                )
        except (OSError, av.FFmpegError) as error:
            raise InputError(f"cannot write {self._path}: {reason(error)}") from error

    def _open_stream(self, rows: int, columns: int) -> None:
        if rows < 2 or columns < 2:
            raise InputError(f"{self._path}: expected 2x2 pixels or more, found {rows}x{columns}")
        if self._pixels == "yuv420p" and (rows % 2 or columns % 2):
            raise InputError(
                f"{self._path}: expected even sizes for yuv420p, found {rows}x{columns}; crop or "
                "pad the frames, or pass full_chroma=True"
            )
        assert self._container is not None
        stream = self._container.add_stream(
            "libx264", rate=self._rate, options={"crf": str(self._crf), **_INSTRUCTIONS}
        )
        stream.width, stream.height, stream.pix_fmt = columns, rows, self._pixels
        context = stream.codec_context
        context.colorspace, context.color_range = colour.usual(rows, columns), _LIMITED
        context.color_primaries = context.color_trc = _BT709
        self._stream, self._size = stream, (rows, columns)

    def _encode(self, image: av.VideoFrame | None) -> None:
        assert self._container is not None and self._stream is not None
        for packet in self._stream.encode(image):
            self._container.mux(packet)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        container, self._container = self._container, None
        assert container is not None
        try:
            if kind is None:
                if self._stream is None:
                    raise InputError(f"{self._path}: expected frames, found none; write some first")
                for packet in self._stream.encode(None):
                    container.mux(packet)
                container.close()
                if places.is_url(self._path):
                    places.write(self._path, self._temporary.read_bytes())
                else:
                    os.replace(self._temporary, self._path)
        except (OSError, av.FFmpegError) as failure:
            raise InputError(f"cannot write {self._path}: {reason(failure)}") from failure
        finally:
            if self._temporary.exists():
                _close_quietly(container)
                self._temporary.unlink()


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    *,
    crf: int = 18,
    full_chroma: bool = False,
    origin: Origin = UNSAID,
) -> None:
    """Writes frames, uint8 [f, y, x, 3], as one mp4 file; see `VideoWriter`.

    Raises:
      InputError: bad frames, or a target that cannot be written.
    """
    with VideoWriter(path, fps, crf=crf, full_chroma=full_chroma, origin=origin) as writer:
        writer.write(frames)


def _close_quietly(container: av.container.OutputContainer) -> None:
    # The file is about to be removed, so it does not matter that the container cannot be finished.
    with contextlib.suppress(OSError, ValueError, av.FFmpegError):
        container.close()
