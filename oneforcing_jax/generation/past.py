"""Frames of a stream that were made or given, with the conditions under which they are frames."""

from __future__ import annotations

import collections
from typing import Any

import jax

from oneforcing_jax.causal.cache import Window
from oneforcing_jax.models.condition import cut, joined

# Clean latents [b, f, c, y, x], and the conditions of these frames.
Clean = tuple[jax.Array, Any]


class Past:
    """The clean frames that later blocks may see.

    Args:
      window: how far back they see.
      given: frames that the video begins with, or None.
    """

    def __init__(self, window: Window, given: Clean | None) -> None:
        self._window = window
        self._sink: list[Clean] = []
        self._recent: collections.deque[Clean] = collections.deque(
            maxlen=None if window.size is None else window.size - window.sink
        )
        if given is not None:
            self.add(given)

    def add(self, frames: Clean) -> None:
        """Takes in the next frames."""
        for number in range(frames[0].shape[1]):
            kept = self._sink if len(self._sink) < self._window.sink else self._recent
            kept.append(cut(frames, number, number + 1))

    def seen(self, frames: int) -> Clean | None:
        """What the next block, of so many frames, sees of them; None: nothing."""
        size, recent = self._window.size, list(self._recent)
        if size is not None:
            recent = recent[max(0, len(recent) - (size - self._window.sink - frames)) :]
        seen = [*self._sink, *recent]
        return joined(*seen) if seen else None
