"""How well the mark of generate --mark is found: after H.264, resizing and cropping, and where there is none.

    python tools/mark_study.py --out=marks.json

Toy videos, scenes made of noise, and scikit-image's photographs, which move (pip install -e ".[measures]").
Prints the table of docs/provenance.md. The same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data import mark
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.evaluation.pixels import opencv, ssim
from oneforcing_jax.system.command import Help, any_path, count, ending
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.toy import world as toy

FPS = 16.0
SIZE, FRAMES = (240, 416), 33
# There are many unmarked clips.
SMALL, FEW = (96, 160), 9
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "rocket",
)
LARGE_TOY = toy.World(size=96, radius=20.0, speed=6.0, jitter_along=4.0, jitter_across=12.0)
# Shares of rows and columns that a crop leaves.
CROPS = {"crop to 90% x 80%": (0.9, 0.8), "crop to 80% x 80%": (0.8, 0.8)}


def scene(number: int, size: tuple[int, int] = SIZE, frames: int = FRAMES) -> np.ndarray:
    """A scene uint8 [f, y, x, 3]: even numbers are a moving, zooming photograph, odd ones are noise before
    which textured discs move. Every fifth stands still."""
    rng = np.random.default_rng([7, number])
    back = _photo(PHOTOS[number // 2 % len(PHOTOS)]) if number % 2 == 0 else _noise(rng, size)
    discs = [] if number % 2 == 0 else [_noise(rng, size) for _ in range(3)]
    speed = 0.0 if number % 5 == 0 else rng.uniform(0.3, 3.0)
    turn, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.002, 0.002) * (speed > 0)
    places = rng.uniform(0.2, 0.8, (3, 2)) * size
    paths = rng.normal(0, speed, (3, 2))
    made = []
    for t in range(frames):
        way = speed * t * np.array([np.sin(turn), np.cos(turn)])
        image = _shown(back, size, way, 1.2 + zoom * t)
        for texture, place, path in zip(discs, places, paths, strict=False):
            rows, columns = np.mgrid[: size[0], : size[1]]
            centre = place + path * t
            inside = np.hypot(rows - centre[0], columns - centre[1]) < size[0] / 7
            image[inside] = _shown(texture, size, centre - place, 1.2)[inside]
        made.append(image)
    return np.stack(made)


def _photo(name: str) -> np.ndarray:
    import skimage.data

    image = getattr(skimage.data, name)()
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coloured noise whose amplitude falls with frequency as that of photographs does."""
    white = np.fft.rfft2(rng.normal(size=(3, *size)))
    down, across = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    pink = np.fft.irfft2(white / np.maximum(np.hypot(down, across), 1 / size[1]), s=size)
    # Grey for the most part.
    pink = pink / pink.std() + 2 * pink[:1] / pink[:1].std()
    return np.clip(128 + 20 * np.moveaxis(pink, 0, -1), 0, 255).astype(np.uint8)


def _shown(image: np.ndarray, size: tuple[int, int], way: np.ndarray, zoom: float) -> np.ndarray:
    """An image that covers a frame at a zoom, moved by some pixels from the middle."""
    cv2 = opencv()
    scale = zoom * max(size[0] / image.shape[0], size[1] / image.shape[1])
    down, right = (np.array(size) - scale * np.array(image.shape[:2])) / 2 + way
    matrix = np.array([[scale, 0, right], [0, scale, down]])
    area = {"flags": cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC}
    return cv2.warpAffine(image, matrix, size[::-1], borderMode=cv2.BORDER_REFLECT, **area)


def encoded(frames: np.ndarray, crf: int, full_chroma: bool = False) -> np.ndarray:
    """Frames as a player shows them after H.264."""
    with tempfile.TemporaryDirectory() as folder:
        write_video(f"{folder}/a.mp4", frames, FPS, crf=crf, full_chroma=full_chroma)
        return read_video(f"{folder}/a.mp4")[0]


def resized(frames: np.ndarray, scale: float) -> np.ndarray:
    """Frames at another size, even in rows and columns."""
    cv2 = opencv()
    rows, columns = (2 * round(scale * size / 2) for size in frames.shape[1:3])
    area = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (columns, rows), interpolation=area) for frame in frames])


