"""Reads attributes back from pixels, and compares sets of toy videos.

These scores know the toy world and nothing else. They are made for blurred and broken videos:
whatever the pixels hold, each reading is either one of the world's words or none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.toy import world as toy
from oneforcing_jax.toy.world import WORLD, Attributes, World

# Below this brightness (of 0..1) a frame is empty.
LEAST_BRIGHTNESS = 0.1
# The smallest shape covers more of a frame than this.
SHAPE_SHARE = 0.05
# Below this correlation with every template nothing counts as a shape, and below this share of
# the world's speed nothing counts as moving.
LEAST_CORRELATION = 0.3
LEAST_SPEED = 0.25
# From these on, cosine to a colour and correlation with a template, a reading is beyond doubt.
CLEAR_COLOUR, CLEAR_SHAPE = 0.98, 0.9

# The embedding of `frechet_distance`.
PROJECTIONS, FILTERS, FILTER, STRIDE, POOL = 32, 16, 5, 3, 4
SHRINKAGE = 0.1
EMBED_AT_ONCE = 64


class Readings(NamedTuple):
    """What the pixels of n videos say.

    Attributes:
      colour, shape, direction: int [n], position in the world's tuple of that name, -1 for none.
      motion: float [n], mean distance the centroid moves, pixels a frame.
      clear: bool [n], whether colour and shape are beyond doubt in all frames together.
    """

    colour: np.ndarray
    shape: np.ndarray
    direction: np.ndarray
    motion: np.ndarray
    clear: np.ndarray


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
      0..1, to be divided by that of real videos; motion: mean distance the centroid moves, pixels a frame.

    Raises:
      InputError: another shape or dtype, or a caption of another world.
    """
    _check(videos, world)
    if len(captions) != len(videos):
        raise InputError(f"expected {len(videos)} captions, found {len(captions)}; one a video")
    said = [world.parse(caption) for caption in captions]
    readings = read_attributes(videos, world)
    right, variety = {}, []
    for name, words in zip(
        Attributes._fields, (world.colours, world.shapes, world.directions), strict=True
    ):
        read = getattr(readings, name)
        told = np.array([words.index(word) if (word := getattr(a, name)) else -1 for a in said])
        right[name] = np.where(told < 0, read >= 0, read == told)
        if name not in world.told:
            variety.append(_evenness(read, len(words)))
    right["joint"] = right["colour"] & right["shape"] & right["direction"]
    right["clear"] = readings.clear
    found = {name: float(hits.mean()) for name, hits in right.items()}
    return found | {
        "variety": float(np.mean(variety)) if variety else 1.0,
        "sharpness": _sharpness(videos),
        "motion": float(readings.motion.mean()),
    }


def _evenness(read: np.ndarray, words: int) -> float:
    """Entropy of what was read over that of evenly many of each word; what reads as none has no part."""
    share = np.bincount(read[read >= 0], minlength=words) / max(len(read), 1)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    return float(entropy / np.log(words)) if words > 1 else 1.0


def read_attributes(videos: np.ndarray, world: World = WORLD) -> Readings:
    """Detects colour, shape and direction in videos, uint8 [n, f, y, x, 3].

    Raises:
      InputError: another shape or dtype.
    """
    _check(videos, world)
    bright = videos.max(-1).astype(np.float32) / 255
    weight = _foreground(bright)
    present = weight.sum((2, 3)) > 0
    centre = _centroids(weight)

    colour_sum = np.einsum("nfyx,nfyxc->nc", weight, videos.astype(np.float32))
    colours = np.array([toy.COLOURS[name] for name in world.colours], np.float32)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    # The angle alone counts, because a blurred shape is darker but not of another colour.
    angle = (colour_sum @ colours.T) / np.maximum(np.linalg.norm(colour_sum, axis=1), 1e-6)[:, None]
    colour = angle.argmax(1)

    templates = _templates(world)
    crops = _standardise(_crop(weight, centre, _reach(world)))
    match = np.einsum("nfp,sp->nfs", crops, templates)
    match = (match * present[..., None]).sum(1) / np.maximum(present.sum(1), 1)[:, None]
    shape = np.where(match.max(1) >= LEAST_CORRELATION, match.argmax(1), -1)

    steps = np.array([toy.DIRECTIONS[name] for name in world.directions])
    # A shape that turns back goes where it was told in its first two steps.
    part = slice(3) if world.bounce else slice(None)
    along = _slopes(centre[:, part], present[:, part]) @ steps.T
    moving = along.max(1) >= LEAST_SPEED * world.speed
    direction = np.where(moving, along.argmax(1), -1)

    both = present[:, 1:] & present[:, :-1]
    moved = np.linalg.norm(np.diff(centre, axis=1), axis=-1) * both
    motion = moved.sum(1) / np.maximum(both.sum(1), 1)
    clear = (angle.max(1) >= CLEAR_COLOUR) & (match.max(1) >= CLEAR_SHAPE)
    return Readings(np.where(present.any(1), colour, -1), shape, direction, motion, clear)


