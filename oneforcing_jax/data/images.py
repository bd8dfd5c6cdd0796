"""First frames of a video from files: images, and videos at the model's size and rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from oneforcing_jax.data.video import Clip, cover
from oneforcing_jax.errors import InputError, MissingInput

# Pixels that an image may have. Its header says how many, before anything is decoded.
MOST_PIXELS = 1 << 27
# What lies under a transparent image.
GROUND = "white"


def read_image(path: str | Path, log: Callable[[str], None] = print) -> np.ndarray:
    """An image as a video of one frame, uint8 [1, y, x, 3], turned as it is shown.

    Grey of 16 bits is brought to 8. A transparent image lies on white, and of an animated one the first
    frame counts; both are logged.

    Raises:
      MissingInput: there is no such file.
      InputError: it is no image, or one of unlikely size.
    """
    if not Path(path).is_file():
        raise MissingInput(f"no image file at {path}; check the path")
    return decode_image(path, path, log)


def decode_image(
    file: str | Path | BinaryIO,
    path: str | Path,
    log: Callable[[str], None],
    most: int = MOST_PIXELS,
    kinds: tuple[str, ...] | None = None,
) -> np.ndarray:
    """The same of an open file.

    Args:
      file: the image.
      path: its name in errors.
      log: see `read_image`.
      most: pixels that it may have.
      kinds: Pillow's names of the formats that it may have; None: all.

    Raises:
      InputError: it is no image, or one of unlikely size.
    """
    try:
        with Image.open(file, formats=kinds) as image:
            if image.width * image.height > most:
                raise InputError(
                    f"{path}: expected an image of at most {most:,} pixels, found a header of "
                    f"{image.width} x {image.height}; make it smaller"
                )
            if (count := getattr(image, "n_frames", 1)) > 1:
                log(f"{path}: animated, the first of its {count} frames is taken")
            return np.asarray(_coloured(ImageOps.exif_transpose(image), str(path), log))[None]
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: expected an image of at most {most:,} pixels, found a header of more ({error}); "
            "make it smaller"
        ) from None
    except (UnidentifiedImageError, OSError, ValueError):
        raise InputError(f"{path}: expected an image, found another file; replace it") from None


def _coloured(image: Image.Image, path: str, log: Callable[[str], None]) -> Image.Image:
    """An image in RGB, 8 bits each."""
    if image.mode.startswith("I"):  # 16 bits; clipping at 255 would leave white
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(grey, 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        log(f"{path}: transparent, laid on {GROUND}")
        ground = Image.new("RGBA", image.size, GROUND)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


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
