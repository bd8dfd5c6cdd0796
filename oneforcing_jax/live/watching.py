"""A video that is watched in this process while it is made: in a terminal, a window, or a notebook."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from oneforcing_jax.live.display import Display
from oneforcing_jax.live.recording import Shown
from oneforcing_jax.live.session import DONE, Maker, Session
from oneforcing_jax.live.studio import Made, Wish

# More frames than a video has: what is made here ends by itself.
_ALL = 1 << 62


class Given(NamedTuple):
    """A `Maker` of a video whose blocks of frames, uint8 [m, y, x, 3], come from elsewhere."""

    fps: float
    blocks: Iterator[np.ndarray]

    def make(self, wish: Wish, prompt: Callable[[int], str]) -> Generator[Made]:
        """The blocks."""
        for frames in self.blocks:
            yield Made(frames, 0.0, 0.0)


def pixels(frame: Shown) -> np.ndarray:
    """A frame as uint8 [y, x, 3]."""
    with Image.open(io.BytesIO(frame.jpeg)) as image:
        return np.asarray(image)


def played(session: Session, maker: Maker) -> Iterator[Shown]:
    """Frames of a session at their times, while another thread makes them.

    Who leaves early stops the session. What goes wrong in the making is raised here.
    """

    def work() -> None:
        try:
            session.run(maker)
        finally:
            session.stop(DONE)

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(work)
        try:
            yield from session.watch()
        finally:
            session.stop()
        made.result()


def shown(blocks: Iterator[np.ndarray], fps: float, display: Display) -> None:
    """Shows a video while its blocks are made; returns when all of them are.

    Where nobody looks any more, the rest is made without.
    """
    session = Session(Wish("", frames=_ALL), math.inf)
    try:
        for frame in played(session, Given(fps, blocks)):
            if not display.show(pixels(frame)):
                break
    finally:
        display.rest()
    for _ in blocks:
        pass
