"""How every command line ends: errors of the user's in one line, signals with their exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator


class Stopped(Exception):
    """A run was asked to end, and has saved; `number` is that of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def ending(interrupted: str) -> Iterator[None]:
    """Runs a command: an error is one line and exit code 1, a signal that ended it 128 + its number.

    Args:
      interrupted: what is left after Ctrl-C, and what to do.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
