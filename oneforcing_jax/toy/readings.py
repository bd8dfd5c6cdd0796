"""Reads the scene of toy videos back from their pixels.

The readings know the toy world and nothing else. They are made for blurred and broken videos: whatever the
pixels hold, each reading is either one of the world's words or none.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.toy import world as toy
from oneforcing_jax.toy.world import WORLD, World

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


class Readings(NamedTuple):
    """What the pixels of n videos say.

    Attributes:
      colour, shape, direction: int [n], position in the world's tuple of that name, -1 for none.
      motion: float [n], mean distance the centroid moves, pixels a frame.
      clear: bool [n], whether colour and shape are beyond doubt in all frames together.
      steady: float [n], mean correlation of the shape, cut out in colour, with itself one frame later.
      scene: float [n, p], parameters of the scene: colour (0..1), correlation with each shape, place in the
        first frame and speed (rows and columns, pixels).
    """

    colour: np.ndarray
    shape: np.ndarray
    direction: np.ndarray
    motion: np.ndarray
    clear: np.ndarray
    steady: np.ndarray
    scene: np.ndarray


def read(videos: np.ndarray, world: World = WORLD) -> Readings:
    """Reads videos, uint8 [n, f, y, x, 3].

    Raises:
      InputError: another shape or dtype.
    """
    check(videos, world)
    bright = videos.max(-1).astype(np.float32) / 255
    weight = _foreground(bright)
    present = weight.sum((2, 3)) > 0
    centre = _centroids(weight)

    tint = np.einsum("nfyx,nfyxc->nc", weight, videos.astype(np.float32) / 255)
    tint /= np.maximum(weight.sum((1, 2, 3)), 1e-6)[:, None]
    colours = np.array([toy.COLOURS[name] for name in world.colours], np.float32)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    # The angle alone counts, because a blurred shape is darker but not of another colour.
    angle = (tint @ colours.T) / np.maximum(np.linalg.norm(tint, axis=1), 1e-6)[:, None]
    colour = np.where(present.any(1), angle.argmax(1), -1)

    crops = _standardise(_crop(weight, centre, _reach(world)))
    match = np.einsum("nfp,sp->nfs", crops, _templates(world))
    match = (match * present[..., None]).sum(1) / np.maximum(present.sum(1), 1)[:, None]
    shape = np.where(match.max(1) >= LEAST_CORRELATION, match.argmax(1), -1)

    steps = np.array([toy.DIRECTIONS[name] for name in world.directions])
    # A shape that turns back goes where it was told in its first two steps.
    part = slice(3) if world.bounce else slice(None)
    speed = _slopes(centre[:, part], present[:, part])
    along = speed @ steps.T
    moving = along.max(1) >= LEAST_SPEED * world.speed
    direction = np.where(moving, along.argmax(1), -1)

    both = present[:, 1:] & present[:, :-1]
    pairs = np.maximum(both.sum(1), 1)
    motion = (np.linalg.norm(np.diff(centre, axis=1), axis=-1) * both).sum(1) / pairs
    clear = (angle.max(1) >= CLEAR_COLOUR) & (match.max(1) >= CLEAR_SHAPE)
    scene = np.concatenate([tint, match, centre[:, 0], speed], 1)
    return Readings(
        colour, shape, direction, motion, clear, _steady(videos, centre, both, world), scene
    )


def _steady(videos: np.ndarray, centre: np.ndarray, both: np.ndarray, world: World) -> np.ndarray:
    coloured = [_crop(videos[..., c].astype(np.float32), centre, _reach(world)) for c in range(3)]
    cut = _standardise(np.concatenate(coloured, -1))
    alike: np.ndarray = ((cut[:, 1:] * cut[:, :-1]).sum(-1) * both).sum(1)
    return alike / np.maximum(both.sum(1), 1)


def check(videos: np.ndarray, world: World) -> None:
    size = (world.size, world.size, 3)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[2:] != size or not videos.size:
        raise InputError(
            f"expected videos uint8 [n, f, {world.size}, {world.size}, 3], found {videos.dtype} "
            f"{list(videos.shape)}"
        )


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
