"""The moving picture at the beginning of README.md: the demo's student, and a prompt that is switched.

python tools/demo_picture.py --out docs/demo.webp
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from oneforcing_jax import Pipeline
from oneforcing_jax.data.resize import enlarged
from oneforcing_jax.system.command import Help, ending

# Prompt, seed (chosen so that colours differ), and what the prompt becomes at half of the frames.
VIDEOS = (
    ("a circle moving left", 3, None),
    ("a square moving up", 1, None),
    ("a triangle moving right", 4, None),
    ("a square moving left", 5, "a circle moving down"),
)
FRAMES, SIDE, GAP, LINE, SIZE = 32, 192, 12, 34, 15


def shown(pipeline: Pipeline, prompt: str, seed: int, then: str | None) -> Iterator[Image.Image]:
    """Frames of a video with the prompt below."""
    font, said = ImageFont.load_default(SIZE), prompt
    for number, frame in enumerate(pipeline.stream(prompt, num_frames=FRAMES, seed=seed)):
        if then and number == FRAMES // 2:
            pipeline.switch(then)
            said = f"then {then}"
        tile = Image.new("RGB", (SIDE, SIDE + LINE), "white")
        tile.paste(Image.fromarray(enlarged(frame, SIDE)))
        ImageDraw.Draw(tile).text((SIDE / 2, SIDE + LINE / 2), said, "black", font, anchor="mm")
        yield tile


def picture(pipeline: Pipeline) -> list[Image.Image]:
    """All videos side by side."""
    rows = [list(shown(pipeline, *video)) for video in VIDEOS]
    gap = np.full((SIDE + LINE, GAP, 3), 255, np.uint8)
    parts = [
        [x for tile in tiles for x in (np.asarray(tile), gap)] for tiles in zip(*rows, strict=True)
    ]
    return [Image.fromarray(np.concatenate(row[:-1], 1)) for row in parts]


def main(arguments: Sequence[str] | None = None, prog: str = "demo_picture") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("--out", required=True, type=Path, help=".webp or .gif")
    given = parser.parse_args(arguments)
    with ending("nothing was written"):
        pipeline = Pipeline.from_pretrained("demo")
        first, *others = picture(pipeline)
        first.save(
            given.out, save_all=True, append_images=others, loop=0, duration=round(1000 / pipeline.fps),
            quality=80, method=6,
        )  # fmt: skip
        print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
