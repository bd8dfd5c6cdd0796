"""Video files to arrays and back, through PyAV.

Frames are uint8 [f, y, x, 3] in RGB order everywhere, turned as a player shows them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import platform
import tempfile
from collections.abc import Iterator, Set
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from oneforcing_jax import places, room
from oneforcing_jax.data.origin import FIELD, UNSAID, Origin
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.files import unfinished

# Frames of a video that is read whole, from one look at the memory to the next.
_LOOK = 64
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


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Decodes the first video stream of a file.

    Args:
      path: a file in any container and codec that FFmpeg reads.

    Returns:
      The frames, uint8 [f, y, x, 3], and the average frame rate in frames per second.

    Raises:
      MissingInput: there is no such file.
      InputError: the file is empty, is no video, is damaged, or holds no frame.
    """
    frames, rate = list[np.ndarray](), 0.0
    for frame, average in frames_of(path):
        rate = average
        frames.append(frame)
        if len(frames) % _LOOK == 0:  # in the end they are copied into one array
            needed = len(frames) * frames[0].nbytes
            room.check_memory(f"{path}, {len(frames)} frames", needed, "cut the video")
    return np.stack(frames), rate


def frames_of(path: str | Path) -> Iterator[tuple[np.ndarray, float]]:
    """Frames of a file one by one, uint8 [y, x, 3], each with the average frame rate; at least one.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    converter, first = VideoReformatter(), None
    for frame, _, rate in _decode(path):
        image = _upright(converter.reformat(frame, format="rgb24").to_ndarray(), frame)
        first = first or image.shape
        if image.shape != first:
            raise _of_sizes(path, {first, image.shape})
        yield image, rate


def measured(path: str | Path) -> Clip:
    """What a video is. All of it is decoded, so that damage is found, and no frame is kept.

    Raises:
      MissingInput, InputError: see `read_video`.
    """
    count, sizes, rate = 0, set[tuple[int, int]](), 0.0
    for frame, _, average in _decode(path):
        turned = frame.rotation % 180 != 0
        sizes.add((frame.width, frame.height) if turned else (frame.height, frame.width))
        count, rate = count + 1, average
    if len(sizes) > 1:
        raise _of_sizes(path, sizes)
    return Clip(count, *sizes.pop(), rate)


def read_clip(path: str | Path, clip: Clip) -> np.ndarray:
    """The beginning of a video at another size and frame rate.

    Frame k is the one that a player shows at k / fps seconds. It is scaled (bicubic) until it covers
    the clip's rows and columns, and the middle is cut out.

    Returns:
      uint8 [clip.frames, clip.rows, clip.columns, 3].

    Raises:
      MissingInput: there is no such file.
      InputError: an unreadable video, or one that is too short.
    """
    converter, frames = VideoReformatter(), list[np.ndarray]()
    shown: av.VideoFrame | None = None
    end = 0.0
    for frame, time, rate in _decode(path):
        # A frame is shown until the next begins; a microsecond forgives the rounding of time stamps.
        before = len(frames)
        while shown is not None and len(frames) < clip.frames and _at(frames, clip) < time - 1e-6:
            new = len(frames) == before
            frames.append(_cover(converter, shown, clip) if new else frames[-1])
        if len(frames) == clip.frames:
            return np.stack(frames)
        shown, end = frame, time + 1 / rate
    # A video that ends just where the last frame would begin is long enough: 5 s give 81 frames, 16 a second.
    while shown and len(frames) < clip.frames and _at(frames, clip) < end + 1e-6:
        frames.append(_cover(converter, shown, clip))
    if len(frames) < clip.frames:
        raise InputError(
            f"{path}: expected {(clip.frames - 1) / clip.fps:.2f} s or more ({clip.frames} frames, "
            f"{clip.fps:g} a second), found {end:.2f} s; use a longer video"
        )
    return np.stack(frames)


def cover(rows: int, columns: int, clip: Clip) -> tuple[int, int]:
    """Rows and columns to which a frame is scaled so that it just covers the clip's."""
    scale = max(clip.rows / rows, clip.columns / columns)
    return max(clip.rows, round(rows * scale)), max(clip.columns, round(columns * scale))


def _at(frames: list[np.ndarray], clip: Clip) -> float:
    """Seconds from the beginning to the next frame of a clip."""
    return len(frames) / clip.fps


def _cover(converter: VideoReformatter, frame: av.VideoFrame, clip: Clip) -> np.ndarray:
    turned = frame.rotation % 180 != 0
    height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
    rows, columns = cover(height, width, clip)
    if turned:
        width, height = rows, columns
    else:
        width, height = columns, rows
    scaled = converter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation="BICUBIC"
    )
    image = _upright(scaled.to_ndarray(), frame)
    top, left = (rows - clip.rows) // 2, (columns - clip.columns) // 2
    return image[top : top + clip.rows, left : left + clip.columns]


def _upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turns an image as the display matrix of its file says."""
    return np.rot90(image, frame.rotation // 90)


def _of_sizes(path: str | Path, sizes: Set[tuple[int, ...]]) -> InputError:
    found = " and ".join(f"{rows}x{columns}" for rows, columns, *_ in sorted(sizes))
    return InputError(f"{path}: expected frames of one size, found {found}; encode the video again")


def _decode(path: str | Path) -> Iterator[tuple[av.VideoFrame, float, float]]:
    """Frames of a file, seconds since its first frame, and the average frame rate; at least one."""
    path = places.path(path)
    if not path.is_file():
        raise MissingInput(f"no video file at {path}; check the path")
    if places.size(path) == 0:
        raise InputError(f"{path}: expected a video, found zero bytes; copy or render it again")
    count, first = 0, None
    try:
        source = io.BytesIO(path.read_bytes()) if places.is_url(path) else str(path)
        with av.open(source, "r") as container:
            if not container.streams.video:
                raise InputError("no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise InputError("no frame rate")
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise InputError(f"damage in frame {count}")
                time = count / float(rate) if frame.time is None else frame.time
                first = time if first is None else first
                yield frame, time - first, float(rate)
                count += 1
            if not count:
                raise InputError("no frame in it")
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InputError(
            f"{path}: expected a readable video, found: {_reason(error)}; replace or remove it"
        ) from error


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

    def __enter__(self) -> Self:
        if self._path.is_dir():
            raise InputError(f"cannot write {self._path}: it is a folder; name a file")
        try:
            self._container = av.open(str(self._temporary), "w", format="mp4")
            self._container.metadata[FIELD] = self._origin.text
        except (OSError, av.FFmpegError) as error:
            raise InputError(
                f"cannot write {self._path}: {_reason(error)}; name a file in a folder that exists "
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
            for frame in frames:
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                self._encode(image)
        except (OSError, av.FFmpegError) as error:
            raise InputError(f"cannot write {self._path}: {_reason(error)}") from error

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
            raise InputError(f"cannot write {self._path}: {_reason(failure)}") from failure
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


def _reason(error: BaseException) -> str:
    """The first line of an error, without the file name that FFmpeg and the OS append."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