def frechet_distance(a: np.ndarray, b: np.ndarray, world: World = WORLD) -> float:
    """A toy Frechet distance between two sets of videos; no relation to FVD or FID.

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) of the `embed` features, whose unit
    is the deviation over real videos. The covariances are shrunk towards a multiple of the
    identity, C <- (1 - s) C + s trace(C)/d I with s = SHRINKAGE, for samples of about d videos.
    Small samples raise it: compare only values of equal counts.

    Args:
      a, b: uint8 [n, f, y, x, 3], of one number of frames, two videos or more each.

    Raises:
      InputError: another shape or dtype, or fewer than two videos.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise InputError(
            f"expected two sets of 2 or more videos of one size, found {list(a.shape)} and "
            f"{list(b.shape)}"
        )
    (mean_a, cov_a), (mean_b, cov_b) = (_moments(embed(videos, world)) for videos in (a, b))
    root_a = _root(cov_a)
    cross = np.trace(_root(root_a @ cov_b @ root_a))
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


def embed(videos: np.ndarray, world: World = WORLD) -> np.ndarray:
    """Fixed features of videos, float64 [n, 64], of unit deviation over real videos.

    They are 32 seeded random projections of coarse pixels (where and when), and two values of each
    of 16 seeded random rectified filters: the mean response (colour, edges, sharpness) and the mean
    absolute change from frame to frame (motion, flicker).

    Args:
      videos: uint8 [n, f, y, x, 3].

    Raises:
      InputError: another shape or dtype, or a size that POOL does not divide.
    """
    _check(videos, world)
    if world.size % POOL:
        raise InputError(f"expected a size that {POOL} divides, found {world.size}")
    mean, deviation = _real_moments(world, videos.shape[1])
    return (_raw_features(videos) - mean) / deviation


def _check(videos: np.ndarray, world: World) -> None:
    size = (world.size, world.size, 3)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != size or not videos.size:
        raise InputError(
            f"expected videos uint8 [n, f, {world.size}, {world.size}, 3], found {videos.dtype} "
            f"{list(videos.shape)}"
        )


def _sharpness(videos: np.ndarray) -> float:
    pixels = videos.astype(np.float32) / 255
    down, right = np.diff(pixels, axis=2), np.diff(pixels, axis=3)
    return float((down**2).mean() + (right**2).mean())


def _foreground(bright: np.ndarray) -> np.ndarray:
    """How far each pixel, [n, f, y, x], rises above half of the brightness of the shape."""
    peak = np.quantile(bright, 1 - SHAPE_SHARE, axis=(2, 3), keepdims=True)
    weight = np.maximum(bright - peak / 2, 0)
    return np.where(peak >= LEAST_BRIGHTNESS, weight, 0)


def _centroids(weight: np.ndarray) -> np.ndarray:
    """(row, column) of the centre of mass, [n, f, 2]; the middle where there is no mass."""
    size = weight.shape[-1]
    total = np.maximum(weight.sum((2, 3)), 1e-6)
    place = np.arange(size, dtype=np.float32)
    centre = np.stack([(weight.sum(3) @ place) / total, (weight.sum(2) @ place) / total], -1)
    empty = weight.sum((2, 3)) <= 0
    return np.where(empty[..., None], (size - 1) / 2, centre)


def _slopes(centre: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Least-squares speed of the centroid over the frames that have one, [n, 2], pixels a frame."""
    count = np.maximum(present.sum(1, keepdims=True), 1)
    times = np.arange(centre.shape[1]) * present
    offset = (times - times.sum(1, keepdims=True) / count) * present
    spread = np.maximum((offset**2).sum(1), 1e-6)
    return np.einsum("nf,nfa->na", offset, centre) / spread[:, None]


