"""What goes over a connection: messages of JSON in, frames out, and the limits of both."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from oneforcing_jax.data.images import decode_image, fit
from oneforcing_jax.errors import InputError, Refused
from oneforcing_jax.live.recording import Shown
from oneforcing_jax.live.studio import Studio, Wish, quiet
from oneforcing_jax.system import web

# Bytes of an image, of a message without one, and of one with it in base64; characters of a prompt; pixels.
LARGEST_IMAGE, LARGEST_PLAIN = 2 << 20, 16 << 10
LARGEST = LARGEST_PLAIN + LARGEST_IMAGE * 4 // 3
LONGEST_PROMPT, MOST_PIXELS = 2000, 1 << 24
_BEFORE_IMAGE = re.compile(r'"image"\s*:\s*"')
# Images that browsers send; other decoders of Pillow's are not needed.
KINDS = ("PNG", "JPEG", "WEBP")
# Messages of a connection: so many at once, and a second.
BURST, RATE = 60, 20.0
# As many messages as one with an image counts, or one that is long.
HEAVY = 10
# Forms of frames that a connection may ask for.
JPEG, H264 = "jpeg", "h264"
# Serial, epoch and number of a frame, and its time in seconds; the picture follows.
HEADER = struct.Struct(">IIId")


def packed(frame: Shown, picture: bytes) -> bytes:
    """A frame as a binary message."""
    return HEADER.pack(frame.serial, frame.epoch, frame.number, frame.time) + picture


def unpacked(message: bytes) -> Shown:
    """The frame of a binary message, in whichever form."""
    serial, epoch, number, time_ = HEADER.unpack_from(message)
    return Shown(serial, epoch, number, time_, message[HEADER.size :])


def is_heavy(message: str | bytes) -> bool:
    """Whether a message is longer than one without an image may be.

    Raises:
      Refused: it is longer than one with an image may be.
    """
    if len(message) > LARGEST:
        raise Refused(413, f"expected a message of at most {LARGEST} bytes")
    return len(message) > LARGEST_PLAIN


def parsed(message: str | bytes) -> dict[str, Any]:
    """The JSON object of a message.

    An image is cut out of a long one before anything is parsed: what is parsed is always short.

    Raises:
      Refused: it is too large, or something else.
    """
    if not is_heavy(message):
        return web.json_object(message)
    text = message if isinstance(message, str) else message.decode(errors="replace")
    found = _BEFORE_IMAGE.search(text)
    start = found.end() if found else 0
    end = text.find('"', start) if found else 0
    rest = text[:start] + text[end:]
    if len(rest) > LARGEST_PLAIN:
        raise Refused(
            413, f"expected at most {LARGEST_PLAIN} bytes without an image, found {len(rest)}"
        )
    said = web.json_object(rest)
    if said.get("image") != "" or said.get("do", "start") != "start":
        raise Refused(400, "image: expected one, in a message that starts a video")
    return said | {"image": text[start:end].replace("\\/", "/")}  # as some writers of JSON have it


def prompt_of(said: Mapping[str, Any], studio: Studio) -> str:
    """The prompt of a message.

    Raises:
      Refused: none, one that is too long, or one that the text encoder cannot read.
    """
    words = said.get("prompt")
    if not isinstance(words, str):
        raise Refused(400, "prompt: expected words")
    if len(words) > LONGEST_PROMPT:
        raise Refused(
            413, f"prompt: expected at most {LONGEST_PROMPT} characters, found {len(words)}"
        )
    try:
        studio.check(words)
    except InputError as error:
        raise Refused(400, str(error)) from None
    return words.strip()


def wish_of(said: Mapping[str, Any], studio: Studio) -> Wish:
    """What a message wishes for.

    Raises:
      Refused: something that is not within its limits.
    """
    wish = Wish(
        prompt_of(said, studio),
        number_of(said, "seed", 0, 0, 2**32 - 1),
        number_of(said, "frames", studio.frames, 1, studio.most),
        number_of(said, "first_steps", studio.first_steps, 1, studio.first_steps),
        window=_window(said, studio),
        recompute=_choice(said, "recompute"),
        adapter=_adapter(said, studio),
    )
    # An image is decoded where all else is right.
    return dataclasses.replace(wish, image=_image(said.get("image"), studio))


def _window(said: Mapping[str, Any], studio: Studio) -> int:
    found = said.get("window", next(iter(studio.windows)))
    if type(found) is not int or found not in studio.windows:
        raise Refused(400, f"window: expected one of {list(studio.windows)}")
    return found


def _adapter(said: Mapping[str, Any], studio: Studio) -> str:
    found = said.get("adapter", "")
    if not isinstance(found, str) or found not in ("", *studio.adapters):
        raise Refused(400, f"adapter: expected one of {list(studio.adapters)}, or none")
    return found


def _choice(said: Mapping[str, Any], name: str) -> bool:
    found = said.get(name, False)
    if type(found) is not bool:
        raise Refused(400, f"{name}: expected true or false")
    return found


def number_of(said: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number of a message.

    Raises:
      Refused: another thing, or one outside its range.
    """
    found = said.get(name, default)
    if type(found) is not int or not least <= found <= most:
        raise Refused(400, f"{name}: expected a whole number from {least} to {most}")
    return found


def _image(text: Any, studio: Studio) -> np.ndarray | None:
    """An image from base64 at the size of the videos, uint8 [1, y, x, 3]; None where there is none."""
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > LARGEST_IMAGE * 4 // 3 + 4:
        raise Refused(413, f"image: expected base64 of at most {LARGEST_IMAGE} bytes")
    try:
        content = io.BytesIO(base64.b64decode(text, validate=True))
        image = decode_image(content, "image", quiet, MOST_PIXELS, KINDS, max(studio.size))
        return fit(image, *studio.size)
    except Exception as error:  # decoders raise whatever damaged data makes them raise
        said = str(error) if isinstance(error, InputError) else "image: expected a whole image"
        raise Refused(400, said) from None


class Allowance:
    """How much one connection may say: a bucket that fills again."""

    def __init__(self) -> None:
        self._left, self._at = float(BURST), time.monotonic()

    def take(self, count: int = 1) -> None:
        """Counts a message, or one that takes as much work as several.

        Raises:
          Refused: there were too many.
        """
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._at) * RATE) - count
        self._at = now
        if self._left < 0:
            raise Refused(429, f"expected at most {RATE:g} messages a second")
