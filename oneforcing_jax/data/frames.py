"""Decoded frames of a video file: which stream, when each frame is shown, and how it lies on the screen."""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter

from oneforcing_jax.data import colour
from oneforcing_jax.data.colour import Sites
from oneforcing_jax.data.resize import cover, middle
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import places

# Frames a second that a header can mean: what lies beyond counts ticks of a clock.
_RATES = (0.1, 480.0)
# Without any: of a file that numbers its frames and says no more.
_USUAL = 25.0
# Seconds from a frame to the next, at most. Formats of broadcasts have clocks that jump; in others a slide
# may stand for long.
_GAP, _GAP_OF_BROADCASTS = 60.0, 2.0
_BROADCAST = 0x0200  # AVFMT_TS_DISCONT
# Where encoders of these lay colour that do not say it in their streams.
_SITES = {"mjpeg": colour.CENTRE, "mpeg1video": colour.CENTRE, "dvvideo": colour.TOP_LEFT}
# What FFmpeg's reader of headers prints of H.264 and HEVC, and of AV1, whose numbers are others.
_SAID = re.compile(r"(chroma_sample_loc_type_top_field|chroma_sample_position)\s+[01]+ = (\d)")


class Screen(NamedTuple):
    """How stored frames become those that are shown.

    Attributes:
      aspect: width of a pixel, in heights.
      turned: rows become columns; then
      flips: rows and columns are reversed, each or not.
    """

    aspect: Fraction = Fraction(1)
    turned: bool = False
    flips: tuple[bool, bool] = (False, False)

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of a stored frame as it is shown; none becomes fewer."""
        wide = (rows, round(columns * self.aspect))
        tall = (round(rows / self.aspect), columns)
        shown = wide if self.aspect >= 1 else tall
        return shown[::-1] if self.turned else shown

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """A stored frame [y, x, c] as it is shown."""
        frame = frame.swapaxes(0, 1) if self.turned else frame
        return frame[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


class Shown(NamedTuple):
    """A decoded frame.

    Attributes:
      frame: as it is stored.
      start: seconds from the first frame's beginning.
      length: seconds that it is shown for, as the file says; None: it does not.
      rate: frames a second that the file's header or its time stamps say; None: they do not.
      screen, sites: how it is shown, and where its colour lies.
    """

    frame: av.VideoFrame
    start: float
    length: float | None
    rate: float | None
    screen: Screen
    sites: Sites

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns on the screen."""
        return self.screen.size(self.frame.height, self.frame.width)


class Times(NamedTuple):
    """When frames are shown, in seconds.

    Attributes:
      starts: [f], of each; it is shown until the next one's, and the last until the end.
      end: of the last.
      rate: frames a second, on the average where it varies.
    """

    starts: np.ndarray
    end: float
    rate: float

    @classmethod
    def of(cls, starts: Sequence[float], last: Shown) -> Times:
        """The times of a file's frames, the last of which is given."""
        end, span = ending(starts, last), starts[-1] - starts[0]
        if not span:
            return cls(np.array(starts), end, 1 / (end - starts[-1]))
        # A header's rate is exact where time stamps are rounded, and wrong where it counts something else.
        counted = (len(starts) - 1) / span
        said = last.rate or 0.0
        return cls(np.array(starts), end, said if abs(said / counted - 1) < 0.01 else counted)


def ending(starts: Sequence[float], last: Shown) -> float:
    """Seconds at which the last frame ends. Where the file does not say, or says a mere tick, it is shown as
    long as the one before it."""
    if len(starts) == 1:
        return starts[-1] + (last.length or 1 / (last.rate or _USUAL))
    gap = starts[-1] - starts[-2]
    return starts[-1] + (last.length if last.length and last.length >= gap / 2 else gap)


def decoded(path: str | Path) -> Generator[Shown]:
    """Frames of a file; at least one.

    Raises:
      MissingInput: there is no such file.
      InputError: the file is empty, is no video, is damaged, or is one that would be read wrongly.
    """
    path = places.path(path)
    if not path.is_file():
        raise MissingInput(f"no video file at {path}; check the path")
    if places.size(path) == 0:
        raise InputError(f"{path}: expected a video, found zero bytes; copy or render it again")
    try:
        content = path.read_bytes() if places.is_url(path) else None

        def opened() -> av.container.InputContainer:
            return av.open(str(path) if content is None else io.BytesIO(content), "r")

        with opened() as container:
            if rate := _rate(video_stream(container)):
                yield from _shown(container, rate)
                return
            rate = _counted(container)
        with opened() as container:  # the packets were read to their end
            yield from _shown(container, rate)
    except InputError as error:
        raise InputError(f"{path}: expected a readable video, found: {error}") from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InputError(
            f"{path}: expected a readable video, found: {reason(error)}; replace or remove it"
        ) from error


def _rate(stream: av.VideoStream) -> float | None:
    """Frames a second that a header says; None where it says nothing, or counts ticks."""
    said = (stream.average_rate, stream.guessed_rate)
    return next((float(r) for r in said if r and _RATES[0] <= r <= _RATES[1]), None)


def _counted(container: av.container.InputContainer) -> float | None:
    """The same from the time stamps of all packets."""
    packets = container.demux(video_stream(container))
    stamps = [float(p.pts * p.time_base) for p in packets if p.pts is not None]
    span = max(stamps, default=0.0) - min(stamps, default=0.0)
    return (len(stamps) - 1) / span if span else None


