"""Errors of what a command was given. A command line shows them as one line.

Each says what was expected, what was found, and what to do.
"""

from __future__ import annotations


class InputError(ValueError):
    """An option, a config, a file or an array that cannot be used as it is."""


class MissingInput(InputError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingPackage(InputError, ImportError):
    """A package that an extra brings."""


class NotFinite(InputError, FloatingPointError):
    """Values that are not finite, where they would be kept."""


class Refused(InputError):
    """A request to a server that cannot be met; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