def _reach(world: World) -> int:
    # The tip of a triangle is 4/3 of the radius from its centroid; some black around it helps.
    return math.ceil(world.radius * 4 / 3) + 1


def _crop(bright: np.ndarray, centre: np.ndarray, reach: int) -> np.ndarray:
    """Windows of 2*reach+1 pixels around sub-pixel centres, [n, f, p], black outside the frame."""
    padded = np.pad(bright, ((0, 0), (0, 0), (reach + 1, reach + 1), (reach + 1, reach + 1)))
    corner = np.floor(centre).astype(int)
    part = (centre - corner)[..., None, None, :]
    offsets = np.arange(2 * reach + 2) + 1
    rows = (corner[..., 0, None] + offsets)[..., :, None]
    columns = (corner[..., 1, None] + offsets)[..., None, :]
    n, f = (np.arange(size) for size in bright.shape[:2])
    window = padded[n[:, None, None, None], f[None, :, None, None], rows, columns]
    down, right = part[..., 0], part[..., 1]
    window = window[..., :-1, :] * (1 - down) + window[..., 1:, :] * down
    window = window[..., :-1] * (1 - right) + window[..., 1:] * right
    return window.reshape(*bright.shape[:2], -1)


def _standardise(crops: np.ndarray) -> np.ndarray:
    centred = crops - crops.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)


@functools.lru_cache
def _templates(world: World) -> np.ndarray:
    """Each shape of the world, standardised around its own centroid, [s, p]."""
    middle = np.full(2, world.size / 2)
    bright = np.stack([toy.mask(shape, middle, world) for shape in world.shapes])[:, None]
    weight = _foreground(bright)
    return _standardise(_crop(weight, _centroids(weight), _reach(world)))[:, 0]


def _raw_features(videos: np.ndarray) -> np.ndarray:
    parts = [videos[i : i + EMBED_AT_ONCE] for i in range(0, len(videos), EMBED_AT_ONCE)]
    return np.concatenate([_raw_features_at_once(part) for part in parts])


def _raw_features_at_once(videos: np.ndarray) -> np.ndarray:
    n, f, size = videos.shape[:3]
    pixels = videos.astype(np.float32) / 255
    cells = size // POOL
    coarse = pixels.reshape(n, f, cells, POOL, cells, POOL, 3).mean((3, 5)).reshape(n, -1)
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((FILTERS, 3, FILTER, FILTER), np.float32)
    # Without a mean, half of the filters see edges only; the other half sees colour too.
    filters[::2] -= filters[::2].mean((2, 3), keepdims=True)
    projection = rng.standard_normal((coarse.shape[1], PROJECTIONS), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (FILTER, FILTER), axis=(2, 3))
    response = np.maximum(
        np.tensordot(windows[:, :, ::STRIDE, ::STRIDE], filters, ((4, 5, 6), (1, 2, 3))), 0
    )
    change = np.abs(np.diff(response, axis=1)) if f > 1 else np.zeros_like(response)
    features = (coarse @ projection, response.mean((1, 2, 3)), change.mean((1, 2, 3)))
    return np.concatenate(features, -1).astype(np.float64)


@functools.lru_cache
def _real_moments(world: World, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the raw features over real videos, cut or repeated to `frames`."""
    count = 4 * len(world.captions())
    real = np.stack([video for _, video in toy.videos(count, 0, world)])
    raw = _raw_features(np.take(real, np.arange(frames) % world.frames, axis=1))
    return raw.mean(0), np.maximum(raw.std(0), 1e-3)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.cov(features, rowvar=False)
    scale = np.trace(covariance) / len(covariance)
    return features.mean(0), (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(
        len(covariance)
    )


def _root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
