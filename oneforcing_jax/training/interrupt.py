"""Leaving between two iterations when asked to."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from oneforcing_jax.system import processes


class Interrupt:
    """Notes SIGTERM and SIGINT, as a context manager; a second one has its usual effect.

    Attributes:
      number: of the signal that came, to this process or to another; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, self._before[number])

    def asked(self, iteration: int) -> bool:
        """Whether to leave after this iteration; every process gets the same answer."""
        self.number = processes.asked(self.number, f"iteration {iteration}")
        return self.number > 0
