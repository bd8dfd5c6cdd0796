"""What all command lines share: numbers in options, and how a command ends.

An error in what was given is shown as one line; any other keeps its traceback. A signal has its exit code.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator

from oneforcing_jax.errors import InputError


class Stopped(Exception):
    """A run was asked to end, and has saved; `number` is that of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def ending(interrupted: str) -> Iterator[None]:
    """Runs a command. An error gives one line and exit code 1, and a signal that ended it 128 + its number.

    Args:
      interrupted: what is left after Ctrl-C, and what to do.
    """
    try:
        yield
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers of an option, "1000,750,500,250"."""
    return tuple(float(part) for part in text.split(","))


def size(text: str) -> tuple[int, int]:
    """Rows and columns of an option, "480x832"."""
    rows, columns = text.lower().split("x")
    return int(rows), int(columns)


def axes(text: str) -> dict[str, int]:
    """Devices of one video along mesh axes, "sequence=4,context=2"."""
    sizes = dict(part.split("=") for part in text.split(","))
    if set(sizes) - {"context", "sequence", "tensor"}:
        raise ValueError(text)
    return {axis: int(size) for axis, size in sizes.items()}


def share(text: str) -> tuple[int, int]:
    """The share of one of several commands, "I/N": the I-th of N.

    Raises:
      InputError: another form, or a number that is too high.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"shard: expected I/N with I from 0 to N - 1, found {text!r}")
    return int(match[1]), int(match[2])
