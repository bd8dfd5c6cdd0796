"""Frames for one viewer as H.264, which is a small part of what JPEGs of them are."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from oneforcing_jax.data.playable import even

# No frame waits for a later one; a block is encoded faster than it is made.
_OPTIONS = {"preset": "veryfast", "tune": "zerolatency", "crf": "18", "profile": "baseline"}


class Encoder:
    """Encodes what one viewer gets, frame after frame, whichever frames it gets.

    Args:
      fps: frames per second.
    """

    def __init__(self, fps: float) -> None:
        self._rate = Fraction(fps).limit_denominator(1000)
        self._codec: av.VideoCodecContext | None = None
        self._count = 0

    def encode(self, jpeg: bytes) -> bytes:
        """The next frame, in the form that begins with start codes. The first one, and one of another size
        than the last, is whole and begins with the settings of the decoder."""
        with Image.open(io.BytesIO(jpeg)) as image:
            pixels = even(np.asarray(image)[None])[0]
        rows, columns, _ = pixels.shape
        if self._codec is None or (self._codec.width, self._codec.height) != (columns, rows):
            self._codec = av.CodecContext.create("libx264", "w")
            self._codec.width, self._codec.height = columns, rows
            self._codec.pix_fmt, self._codec.framerate = "yuv420p", self._rate
            self._codec.time_base = 1 / self._rate
            self._codec.options = _OPTIONS
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, self._count = self._count, self._count + 1
        return b"".join(bytes(packet) for packet in self._codec.encode(frame))
