"""Scores of toy videos, alone and against real ones, in a world that is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.frechet import distance
from oneforcing_jax.toy import readings
from oneforcing_jax.toy.judge import Judge
from oneforcing_jax.toy.world import WORLD, Attributes, World

# Weight of the identity in the covariances of `frechet`.
SHRINKAGE = 0.1


def scores(videos: np.ndarray, captions: Sequence[str], world: World = WORLD) -> dict[str, float]:
    """How well videos show their captions.

    Args:
      videos: uint8 [n, f, y, x, 3]; any number of frames, of the world's size.
      captions: n captions of the world.

    Returns:
      colour, shape, direction: share of videos that show what the caption says, or one of the world's words
      where it leaves that open; joint: all three at once; clear: share of videos whose colour and shape are
      beyond doubt, which those of a blend are not; variety: how evenly the words that captions leave open
      occur, from 0 (always the same) to 1 (as in the world); sharpness: mean squared gradient of pixels in
      0..1, to be divided by that of real videos; motion: mean distance the centroid moves, pixels a frame;
      steady: mean correlation of the shape with itself one frame later (temporal consistency).

    Raises:
      InputError: another shape or dtype, or a caption of another world.
    """
    return _scores(videos, readings.read(videos, world), captions, world)


def _scores(
    videos: np.ndarray, read: readings.Readings, captions: Sequence[str], world: World
) -> dict[str, float]:
    if len(captions) != len(videos):
        raise InputError(f"expected {len(videos)} captions, found {len(captions)}; one a video")
    said = [world.parse(caption) for caption in captions]
    right, variety = {}, []
    for name, words in zip(
        Attributes._fields, (world.colours, world.shapes, world.directions), strict=True
    ):
        shown = getattr(read, name)
        told = np.array([words.index(word) if (word := getattr(a, name)) else -1 for a in said])
        right[name] = np.where(told < 0, shown >= 0, shown == told)
        if name not in world.told:
            variety.append(_evenness(shown, len(words)))
    right["joint"] = right["colour"] & right["shape"] & right["direction"]
    right["clear"] = read.clear
    found = {name: float(hits.mean()) for name, hits in right.items()}
    return found | {
        "variety": float(np.mean(variety)) if variety else 1.0,
        "sharpness": _sharpness(videos),
        "motion": float(read.motion.mean()),
        "steady": float(read.steady.mean()),
    }


class Against:
    """Real videos, and how near others come to them.

    Args:
      real: uint8 [n, f, y, x, 3], two videos or more; as many as will be compared with them, for small
        samples raise the Fréchet distances.
      captions: theirs.
      judge: whose features are compared.
    """

    def __init__(
        self, real: np.ndarray, captions: Sequence[str], judge: Judge, world: World = WORLD
    ) -> None:
        self.world, self.judge = world, judge
        read = readings.read(real, world)
        self.own = _scores(real, read, captions, world)
        self.spectrum = spectrum(real)
        self.features, self.unit = judge.features(real), read.scene.std(0) + 1e-3
        self.scene = read.scene / self.unit
        self.diversity = diversity(self.features, captions)

    def scores(self, videos: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
        """`scores`, of which sharpness, motion and steady are parts of those of real videos, and:

        frechet: Fréchet distance of the judge's features; scene: the same of the parameters of the scene that
        `readings` finds, in units of their deviation; spectrum: mean difference of the logarithms of the
        power at each spatial frequency, in decibels; diversity: mean distance between the features of videos
        of one caption, as a part of that of real ones.

        Raises:
          InputError: another shape or dtype, fewer than two videos, or a caption of another world.
        """
        read = readings.read(videos, self.world)
        found = _scores(videos, read, captions, self.world)
        for name in ("sharpness", "motion", "steady"):
            found[name] /= max(self.own[name], 1e-6)
        features = self.judge.features(videos)
        return found | {
            "frechet": frechet(self.features, features),
            "scene": frechet(self.scene, read.scene / self.unit),
            "spectrum": float(np.abs(spectrum(videos) - self.spectrum).mean()),
            "diversity": diversity(features, captions) / max(self.diversity, 1e-6),
        }


def drift(videos: np.ndarray, window: int, world: World = WORLD) -> dict[str, float]:
    """What long videos lose: sharpness, motion and steadiness of the last frames as parts of those of the
    first, and the share of videos that are clear in the last less that in the first.

    Args:
      videos: uint8 [n, f, y, x, 3].
      window: frames that are first, and last.

    Raises:
      InputError: another shape or dtype, or fewer than two windows.
    """
    if not 2 <= window <= videos.shape[1] // 2:
        raise InputError(
            f"drift: expected a window of 2 to {videos.shape[1] // 2} of {videos.shape[1]} frames, "
            f"found {window}"
        )
    ends = []
    for part in (videos[:, :window], videos[:, -window:]):
        read = readings.read(part, world)
        means = (_sharpness(part), read.motion.mean(), read.steady.mean())
        ends.append((read.clear.mean(), *map(float, means)))
    (clear, *before), (still, *after) = ends
    ratios = (b / max(a, 1e-6) for a, b in zip(before, after, strict=True))
    names = ("drift_sharpness", "drift_motion", "drift_steady")
    return {"drift_clear": float(still - clear)} | dict(zip(names, ratios, strict=True))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between two sets of features, with shrunk covariances, for samples of about d videos;
    no relation to FVD or FID, whose networks are others.

    Args:
      a, b: float [n, d], two or more each.

    Raises:
      InputError: fewer.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"expected two sets of 2 or more videos, found {len(a)} and {len(b)}")
    return distance(a, b, SHRINKAGE)


def spectrum(videos: np.ndarray) -> np.ndarray:
    """Power of frames at each spatial frequency from 1 to size/2 cycles a frame, in decibels.

    Args:
      videos: uint8 [n, f, y, x, 3], square.
    """
    size = videos.shape[2]
    frequency = np.fft.fftfreq(size) * size
    ring = np.rint(np.hypot(frequency[:, None], frequency[None, :])).astype(int)
    power = np.zeros((size, size))
    for video in videos:  # one at a time, for the transform is large
        power += (np.abs(np.fft.fft2(video / 255, axes=(1, 2))) ** 2).mean((0, 3))
    rings = np.bincount(ring.ravel(), (power / len(videos)).ravel()) / np.bincount(ring.ravel())
    # Rounding to whole pixel values alone makes noise of this power; below it there is nothing to compare.
    noise = (size / 255) ** 2 / 12
    return np.asarray(10 * np.log10(rings[1 : size // 2 + 1] + noise))


def diversity(features: np.ndarray, captions: Sequence[str]) -> float:
    """Mean distance between the features, [n, d], of two videos of one caption; 0 where none has two."""
    distances = []
    for caption in sorted(set(captions)):
        own = features[[said == caption for said in captions]]
        apart = np.linalg.norm(own[:, None] - own[None], axis=-1)
        distances.extend(apart[np.triu_indices(len(own), 1)])
    return float(np.mean(distances)) if distances else 0.0


def _evenness(read: np.ndarray, words: int) -> float:
    """Entropy of what was read over that of evenly many of each word; what reads as none has no part."""
    share = np.bincount(read[read >= 0], minlength=words) / max(len(read), 1)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    return float(entropy / np.log(words)) if words > 1 else 1.0


def _sharpness(videos: np.ndarray) -> float:
    pixels = videos.astype(np.float32) / 255
    down, right = np.diff(pixels, axis=2), np.diff(pixels, axis=3)
    return float((down**2).mean() + (right**2).mean())
