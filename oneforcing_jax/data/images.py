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
            turned = ImageOps.exif_transpose(image)
            return np.asarray(_coloured(turned, image.format, str(path), log))[None]
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
    if sixteen:  # clipping at 255 would leave white
        grey = np.asarray(image).astype(np.uint32).clip(0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    alpha = None
    if image.has_transparency_data:
        log(f"{path}: transparent, laid on {GROUND}")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    image = _in_srgb(image, profile, path, log) if profile else image.convert("RGB")
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
    """Frames uint8 [f, y, x, 3] scaled to cover rows x columns, and cut to it about the middle."""
    _, y, x, _ = video.shape
    if (y, x) == (rows, columns):
        return video
    least = cover(y, x, (rows, columns))
    return np.stack([middle(resized(frame, *least), rows, columns) for frame in video])
