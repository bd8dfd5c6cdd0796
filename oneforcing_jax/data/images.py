"""Frames of image and video files, brought to a size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


def read_image(path: str | Path) -> np.ndarray:
    """An image as a video of one frame, uint8 [1, y, x, 3].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image file at {path}; check the path")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (UnidentifiedImageError, OSError, ValueError):
        raise ValueError(f"{path}: expected an image, found another file; replace it") from None


def cover(video: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Frames uint8 [f, y, x, 3] scaled to cover rows x columns, and cut to it about the middle."""
    y, x = video.shape[1:3]
    if (y, x) == (rows, columns):
        return video
    scale = max(rows / y, columns / x)
    tall, wide = max(rows, round(y * scale)), max(columns, round(x * scale))
    top, left = (tall - rows) // 2, (wide - columns) // 2
    scaled = (
        Image.fromarray(frame).resize((wide, tall), Image.Resampling.LANCZOS) for frame in video
    )
    return np.stack([np.asarray(f)[top : top + rows, left : left + columns] for f in scaled])
