"""Where frames are shown without a browser: terminals that draw pictures, any other one, and a window."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import shutil
import sys
import zlib
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import numpy as np
from PIL import Image

from oneforcing_jax.errors import InputError, MissingPackage

# Pixels of a character cell where a terminal does not say, and bytes of one part of kitty's pictures.
_CELL, _CHUNK = (10, 20), 4096
# Colours of a sixel picture: more take longer to draw than a frame lasts.
_COLOURS = 128
# Seconds in which a terminal says what it can do.
_ANSWER = 0.3
_KITTY = ("kitty", "ghostty")


class Display(Protocol):
    """Shows frames, one in the place of the other."""

    def show(self, pixels: np.ndarray) -> bool:
        """Shows a frame uint8 [y, x, 3]; False: nobody looks any more."""

    def rest(self) -> None:
        """Leaves the last frame where it can be seen, and goes on after it."""


class Terminal:
    """Frames where the cursor is.

    Args:
      encode: makes of a frame uint8 [y, x, 3], and columns and rows of characters, what a terminal draws
        there.
      out: the terminal.
    """

    def __init__(self, encode: Callable[[np.ndarray, int, int], str], out: TextIO) -> None:
        self._encode, self._out, self._rows = encode, out, 0

    def show(self, pixels: np.ndarray) -> bool:
        columns, rows = _room(pixels)
        if (
            rows > self._rows
        ):  # room below the cursor; without it each picture would scroll the last one away
            self._out.write("\n" * rows + f"\x1b[{rows}A")
            self._rows = rows
        # The cursor is kept in every form: what a terminal does with it after a picture differs.
        self._out.write(f"\x1b7{self._encode(pixels, columns, rows)}\x1b8")
        self._out.flush()
        return True

    def rest(self) -> None:
        self._out.write(f"\x1b[{self._rows}B\r\n" if self._rows else "")
        self._out.flush()
        self._rows = 0


class Window:
    """A window of its own, of the size of a frame; small frames are enlarged.

    Raises:
      MissingPackage: Python has no tkinter.
      InputError: there is no screen.
    """

    def __init__(self) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise MissingPackage(
                f"--watch: a window needs {error.name}: install python3-tk, or name a terminal"
            ) from error
        try:
            self._root = tkinter.Tk(className="oneforcing")
        except tkinter.TclError as error:
            raise InputError(
                f"--watch: expected a screen, found {error}; name a terminal"
            ) from error
        self._root.title("oneforcing_jax")
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._photo, self._open = ImageTk.PhotoImage, True
        self._root.protocol("WM_DELETE_WINDOW", self._leave)

    def _leave(self) -> None:
        self._open = False

    def show(self, pixels: np.ndarray) -> bool:
        if self._open:
            height = max(1, 384 // pixels.shape[0]) * pixels.shape[0]
            image: Any = self._photo(
                _scaled(pixels, pixels.shape[1] * height // len(pixels), height)
            )
            self._label.configure(image=image)
            self._label.image = image  # type: ignore[attr-defined]  # Tk keeps no reference itself
            self._root.update()
        return self._open

    def rest(self) -> None:
        pass


def kitty(pixels: np.ndarray, columns: int, rows: int) -> str:
    """A picture in kitty's protocol: raw pixels, deflated, in place of the one before."""
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(pixels).tobytes(), 1)).decode()
    y, x, _ = pixels.shape
    head = f"a=T,f=24,o=z,s={x},v={y},c={columns},r={rows},i=1,p=1,q=2,C=1,"
    parts = [content[i : i + _CHUNK] for i in range(0, len(content), _CHUNK)]
    more = [*(1 for _ in parts[1:]), 0]
    heads = [head, *("" for _ in parts[1:])]
    return "".join(
        f"\x1b_G{h}m={m};{part}\x1b\\" for h, m, part in zip(heads, more, parts, strict=True)
    )


