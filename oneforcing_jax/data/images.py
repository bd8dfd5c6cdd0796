"""First frames of a video from files: images, and videos at the model's size and rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from oneforcing_jax.data.video import Clip, cover
from oneforcing_jax.errors import InputError, MissingInput


def read_image(path: str | Path) -> np.ndarray:
    """An image as a video of one frame, uint8 [1, y, x, 3], turned as it is shown.

    Raises:
      MissingInput: there is no such file.
      InputError: it is no image.
    """
    if not Path(path).is_file():
        raise MissingInput(f"no image file at {path}; check the path")
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except (UnidentifiedImageError, OSError, ValueError):
        raise InputError(f"{path}: expected an image, found another file; replace it") from None


def fit(video: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Frames uint8 [f, y, x, 3] scaled to cover rows x columns, and cut to it about the middle."""
    _, y, x, _ = video.shape
    if (y, x) == (rows, columns):
        return video
    tall, wide = cover(y, x, Clip(len(video), rows, columns, 1.0))
    top, left = (tall - rows) // 2, (wide - columns) // 2
    sizes = (wide, tall), Image.Resampling.BICUBIC
    scaled = (Image.fromarray(frame).resize(*sizes) for frame in video)
    return np.stack([np.asarray(f)[top : top + rows, left : left + columns] for f in scaled])


def at_rate(video: np.ndarray, rate: float, fps: float) -> np.ndarray:
    """Frames at another rate, the nearest before each time; the last frame stays the last."""
    count = max(1, int((len(video) - 1) * fps / rate) + 1)
    back = np.arange(count)[::-1] * rate / fps
    return video[np.int64(np.round(len(video) - 1 - back))]
