"""The contact sheet: one row a model, some prompts across, first, middle and last frame of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from oneforcing_jax.system.files import write_whole

PROMPTS = 5
LABEL = 250
GAP = 10
# Pixels of a frame on the sheet.
FRAME = 80


def spread(known: int, count: int) -> list[int]:
    """`count` of `known` captions, from all over. The stride is odd, because the kind of word that changes
    from caption to caption has 2 or 4 words."""
    stride = max(1, known // max(count, 1)) | 1
    return sorted({n * stride % known for n in range(count)})


def contact_sheet(
    path: Path,
    videos: Mapping[str, np.ndarray],
    results: Mapping[str, Mapping[str, float]],
    captions: Sequence[str],
    real_captions: Sequence[str],
) -> None:
    """Draws the sheet as a PNG.

    Args:
      path: of the PNG.
      videos: uint8 [n, f, y, x, 3] by row.
      results: scores by row; those of a row may be missing.
      captions: of the generated videos; rows whose name begins with "real" have `real_captions`.
    """
    frames = next(iter(videos.values())).shape[1]
    shown = sorted({0, frames // 2, frames - 1})
    chosen = spread(len(set(captions)), PROMPTS)
    cell = len(shown) * (FRAME + 2) + GAP
    height = FRAME + 2 * GAP
    sheet = Image.new(
        "RGB", (LABEL + PROMPTS * cell, 2 * GAP + 20 + len(videos) * height), (250, 250, 250)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, i in enumerate(chosen):
        draw.text((LABEL + column * cell, GAP), captions[i], (20, 20, 20), font)
    for row, (name, clips) in enumerate(videos.items()):
        top = 2 * GAP + 20 + row * height
        draw.text((GAP, top), name, (20, 20, 20), font)
        for n, line in enumerate(_lines(results[name]) if name in results else ()):
            draw.text((GAP, top + 18 * (n + 1)), line, (110, 110, 110), font)
        own = real_captions if name.startswith("real") else captions
        for column, i in enumerate(chosen):
            same = [j for j, caption in enumerate(own) if caption == captions[i]]
            for n, frame in enumerate(shown):
                picture = Image.fromarray(clips[same[0] if same else i][frame])
                left = LABEL + column * cell + n * (FRAME + 2)
                sheet.paste(picture.resize((FRAME, FRAME), Image.Resampling.NEAREST), (left, top))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def _lines(scores: Mapping[str, float]) -> tuple[str, str, str]:
    """What is said of a row."""
    return (
        f"as the caption says {scores['joint']:.2f}",
        f"clear {scores['clear']:.2f}  sharp {scores['sharpness']:.2f}",
        f"Frechet {scores['frechet']:.1f}",
    )
