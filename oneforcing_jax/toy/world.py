"""A world small enough to learn on a CPU: one shape of one colour that moves one way.

A video is uint8 [f, y, x, 3] on black. Its caption says all there is to know but the exact place: "a red
circle moving left". A world may leave words of it out. What they would say is then free in each video, and a
model has to choose one of several answers, whose mean is none. Shapes trail a dim tail, so that every single
frame shows the direction: a transformer with rotary embedding knows relative positions only, and learns
slowly what shows in them alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.video import write_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.ranges import Count, NotNegative, Positive
from oneforcing_jax.system import bounded, places, processes
from oneforcing_jax.system.files import write_whole

COLOURS = {
    "red": (235, 40, 40),
    "green": (30, 190, 60),
    "blue": (60, 90, 245),
    "yellow": (245, 215, 40),
}
SHAPES = ("circle", "square", "triangle")
# Unit steps (down, right).
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

FPS = 8.0
# Near lossless: what is lost here would cap every score.
CRF = 8
SUPERSAMPLE = 4
# Echoes of the shape behind it: pixels between them, and brightness of each. All are below half of the
# shape's, where readings of the shape begin.
TAIL_STEP = 1.5
TAIL = (0.42, 0.36, 0.3, 0.24)


class Attributes(NamedTuple):
    """What a caption says; "" where it leaves something open."""

    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        words = ("a", self.colour, self.shape or "thing", "moving", self.direction)
        return " ".join(word for word in words if word)


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes and words of a world.

    The path is centred in the frame along the axis of motion: something that moves right starts on the left.
    Or it begins anywhere, and turns back where the shape touches the edge; so videos may have any length.

    Attributes:
      size: rows and columns of a frame, in pixels.
      frames: frames a video.
      speed: pixels a frame.
      radius: half the height of a shape, in pixels; the largest reach to any side.
      jitter_along, jitter_across: the centre of the path is drawn uniformly within this many
        pixels of the centre of the frame, along and across the motion.
      colours, shapes, directions: the words in use, of COLOURS, SHAPES and DIRECTIONS.
      bounce: whether shapes turn back at the edge. The first two steps go where the caption says.
      told: which of "colour", "shape" and "direction" captions say; the others are free.

    Raises:
      InputError: an unknown word, or a shape that could leave the frame.
    """

    size: Count = 24
    frames: Count = 8
    speed: Positive = 1.5
    radius: Positive = 5.0
    jitter_along: NotNegative = 1.0
    jitter_across: NotNegative = 3.0
    colours: tuple[str, ...] = tuple(COLOURS)
    shapes: tuple[str, ...] = SHAPES
    directions: tuple[str, ...] = tuple(DIRECTIONS)
    told: tuple[str, ...] = Attributes._fields
    bounce: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("colours", COLOURS),
            ("shapes", SHAPES),
            ("directions", DIRECTIONS),
            ("told", Attributes._fields),
        ):
            words = getattr(self, name)
            if (
                not (words or name == "told")
                or len(set(words)) < len(words)
                or not set(words) <= set(known)
            ):
                raise InputError(f"expected {name} out of {list(known)}, found {list(words)}")
        if self.frames < 2:
            raise InputError(f"expected 2 frames or more to show motion, found {self.frames}")
        path = self.speed * (2 if self.bounce else self.frames - 1) / 2
        along = 0.0 if self.bounce else self.jitter_along
        reach = self.radius + max(path + along, self.jitter_across)
        if reach > self.size / 2:
            raise InputError(
                f"expected shapes that stay in the frame, found {reach} pixels of reach from the "
                f"centre of {self.size}; lower radius, speed, frames or jitter"
            )

    def attributes(self) -> list[Attributes]:
        """Every combination of a colour, a shape and a direction, in a fixed order."""
        return [
            Attributes(*words)
            for words in itertools.product(self.colours, self.shapes, self.directions)
        ]

    def captions(self) -> list[str]:
        """The caption of every combination, in the order of `attributes`."""
        return list(self._said())

    def _said(self) -> dict[str, Attributes]:
        """What each caption says."""
        open_ = {name: "" for name in Attributes._fields if name not in self.told}
        said = (attributes._replace(**open_) for attributes in self.attributes())
        return {attributes.caption: attributes for attributes in said}

    def parse(self, caption: str) -> Attributes:
        """The attributes of a caption of this world.

        Raises:
          InputError: no caption of this world.
        """
        if attributes := self._said().get(caption):
            return attributes
        raise InputError(
            f"expected a caption like {self.captions()[0]!r} with {list(self.colours)}, "
            f"{list(self.shapes)}, {list(self.directions)}, found {caption!r}"
        )


WORLD = World()
# The smallest world in which every attribute still has two values.
TINY = World(
    size=16,
    frames=4,
    speed=2.0,
    radius=4.0,
    jitter_along=1.0,
    jitter_across=2.0,
    colours=("red", "blue"),
    shapes=("square", "triangle"),
    directions=("left", "right"),
)