def _shown(container: av.container.InputContainer, rate: float | None) -> Iterator[Shown]:
    stream = video_stream(container)
    longest = _GAP_OF_BROADCASTS if container.format.flags & _BROADCAST else _GAP
    screen, sites, clock = Screen(_aspect(stream)), _sites(stream), _Clock(rate or _USUAL, longest)
    clear = stream.metadata.get("alpha_mode") == "1"
    count = 0
    for count, frame in enumerate(container.decode(stream), start=1):
        if frame.is_corrupt:
            raise InputError(f"damage in frame {count - 1}; replace or remove it")
        colour.check(frame)
        if clear and not any(part.is_alpha for part in frame.format.components):
            raise InputError(
                "transparency that its decoder does not give; lay it on a ground first "
                "(ffmpeg -c:v libvpx-vp9 -i IN, and the filter overlay)"
            )
        length = float((frame.duration or 0) * (frame.time_base or 0))
        screen = _turned(frame, screen)
        yield Shown(frame, clock.start(frame.time), length or None, rate, screen, sites)
    if not count:
        raise InputError("no frame in it; replace or remove it")


class _Clock:
    """Time stamps to seconds from the first frame.

    Those that tremble about a steady rate, by less than a quarter of a frame, are steady: some files keep
    milliseconds alone, and what records a screen is late now and then.
    """

    def __init__(self, rate: float, longest: float) -> None:
        self._rate, self._longest, self._steady = rate, longest, True
        self._first = self._last = self._start = -math.inf
        self._number = -1

    def start(self, stamp: float | None) -> float:
        """The time at which the next frame begins.

        Raises:
          InputError: it is before the one before it, or long after.
        """
        begun = self._last > -math.inf
        stamp = (self._last + 1 / self._rate if begun else 0.0) if stamp is None else stamp
        if not begun:
            self._first = self._last = stamp
        gap, self._last = stamp - self._last, stamp
        since = stamp - self._first
        if not 0 <= gap <= self._longest:
            raise InputError(
                f"time stamps that jump by {gap:.2f} s at {since - gap:.2f} s; cut it or encode it again"
            )
        number, before = round(since * self._rate), self._number
        self._steady &= number > before and abs(number - since * self._rate) < 0.25
        self._number = number
        self._start = max(self._start, number / self._rate if self._steady else since)
        return self._start


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player shows, which no cover picture is.

    Raises:
      InputError: there is none, or one of a codec that FFmpeg does not know.
    """
    covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not moving:
        alone = "nothing but a cover picture" if container.streams.video else "no video stream"
        raise InputError(f"{alone}; replace or remove it")
    best = container.streams.best("video")
    shown = best if best in moving else moving[0]
    if getattr(shown, "codec_context", None) is None:  # PyAV's types say that it always is there
        raise InputError("a codec that FFmpeg does not know; convert or remove it")
    return shown


def _aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel, in heights; 1 where none is said, or one that nobody means."""
    said = stream.sample_aspect_ratio
    return said if said and Fraction(1, 16) <= said <= 16 else Fraction(1)


def _turned(frame: av.VideoFrame, before: Screen) -> Screen:
    """The screen of a frame by its display matrix, x' = a x + c y and y' = b x + d y, to a quarter turn."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return before
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if turned else (a, d)
    return Screen(before.aspect, turned, (down < 0, right < 0))


# FFmpeg's level of logging belongs to the process.
_LOGGING = threading.Lock()


def _sites(stream: av.VideoStream) -> Sites:
    """Where colour lies. PyAV does not say it, and FFmpeg's reader of headers prints it."""
    codec = stream.codec_context.name
    with _LOGGING:
        level = av.logging.get_level()
        try:
            av.logging.set_level(av.logging.INFO)
            with (
                av.logging.Capture(False) as lines,
                contextlib.suppress(ValueError, av.FFmpegError),
            ):
                BitStreamFilterContext("trace_headers", stream)
        finally:
            av.logging.set_level(level)
    found = next((match for line in lines if (match := _SAID.search(line[2]))), None)
    if not found:
        return _SITES.get(codec, colour.LEFT)
    if "position" in found[1]:  # AV1: 1 is left, 2 is top left
        return colour.TOP_LEFT if found[2] == "2" else colour.LEFT
    return colour.SITES[min(int(found[2]), len(colour.SITES) - 1)]


class Pictures:
    """The frames of a file as they are seen on a screen; says once that they lie on white.

    Args:
      path: of the file.
      log: is told where frames are transparent.
    """

    def __init__(self, path: str | Path, log: Callable[[str], None]) -> None:
        self._path, self._log, self._said = path, log, False
        self._converter = VideoReformatter()

    def of(self, shown: Shown, least: tuple[int, int] | None = None) -> np.ndarray:
        """A frame, uint8 [y, x, 3].

        Args:
          shown: the frame.
          least: rows and columns that it is scaled to cover, and of which it is the middle; None: its own.
        """
        rows, columns = cover(*shown.size, least) if least else shown.size
        stored = (columns, rows) if shown.screen.turned else (rows, columns)
        image, clear = colour.rgb(shown.frame, *stored, shown.sites, self._converter)
        if clear and not self._said:
            self._log(f"{self._path}: transparent, laid on white")
        self._said |= clear
        return middle(shown.screen.upright(image), *(least or (rows, columns)))


def reason(error: BaseException) -> str:
    """The first line of an error, without the file name that FFmpeg and the OS append."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
