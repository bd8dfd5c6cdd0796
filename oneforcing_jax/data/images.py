"""First frames of a video from files: images, and videos at the model's size and rate."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from oneforcing_jax.data.resize import cover, middle, resized
from oneforcing_jax.errors import InputError, MissingInput

# Pixels that an image may have. Its header says how many, before anything is decoded.
MOST_PIXELS = 1 << 27
# What lies under a transparent image.
GROUND = "white"
# Rows that are computed in wide numbers at once.
_STRIP = 64
# Pillow's modes of which it makes means.
_MEANS = ("L", "LA", "RGB", "RGBA", "CMYK")
# An image that covers a video may have so many times its pixels: one of 1 x 1,000,000 would have billions.
_WIDEST = 64


def read_image(path: str | Path, log: Callable[[str], None] = print) -> np.ndarray:
    """An image as a video of one frame, uint8 [1, y, x, 3], turned as it is shown.

    Colours are those of its ICC profile in sRGB. Grey of 16 bits is brought to 8. A transparent image lies on
    white, and of an animated one the first frame counts; both are logged.

    Raises:
      MissingInput: there is no such file.
      InputError: it is no image, one of unlikely size, or of numbers that do not say what white is.
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
    side: int | None = None,
) -> np.ndarray:
    """The same of an open file.

    Args:
      file: the image.
      path: its name in errors.
      log: see `read_image`.
      most: pixels that it may have.
      kinds: Pillow's names of the formats that it may have; None: all.
      side: pixels of the longer side of what will be made of it. Where it has several times as many, it is
        made smaller before it is copied, to twice that or more; None: it stays as large as it is.

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
            kind, lighter = image.format, _lighter(image, side)
            ImageOps.exif_transpose(lighter, in_place=True)
            return np.asarray(_coloured(lighter, kind, str(path), log))[None]
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: expected an image of at most {most:,} pixels, found a header of more ({error}); "
            "make it smaller"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected an image, found {_named(file)}") from None
    except (OSError, ValueError, SyntaxError):
        raise InputError(
            f"{path}: expected a whole image, found one that is cut or damaged; replace it"
        ) from None


def _named(file: str | Path | BinaryIO) -> str:
    """What a file is that Pillow does not read, and what to do."""
    if isinstance(file, (str, Path)):
        with Path(file).open("rb") as opened:
            return _named(opened)
    file.seek(0)
    head = file.read(32)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "HEIC; convert it to PNG or JPEG"
    if brand == b"avif":
        return "AVIF, which this Pillow does not read; convert it to PNG or JPEG"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL; convert it to PNG or JPEG"
    if brand or head.startswith(b"\x1aE\xdf\xa3"):
        return "a video; give it with --video, or a frame of it as PNG"
    if head.lstrip().startswith((b"<svg", b"<?xml", b"%PDF")):
        return "a drawing or document; export it as PNG"
    return "another file; replace it"


def _lighter(image: Image.Image, side: int | None) -> Image.Image:
    """An image whose sides are several times as long, at a whole part of its size: means of its pixels."""
    if side is not None and min(image.size) >= 4 * side:
        # A JPEG is decoded at a half, a quarter or an eighth.
        image.draft(None, (2 * side, 2 * side))
        factor = min(image.size) // (2 * side)
        # A colour that stands for transparency is no colour of a mean.
        whole = image.mode in _MEANS and "transparency" not in image.info
        return image.reduce(factor) if factor > 1 and whole else image
    return image


def _eight(grey: np.ndarray) -> np.ndarray:
    """Numbers of 16 bits [y, x] as uint8; clipped at 255, white would be left alone."""
    made = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), _STRIP):  # wide numbers only for a few rows
        wide = grey[top : top + _STRIP].astype(np.uint32).clip(0, 65535)
        made[top : top + _STRIP] = (wide * 255 + 32767) // 65535
    return made


def _coloured(
    image: Image.Image, kind: str | None, path: str, log: Callable[[str], None]
) -> Image.Image:
    """An image in sRGB, 8 bits each; `kind` is the format of its file."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    if image.mode in ("F", "I") and not sixteen:
        bits = "float" if image.mode == "F" else "32-bit"
        raise InputError(
            f"{path}: expected 8 or 16 bits, found {bits} numbers, which do not say what white is; convert it"
        )
    profile = image.info.get("icc_profile")
    if sixteen:
        image = Image.fromarray(_eight(np.asarray(image)))
    alpha = None
    if image.has_transparency_data:
        log(f"{path}: transparent, laid on {GROUND}")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    if profile:
        image = _in_srgb(image, profile, path, log)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if alpha:
        image = Image.composite(image, Image.new("RGB", image.size, GROUND), alpha)
    return image


def _in_srgb(
    image: Image.Image, profile: bytes, path: str, log: Callable[[str], None]
) -> Image.Image:
    """An image whose colours are those of its ICC profile, as a viewer shows it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")
        target = ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        log(f"{path}: its colour profile is damaged or of another kind of image, and is left out")
        made = None
    return made or image.convert("RGB")


def fit(video: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Frames uint8 [f, y, x, 3] scaled to cover rows x columns, and cut to it about the middle.

    Raises:
      InputError: they are so narrow that almost all of them would be cut away.
    """
    _, y, x, _ = video.shape
    if (y, x) == (rows, columns):
        return video
    least = cover(y, x, (rows, columns))
    if least[0] * least[1] > _WIDEST * rows * columns:
        raise InputError(
            f"image: expected proportions near those of {rows} x {columns}, found {y} x {x}; cut it to what "
            "is to be seen"
        )
    return np.stack([middle(resized(frame, *least), rows, columns) for frame in video])