def render(caption: str | Attributes, rng: np.random.Generator, world: World = WORLD) -> np.ndarray:
    """Renders one video of a caption; the random generator decides the place, and what is not said.

    Returns:
      uint8 [f, y, x, 3].

    Raises:
      InputError: no caption of this world.
    """
    said = world.parse(caption if isinstance(caption, str) else caption.caption)
    begin = rng.uniform()
    along = -world.jitter_along + 2 * world.jitter_along * begin
    across = rng.uniform(-world.jitter_across, world.jitter_across)
    free = (world.colours, world.shapes, world.directions)
    words = (word or rng.choice(words) for word, words in zip(said, free, strict=True))
    colour, shape, direction = map(str, words)
    step = np.array(DIRECTIONS[direction])

    def centre(time: int, back: float) -> np.ndarray:
        aside = world.size / 2 + across * step[::-1]
        if world.bounce:
            return aside + step * bounced(begin, world.speed * time - back, world)
        middle = aside + along * step
        return middle + world.speed * (time - (world.frames - 1) / 2) * step - back * step

    echoes = [(0.0, 1.0), *((i * TAIL_STEP, dim) for i, dim in enumerate(TAIL, 1))]
    masks = np.stack(
        [
            np.max([dim * mask(shape, centre(t, back), world) for back, dim in echoes], axis=0)
            for t in range(world.frames)
        ]
    )
    return np.rint(masks[..., None] * np.array(COLOURS[colour])).astype(np.uint8)


def bounced(begin: float, way: Any, world: World) -> Any:
    """How far, in its first direction, a shape is from the middle of the frame after some way, in pixels.

    Args:
      begin: where it began, as a share of the places from which two steps fit.
      way: pixels gone, negative for before.
    """
    span = world.size - 2 * world.radius
    gone = begin * (span - 2 * world.speed) + way
    turn = np.mod(gone, 2 * span)
    return np.where(turn <= span, turn, 2 * span - turn) - span / 2


def mask(shape: str, centre: np.ndarray, world: World) -> np.ndarray:
    """How much of each pixel a shape covers, float [y, x] in 0..1; centre (row, column)."""
    place = (np.arange(world.size * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    down = (place[:, None] - centre[0]) / world.radius
    right = (place[None, :] - centre[1]) / world.radius
    if shape == "circle":
        # Smaller than the square: at equal height the two differ in little but their corners.
        inside = down**2 + right**2 <= (5 / 6) ** 2
    elif shape == "square":
        inside = np.maximum(abs(down), abs(right)) <= 1
    else:
        inside = (abs(down) <= 1) & (abs(right) <= (down + 1) / 2)
    cells = inside.reshape(world.size, SUPERSAMPLE, world.size, SUPERSAMPLE)
    return cells.mean((1, 3))


def videos(count: int, seed: int, world: World = WORLD) -> Iterator[tuple[str, np.ndarray]]:
    """`count` times (caption, uint8 [f, y, x, 3]), the captions in turn.

    Number i depends on the seed and i alone.
    """
    captions = world.captions()
    for index in range(count):
        caption = captions[index % len(captions)]
        yield caption, render(caption, np.random.default_rng([seed, index]), world)


def write_dataset(
    folder: str | Path, count: int, seed: int, world: World = WORLD
) -> list[tuple[Path, str]]:
    """Writes 000000.mp4 ... and captions.jsonl; to continue or to extend, call it again. Processes divide it.

    Args:
      folder: made with its parents.
      count: videos; a multiple of the number of captions is balanced.
      seed: the same seed gives the same videos.

    Returns:
      (file, caption) of every video.

    Raises:
      InputError: a bad count, a folder that holds a dataset of another seed or world or a larger
        one, or a folder that cannot be written. Files that exist are kept.
    """
    if count < 1:
        raise InputError(f"expected 1 video or more, found count={count}")
    folder, captions = places.path(folder), world.captions()
    try:
        places.make(folder)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; choose another") from error
    with processes.first(f"the folder {folder}") as mine:
        if mine:
            _claim(folder, count, seed, world)
    pairs = [(folder / f"{i:06d}.mp4", captions[i % len(captions)]) for i in range(count)]
    first, step = processes.part()
    own = tqdm(
        range(first, count, step), desc=f"render {folder}", unit="video", mininterval=1.0,
        disable=not processes.is_first(),
    )  # fmt: skip
    for index in own:
        file, caption = pairs[index]
        if not file.exists():
            video = render(caption, np.random.default_rng([seed, index]), world)
            write_video(file, video, FPS, crf=CRF, full_chroma=True)
    processes.exchange(None, f"videos in {folder}")
    with processes.first(f"captions of {folder}") as mine:
        if mine:
            lines = (json.dumps({"video": file.name, "caption": said}) for file, said in pairs)
            write_whole(folder / "captions.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return pairs


def _claim(folder: Path, count: int, seed: int, world: World) -> None:
    """Writes down what the folder holds, or checks that it is to hold the same."""
    file = folder / "world.json"
    wanted = json.loads(json.dumps({"seed": seed, "world": dataclasses.asdict(world)}))
    if file.exists():
        try:
            found = bounded.parsed(bounded.content(file))
            # What a world of an earlier version does not say is as it was.
            found["world"] = (
                wanted["world"] | {"told": list(WORLD.told), "bounce": False} | found["world"]
            )
        except (ValueError, TypeError, LookupError):
            found = None
        if found != wanted:
            raise InputError(
                f"{folder} holds a dataset of another seed or world; choose another folder"
            )
    elif any(name.endswith(".mp4") for name in places.sizes(folder)):
        raise InputError(f"{folder} holds videos that are not of this world; choose another folder")
    else:
        write_whole(file, json.dumps(wanted, indent=1).encode())
    beyond = [
        name for name in places.sizes(folder) if name[:6].isdigit() and int(name[:6]) >= count
    ]
    if beyond:
        raise InputError(
            f"{folder} holds {count + len(beyond)} videos, more than count={count}; ask for that "
            "many or choose another folder"
        )