def iterm(pixels: np.ndarray, columns: int, rows: int) -> str:
    """A picture in iTerm2's protocol."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=0)
    content = file.getvalue()
    size = f"size={len(content)};width={columns};height={rows};preserveAspectRatio=0"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(content).decode()}\a"


def sixel(pixels: np.ndarray, columns: int, rows: int) -> str:
    """A picture in sixels: six rows at a time, for each colour the places where it is."""
    x, y = _cell()
    image = _scaled(pixels, columns * x, rows * y).quantize(_COLOURS, dither=Image.Dither.NONE)
    palette = np.array(image.getpalette()).reshape(-1, 3) * 100 // 255
    numbers = np.asarray(image)
    used = np.unique(numbers)
    out = [f'\x1bPq"1;1;{image.width};{image.height}']
    out += [f"#{c};2;{palette[c][0]};{palette[c][1]};{palette[c][2]}" for c in used]
    for top in range(0, len(numbers), 6):
        band = numbers[top : top + 6]
        places = 1 << np.arange(len(band))[:, None]
        for colour in np.unique(band):
            bits = 63 + ((band == colour) * places).sum(0)
            out.append(f"#{colour}{_runs(bits)}$")
        out.append("-")
    return "".join(out) + "\x1b\\"


def _runs(bits: np.ndarray) -> str:
    """Characters, of which a run is written as its length and one of them."""
    ends = np.flatnonzero(np.append(bits[1:] != bits[:-1], True))
    counts = np.diff(ends, prepend=-1)
    return "".join(
        chr(b) * n if n < 4 else f"!{n}{chr(b)}" for b, n in zip(bits[ends], counts, strict=True)
    )


def blocks(pixels: np.ndarray, columns: int, rows: int) -> str:
    """Half blocks in 24-bit colours: two pixels a character, in any terminal."""
    small = np.asarray(_scaled(pixels, columns, 2 * rows))
    lines = []
    for top, bottom in zip(small[::2], small[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m▀"
            for (a, b, c), (d, e, f) in zip(top.tolist(), bottom.tolist(), strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\x1b8\x1b[B\x1b7".join(lines)


ENCODERS = {"kitty": kitty, "iterm": iterm, "sixel": sixel, "blocks": blocks}
KINDS = ("auto", *ENCODERS, "window")


def make(kind: str) -> Display:
    """A display of a kind of `KINDS` on standard output; "auto" asks the terminal and its environment.

    Raises:
      InputError: a terminal that is none, or no screen.
      MissingPackage: of a window.
    """
    out = sys.stdout
    if kind == "auto":
        kind = _found(out)
    if kind == "window":
        return Window()
    if not out.isatty():
        raise InputError(
            f"--watch={kind}: expected a terminal, found a file or a pipe; leave it out, or "
            "--watch=window"
        )
    return Terminal(ENCODERS[kind], out)


def _found(out: TextIO) -> str:
    env = os.environ
    if not out.isatty():
        return "window"
    if "KITTY_WINDOW_ID" in env or any(name in env.get("TERM", "") for name in _KITTY):
        return "kitty"
    if env.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    if _draws_sixels(out):
        return "sixel"
    return "window" if env.get("DISPLAY") or env.get("WAYLAND_DISPLAY") else "blocks"


def _draws_sixels(out: TextIO) -> bool:
    """Asks the terminal for its device attributes, of which 4 says so."""
    import termios
    import tty

    if not sys.stdin.isatty():
        return False
    before, said = termios.tcgetattr(0), b""
    try:
        tty.setcbreak(0)
        out.write("\x1b[c")
        out.flush()
        while not said.endswith(b"c") and select.select([0], [], [], _ANSWER)[0]:
            said += os.read(0, 64)
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)
    answer = re.search(rb"\x1b\[\?([\d;]*)c", said)
    return bool(answer and b"4" in answer[1].split(b";"))


def _cell() -> tuple[int, int]:
    """Columns and rows of pixels of a character."""
    import fcntl
    import struct
    import termios

    try:
        found = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (OSError, ValueError):
        return _CELL
    rows, columns, x, y = struct.unpack("HHHH", found)
    return (x // columns, y // rows) if x and y and columns and rows else _CELL


def _room(pixels: np.ndarray) -> tuple[int, int]:
    """Columns and rows of characters that a frame takes: all that there are, in its proportions."""
    (most, lines), (x, y) = shutil.get_terminal_size(), _cell()
    tall, wide, _ = pixels.shape
    columns = max(1, min(most - 1, (lines - 2) * y * wide // (tall * x)))
    return columns, max(1, round(columns * x * tall / (wide * y)))


def _scaled(pixels: np.ndarray, x: int, y: int) -> Image.Image:
    """A frame of another size; where it grows, its pixels stay square."""
    smooth = Image.Resampling.BILINEAR if y < len(pixels) else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((x, y), smooth)