def cropped(frames: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """The middle of frames, even in rows and columns."""
    tall, wide = (
        2 * round(s * n / 2) for s, n in zip((rows, columns), frames.shape[1:3], strict=True)
    )
    top, left = (frames.shape[1] - tall) // 2, (frames.shape[2] - wide) // 2
    return frames[:, top : top + tall, left : left + wide]


def _z(frames: np.ndarray, key: str = mark.KEY) -> list[float]:
    return list(mark.detect(mark.average(frames), key)[:2])


def of_scene(number: int) -> dict[str, Any]:
    """A marked scene: what the mark costs, and (z, false alarm) after each treatment."""
    plain = scene(number)
    marked = mark.add(plain)
    files = {crf: encoded(marked, crf) for crf in (18, 23, 28)}
    error = np.square(marked.astype(float) - plain).mean()
    like = np.mean([ssim(a, b) for a, b in zip(marked[::8], plain[::8], strict=True)])
    found: dict[str, Any] = {"psnr": 10 * np.log10(255**2 / error), "ssim": float(like)}
    found |= {f"H.264, crf {crf}": _z(frames) for crf, frames in files.items()}
    for scale in (0.5, 1.5):
        found[f"crf 23, resized x {scale}, crf 23"] = _z(encoded(resized(files[23], scale), 23))
    for name, shares in CROPS.items():
        part = encoded(cropped(files[23], *shares), 23)
        found[f"crf 23, {name}, crf 23"] = _z(part)
        found[f"crf 23, {name}, crf 23, searched"] = list(mark.search(mark.average(part))[:2])
    return found


def of_toy(number: int, world: toy.World) -> dict[str, Any]:
    """A marked toy video, encoded as generate encodes small ones."""
    caption = world.captions()[number % len(world.captions())]
    marked = mark.add(toy.render(caption, np.random.default_rng([11, number]), world))
    return {f"H.264, crf {crf}": _z(encoded(marked, crf, True)) for crf in (8, 18, 23)}


def unmarked(number: int, searches: int) -> dict[str, Any]:
    """A clip without the mark, tested with the usual key and with another; the first ones also searched."""
    if number % 2:
        frames = encoded(scene(number, SMALL, FEW), 23)
    else:
        caption = toy.WORLD.captions()[number // 2 % len(toy.WORLD.captions())]
        frames = encoded(toy.render(caption, np.random.default_rng([13, number])), 18, True)
    found = {"unmarked": _z(frames), "unmarked, another key": _z(frames, f"key {number}")}
    if number < searches:
        found["unmarked, searched"] = list(mark.search(mark.average(frames))[:2])
    return found


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of clips, and what measures each."""
    for i in range(args.scenes):
        yield f"scene {i}", functools.partial(of_scene, i)
    for name, world in (("toy 24x24", toy.WORLD), ("toy 96x96", LARGE_TOY)):
        for i in range(args.toys):
            yield f"{name} {i}", functools.partial(of_toy, i, world)
    for i in range(args.unmarked):
        yield f"unmarked {i}", functools.partial(unmarked, i, args.searches)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: of each kind of clip and treatment, how many were found, and z."""
    values: dict[tuple[str, str], list[list[float]]] = {}
    for name, row in rows.items():
        for treatment, found in row.items():
            pair = found if isinstance(found, list) else [found, 1.0]
            values.setdefault((name.rsplit(" ", 1)[0], treatment), []).append(pair)
    lines = [
        "| clips | treatment | found | z: least | median | most |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (kind, treatment), pairs in values.items():
        z, chance = np.array(pairs).T
        marks = f"{(chance <= mark.FALSE_ALARM).sum()} of {len(z)}"
        if treatment in ("psnr", "ssim"):
            marks = ""
        figures = " | ".join(f"{x:.4g}" for x in (z.min(), np.median(z), z.max()))
        lines.append(f"| {kind} | {treatment} | {marks} | {figures} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="mark_study", description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--out", required=True, type=any_path, help=".json of every clip")
    add("--scenes", type=count, default=20, help="large scenes, marked")
    add("--toys", type=count, default=100, help="toy videos of each size, marked")
    add("--unmarked", type=count, default=1000, help="clips without the mark")
    add("--searches", type=count, default=200, help="of those, searched as if they were cropped")
    args = parser.parse_args(arguments)
    with ending("the same command continues after the finished clips"):
        rows = read_record(args.out) if args.out.exists() else {}
        for name, measured in tqdm(list(cases(args)), unit="clip", disable=None):
            if name not in rows:
                rows[name] = measured()
                write_whole(args.out, json.dumps(rows).encode())
        print(table(rows))


if __name__ == "__main__":
    main()
