"""An invisible mark in the pixels of a video, and the test whether a video has it.

The mark is a sum of waves, each of a whole number of cycles a frame, whose phases a key decides. It is the
same in every frame, so averaging frames keeps it and blurs what moves; and a resized frame has as many
cycles. The test compares the phases of the averaged frame with the key's. Without a mark they have nothing to
do with each other: over keys, the cosines of n differences sum to more than z sqrt(n / 2) with a probability
of at most exp(-z^2 / 2), whatever the video shows.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter

from oneforcing_jax.errors import InputError

KEY = "oneforcing_jax"
# Root mean square of the mark in levels of 255: 42.1 dB.
STRENGTH = 2.0
# Cycles a frame, up and down; across, more by the aspect. Fewer drown in what is shown, and more in H.264.
LEAST, MOST, ASPECT = 6, 48, 16 / 9
# A video counts as marked where chance would say so once in a million.
FALSE_ALARM = 1e-6
# The search for cropped frames: shares of a frame's rows, and of its columns, that may be left, and how many
# shifts down and across a frame it tells apart.
SHARES = np.linspace(1.0, 0.7, 61)
SHIFTS = 320


class Waves(NamedTuple):
    """Cycles a frame down and across, and phases; each [n]."""

    down: np.ndarray
    across: np.ndarray
    phase: np.ndarray


class Found(NamedTuple):
    """The test of a video.

    Attributes:
      z: how far the phases agree with the key's, in standard deviations of chance.
      false_alarm: at most so often a video without the mark reaches this z.
      rows, columns: the share of the marked frame's that was found; 1 but for cropped frames.
    """

    z: float
    false_alarm: float
    rows: float = 1.0
    columns: float = 1.0

    @property
    def marked(self) -> bool:
        """Whether the video counts as marked."""
        return self.false_alarm <= FALSE_ALARM


def add(frames: np.ndarray, key: str = KEY) -> np.ndarray:
    """Marks frames, uint8 [f, y, x, 3].

    Raises:
      InputError: frames too small for any wave.
    """
    mark = _pattern(*frames.shape[1:3], key)[..., None]
    return np.clip(frames.astype(np.int16) + mark, 0, 255).astype(np.uint8)


def average(frames: Iterable[np.ndarray]) -> np.ndarray:
    """The mean luminance, float64 [y, x], of frames [y, x, 3], of which it holds one at a time."""
    total, count = np.zeros(()), 0
    for frame in frames:
        total, count = total + frame.mean(-1), count + 1
    return total / count


def detect(image: np.ndarray, key: str = KEY) -> Found:
    """Tests the average [y, x] of the frames of a video that may have been resized, and is not cropped.

    Raises:
      InputError: frames too small for any wave.
    """
    rows, columns = image.shape
    waves = _waves(rows, columns, key)
    spectrum = np.fft.rfft2(_levelled(image))[waves.down % rows, waves.across]
    apart = np.angle(spectrum) - _at_centres(waves, rows, columns)
    return _found(float(np.cos(apart).sum() / math.sqrt(len(apart) / 2)), 1)


def search(image: np.ndarray, key: str = KEY, shares: np.ndarray = SHARES) -> Found:
    """As `detect`, for frames that may be cropped: tries every share of rows and of columns, everywhere.

    What chance reaches counts for all that was tried.

    Raises:
      InputError: frames too small for any wave.
    """
    rows, columns = image.shape
    waves = _waves(rows, columns, key)
    (down, i), (across, j) = (np.unique(k, return_inverse=True) for k in waves[:2])
    turn = np.zeros((len(down), 1, len(across)), np.complex64)
    turn[i, 0, j] = np.exp(-1j * waves.phase)
    flat = _levelled(image).astype(np.complex64)
    # A frame before the crop is longer by 1 / share: of its cycles, a crop has that share.
    bases = np.concatenate([_turns(across, share * _centres(columns)) for share in shares])
    shifts = [np.arange(int((1 - share) * SHIFTS) + 1) / SHIFTS for share in shares]
    rights = [_turns(across, places) for places in shifts]
    best, tried = (-math.inf, 1.0, 1.0), 0
    for tall, lower in zip(shares, shifts, strict=True):
        seen = (_turns(down, tall * _centres(rows)) @ flat @ bases.T).reshape(
            len(down), len(shares), -1
        )
        back = _turns(down, lower).T
        agreed = turn * seen / np.maximum(abs(seen), 1e-12)
        for k, (wide, right) in enumerate(zip(shares, rights, strict=True)):
            # A shift turns each wave: at every one, the sum of the cosines of what is left.
            sums = (back @ agreed[:, k] @ right).real
            tried += sums.size
            best = max(best, (float(sums.max()), float(tall), float(wide)))
    z = best[0] / math.sqrt(len(waves.phase) / 2)
    return _found(z, tried)._replace(rows=best[1], columns=best[2])


def _turns(cycles: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How far waves have turned at places of the frame, as conjugates [n, places]."""
    return np.exp(-2j * np.pi * np.outer(cycles, places)).astype(np.complex64)


def _found(z: float, tried: int) -> Found:
    return Found(z, min(1.0, tried * math.exp(-(max(z, 0.0) ** 2) / 2)))


@functools.lru_cache(maxsize=8)
def _waves(rows: int, columns: int, key: str) -> Waves:
    """The waves that frames of a size can show."""
    down, across = np.mgrid[-MOST : MOST + 1, 1 : int(MOST * ASPECT) + 1]
    far = np.hypot(down, across / ASPECT)
    band = (far >= LEAST) & (far <= MOST)
    down, across = down[band], across[band]
    # A hash, because it gives the same phases in all versions of all packages.
    drawn = hashlib.shake_256(key.encode(errors="surrogatepass")).digest(2 * len(down))
    phase = np.frombuffer(drawn, "<u2") * (2 * np.pi / 2**16)
    shown = (2 * abs(down) < rows) & (2 * across < columns)
    if not shown.any():
        raise InputError(
            f"mark: expected frames of {2 * LEAST + 1} pixels or more, found {rows}x{columns}; make "
            "them larger"
        )
    return Waves(down[shown], across[shown], phase[shown])


@functools.lru_cache(maxsize=8)
def _pattern(rows: int, columns: int, key: str) -> np.ndarray:
    """The mark in levels, int16 [y, x]."""
    waves = _waves(rows, columns, key)
    spectrum = np.zeros((rows, columns // 2 + 1), complex)
    spectrum[waves.down % rows, waves.across] = np.exp(1j * _at_centres(waves, rows, columns))
    mark = np.fft.irfft2(spectrum, s=(rows, columns))
    return np.rint(mark * STRENGTH / mark.std()).astype(np.int16)


def _at_centres(waves: Waves, rows: int, columns: int) -> np.ndarray:
    """Phases at the centre of the first pixel, where the discrete transform begins to count."""
    return waves.phase + np.pi * (waves.down / rows + waves.across / columns)


def _centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _levelled(image: np.ndarray) -> np.ndarray:
    """An image less its local mean, over its local deviation: edges do not drown what lies beside them."""
    reach = max(3, image.shape[0] // 12 | 1)
    flat = image - uniform_filter(image, reach)
    return flat / (np.sqrt(np.maximum(uniform_filter(np.square(flat), reach), 0)) + 1)
