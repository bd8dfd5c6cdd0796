"""Measures of a video's pixels that need no network; videos are read frame by frame, and may be long."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.data.video import frames_of
from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.setup.ranges import Count

# Values of a frame, and of a pair of neighbours.
OF_FRAMES = ("sharpness", "saturation", "luminance")
OF_PAIRS = ("change", "motion", "motion_top")
# The fastest part of a frame, which says how much moves where little of it does.
TOP = 0.05
# Pixels a side that optical flow and the windows of structural similarity need.
LEAST = 12

Series = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The options that say which parts of a video are compared.

    Attributes:
      window: frames at either end whose means differ by the drift; None: a quarter of the video.
      block: frames of a block, between which there may be jumps; None: they are not measured.
      first_block: frames of the first block; None: as the others.
    """

    window: Count | None = None
    block: Count | None = None
    first_block: Count | None = None

    def __post_init__(self) -> None:
        if self.block == 1:
            raise InputError(
                "--block: expected 2 frames or more, found 1: no pair lies within a block; leave it out"
            )
        if self.first_block is not None and self.block is None:
            raise InputError(
                f"--first_block: expected --block with it, found {self.first_block} alone"
            )


def library(name: str) -> Any:
    """A module of the extra "measures".

    Raises:
      MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f'measures of pixels need the package of {name}: pip install "oneforcing_jax[measures]"'
        ) from error


opencv = functools.partial(library, "cv2")


def of_frame(frame: np.ndarray, grey: np.ndarray) -> tuple[float, float, float]:
    """Sharpness (variance of the Laplacian of the luminance), saturation (of HSV, 0 to 1) and luminance.

    Args:
      frame: uint8 [y, x, 3].
      grey: its luminance, uint8 [y, x].
    """
    cv2 = opencv()
    saturation = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() / 255
    return float(cv2.Laplacian(grey, cv2.CV_64F).var()), float(saturation), float(grey.mean())


def of_pair(
    before: np.ndarray, after: np.ndarray, greys: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    """Mean absolute change in levels, and optical flow in pixels a frame: its mean, and that of the top 5%.

    Args:
      before, after: neighbouring frames, uint8 [y, x, 3].
      greys: their luminance, uint8 [y, x].
    """
    cv2 = opencv()
    change = float(cv2.absdiff(before, after).mean())
    speed = np.linalg.norm(_flow().calc(*greys, None), axis=-1).ravel()
    top = max(1, round(TOP * speed.size))
    return change, float(speed.mean()), float(np.partition(speed, -top)[-top:].mean())


@functools.cache
def _flow() -> Any:
    """The method of optical flow: dense inverse search."""
    cv2 = opencv()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def series(path: Path) -> dict[str, list[float]]:
    """Values of every frame and of every pair of neighbours, by name.

    Raises:
      MissingInput, InputError: a video that cannot be read, or of one frame.
      MissingPackage: OpenCV is not installed.
    """
    cv2 = opencv()
    rows: list[tuple[float, ...]] = []
    pairs: list[tuple[float, ...]] = []
    before: tuple[np.ndarray, np.ndarray] | None = None
    for shown in frames_of(path):
        frame = np.ascontiguousarray(shown)
        if min(frame.shape[:2]) < LEAST:
            raise InputError(
                f"{path}: expected frames of {LEAST}x{LEAST} or larger, found "
                f"{frame.shape[0]}x{frame.shape[1]}; resize them"
            )
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        rows.append(of_frame(frame, grey))
        if before is not None:
            pairs.append(of_pair(before[0], frame, (before[1], grey)))
        before = frame, grey
    if not pairs:
        raise InputError(f"{path}: expected 2 frames or more, found one; use a longer video")
    columns = [*zip(*rows, strict=True), *zip(*pairs, strict=True)]
    return dict(zip(OF_FRAMES + OF_PAIRS, map(list, columns), strict=True))


def summary(path: Path, found: Series, parts: Parts) -> dict[str, float | None]:
    """What is reported of a video. None: a ratio to nothing.

    Temporal flickering is VBench's raw value, higher for steadier videos. Drift is the mean of the last
    window less that of the first. A jump is the mean change across the boundaries of blocks; its ratio is
    that to the mean change within blocks.

    Raises:
      InputError: a video that is too short for the windows or the blocks.
    """
    frames = len(found[OF_FRAMES[0]])
    window = parts.window or max(1, frames // 4)
    if 2 * window > frames:
        raise InputError(
            f"{path}: expected {2 * window} frames or more for two windows of {window}, found {frames}; "
            "lower --window, or use longer videos"
        )
    values: dict[str, float | None] = {name: _mean(row) for name, row in found.items()}
    values["temporal_flickering"] = 1 - _mean(found["change"]) / 255
    for name in (*OF_FRAMES, "motion"):
        values[f"{name}_drift"] = _mean(found[name][-window:]) - _mean(found[name][:window])
    if parts.block:
        across, within = _by_boundary(path, np.asarray(found["change"]), parts)
        values |= {"jump": across, "jump_ratio": across / within if within else None}
    return values


def _by_boundary(path: Path, change: np.ndarray, parts: Parts) -> tuple[float, float]:
    """Mean change of pairs across the boundaries of blocks, and within blocks."""
    block = parts.block or 1
    first = block if parts.first_block is None else parts.first_block
    # Pair i is that of frames i and i + 1.
    start = np.arange(1, len(change) + 1)
    across = (start >= first) & ((start - first) % block == 0)
    if not across.any() or across.all():
        raise InputError(
            f"{path}: expected two blocks or more, of {first} and then {block} frames, found "
            f"{len(change) + 1} frames; lower --block, or use longer videos"
        )
    return float(change[across].mean()), float(change[~across].mean())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two frames uint8 [y, x, 3], with Gaussian windows as first published.

    Raises:
      MissingPackage: scikit-image is not installed.
    """
    similarity = library("skimage.metrics").structural_similarity
    return float(
        similarity(
            one, other, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip


def likeness(path: Path, against: Path) -> dict[str, float | None]:
    """How far two videos agree: PSNR in dB of the mean error of all frames (None: they are equal), mean SSIM.

    Raises:
      MissingInput, InputError: videos that cannot be read, or of different sizes or lengths.
      MissingPackage: scikit-image is not installed.
    """
    errors, alike = list[float](), list[float]()
    for one, other in itertools.zip_longest(frames_of(path), frames_of(against)):
        if one is None or other is None:
            longer = path if other is None else against
            raise InputError(
                f"{path}, {against}: expected as many frames in both, found more than {len(errors)} in "
                f"{longer} alone; cut it"
            )
        if one.shape != other.shape:
            raise InputError(
                f"{path}, {against}: expected frames of one size, found {one.shape[0]}x{one.shape[1]} and "
                f"{other.shape[0]}x{other.shape[1]}; resize one"
            )
        errors.append(float(np.square(one.astype(np.float32) - other).mean()))
        alike.append(ssim(one, other))
    error = _mean(errors)
    return {"psnr": 10 * float(np.log10(255**2 / error)) if error else None, "ssim": _mean(alike)}
