"""Decoded frames to RGB: the planes of any pixel format, through the matrix and the range that the file says.

What a frame holds is Y'CbCr of ITU-T H.273, or RGB. Primaries are left as they are: BT.601, BT.709 and
BT.2020 are told apart by their matrices alone, as players without colour management do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from oneforcing_jax.data.resize import EVERY, Axis, Sampled, Sited, put, resized, strips
from oneforcing_jax.errors import InputError

# How pixels are read, in the attributes of a store. Stores that do not say it were made through swscale, and
# are up to 2 of 255 darker than their videos.
SAID = {"pixels": 2}
# H.273's numbers of matrices, with the weights of red and blue in brightness.
_MATRICES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
             9: (0.2627, 0.0593)}  # fmt: skip
# Of RGB, and of a file that does not say.
_UNSAID = (0, 2, 3)
# H.273's numbers of transfer functions that are no standard dynamic range.
_HIGH_RANGE = {16: "PQ", 18: "HLG"}
_FULL = 2
# Formats whose samples are read as they lie: planes, or all of a pixel side by side.
_READ = re.compile(
    r"(yuv[aj]?4\d\dp|gbra?p|gray)(9|1[0246])?(le)?|ya8|ya16le|rgb24|rgba|rgb48le|rgba64le"
)


def is_current(attributes: Mapping[str, Any]) -> bool:
    """Whether a store with these attributes holds videos that were read as they are now, or none at all."""
    return "clip" not in attributes or attributes.get("pixels") == SAID["pixels"]


class Sites(NamedTuple):
    """Where samples of colour lie between those of brightness, in half pixels: down and across."""

    down: int
    across: int


# By H.273's number; the last two are of colour in one field.
SITES = (Sites(1, 0), Sites(1, 1), Sites(0, 0), Sites(0, 1), Sites(2, 0), Sites(2, 1))
LEFT, CENTRE, TOP_LEFT = SITES[:3]


def check(frame: av.VideoFrame) -> None:
    """Refuses frames that are no whole pictures of standard range.

    Raises:
      InputError: interlaced, of high dynamic range, or through a matrix that is not known here.
    """
    if frame.interlaced_frame:
        raise InputError(
            "interlaced frames, which hold two moments each; deinterlace it first (ffmpeg -vf bwdif)"
        )
    if (trc := int(frame.color_trc)) in _HIGH_RANGE:
        raise InputError(
            f"high dynamic range ({_HIGH_RANGE[trc]}), which has no one look in 8 bits; map its tones first "
            "(ffmpeg -vf zscale=t=linear,tonemap=hable,zscale=t=bt709:m=bt709:r=tv,format=yuv420p)"
        )
    if not frame.format.is_rgb and int(frame.colorspace) not in (*_MATRICES, *_UNSAID):
        raise InputError(
            f"the colour matrix {int(frame.colorspace)} of ITU-T H.273; convert it to BT.709 first"
        )


def rgb(
    frame: av.VideoFrame, rows: int, columns: int, sites: Sites, converter: VideoReformatter
) -> tuple[np.ndarray, bool]:
    """A frame at another size, and whether it was transparent somewhere; then it lies on white.

    Args:
      frame: as it was decoded.
      rows, columns: wanted.
      sites: of its colour, where there is less of it than of brightness.
      converter: for the formats that are not read as they lie; one serves all frames of a file.

    Returns:
      uint8 [rows, columns, 3].
    """
    planes = _planar(frame, converter)
    if planes.alpha is None or planes.alpha.min() == planes.white:
        return _through(frame, planes, rows, columns, sites), False
    whole = _through(frame, planes, frame.height, frame.width, sites)
    share = planes.alpha[..., None].astype(np.float32) / planes.white
    laid = (whole * share + 255 * (1 - share) + 0.5).astype(np.uint8)
    return resized(laid, rows, columns), True


class _Planes(NamedTuple):
    """Planes of a frame: brightness and colour, or red, green and blue; the greatest number; transparency."""

    colours: list[np.ndarray]
    white: int
    alpha: np.ndarray | None
    is_rgb: bool


def _planar(frame: av.VideoFrame, converter: VideoReformatter) -> _Planes:
    if not _READ.fullmatch(frame.format.name):
        # Nearest neighbours move samples alone: no arithmetic, where the sizes of planes stay. In one thread,
        # for where two of FFmpeg's meet, a row of P010 has now and then the colours of another.
        frame = converter.reformat(
            frame, format=_nearest(frame.format), interpolation=Interpolation.POINT, threads=1
        )
    layout, colours, alpha = frame.format, [], None
    for number, component in enumerate(layout.components):
        plane: Any = frame.planes[component.plane]
        samples = np.frombuffer(plane, np.uint16 if component.bits > 8 else np.uint8)
        samples = samples.reshape(plane.height, -1)
        if len(frame.planes) == 1 and len(layout.components) > 1:  # rgb24, rgba
            width = len(layout.components)
            samples = samples[:, : frame.width * width].reshape(frame.height, -1, width)
            samples = samples[..., number]
        samples = samples[:, : component.width]
        if component.is_alpha:
            alpha = samples
        else:
            colours.append(samples)
    return _Planes(colours, (1 << layout.components[0].bits) - 1, alpha, layout.is_rgb)


def _nearest(layout: av.VideoFormat) -> str:
    """The format that holds the same samples and is read as it lies."""
    parts = layout.components
    deep = max(part.bits for part in parts) > 8
    clear = any(part.is_alpha for part in parts) or layout.has_palette
    if layout.is_rgb or layout.has_palette:
        return ("rgba64le" if clear else "rgb48le") if deep else ("rgba" if clear else "rgb24")
    if len(parts) - clear == 1:
        return ("ya16le" if clear else "gray16le") if deep else ("ya8" if clear else "gray")
    across, down = (
        round(parts[0].width / parts[1].width),
        round(parts[0].height / parts[1].height),
    )
    kinds = {
        (1, 1): "444p",
        (2, 1): "422p",
        (2, 2): "420p",
        (4, 1): "411p",
        (1, 2): "440p",
        (4, 4): "410p",
    }
    return f"yuv{'a' * clear}{kinds[across, down]}{'16le' * deep}"


def _through(
    frame: av.VideoFrame, planes: _Planes, rows: int, columns: int, sites: Sites
) -> np.ndarray:
    """Colours of a frame at another size, uint8 [rows, columns, 3]."""
    height, width = frame.height, frame.width
    sampled = []
    for plane in planes.colours:
        y, x = plane.shape
        down = _sited(round(height / y), sites.down)
        across = _sited(round(width / x), sites.across)
        axes = Axis(height, rows, y, down), Axis(width, columns, x, across)
        sampled.append(Sampled(plane, *axes))
    matrix, offset = _matrix(frame, planes)
    made = np.empty((rows, columns, 3), np.uint8)
    for where, strip in strips(sampled):
        found = matrix @ strip.reshape(len(strip), -1)
        found += offset[:, None]
        put(found.reshape(3, -1, columns), made[where])
    return made


def usual(rows: int, columns: int) -> int:
    """The number of the matrix that players take where a file says none: BT.709 from HD on, BT.601 below."""
    return 1 if columns >= 1280 or rows > 576 else 6


def _sited(step: int, halves: int) -> Sited:
    return EVERY if step == 1 else Sited(step, halves * (step - 1) / 2)


def _matrix(frame: av.VideoFrame, planes: _Planes) -> tuple[np.ndarray, np.ndarray]:
    """What makes 0..255 of samples: [3, planes] and [3], float32."""
    white, bits = planes.white, planes.white.bit_length()
    space = int(frame.colorspace)
    if planes.is_rgb:
        return np.eye(3, dtype=np.float32) * np.float32(255 / white), np.zeros(3, np.float32)
    if len(planes.colours) == 1 or "yuvj" in frame.format.name:
        full = int(frame.color_range) != 1  # untagged grey is of whole range in FFmpeg
    else:
        full = int(frame.color_range) == _FULL
    unit = 1 << (bits - 8)
    black, swing, colour = (0, white, white) if full else (16 * unit, 219 * unit, 224 * unit)
    if len(planes.colours) == 1:
        scale = np.full((3, 1), 255 / swing)
        return scale.astype(np.float32), (scale[:, 0] * -black).astype(np.float32)
    red, blue = _MATRICES[space if space in _MATRICES else usual(frame.height, frame.width)]
    green = 1 - red - blue
    rows = [
        [1, 0, 2 * (1 - red)],
        [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
        [1, 2 * (1 - blue), 0],
    ]
    scale = np.array(rows) * [255 / swing, 255 / colour, 255 / colour]
    return scale.astype(np.float32), (scale @ [-black, -128 * unit, -128 * unit]).astype(np.float32)
