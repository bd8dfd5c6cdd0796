"""A model that makes videos block by block, for as long as somebody watches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from oneforcing_jax import demos
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import Plan
from oneforcing_jax.data.origin import Origin, digest
from oneforcing_jax.errors import InputError
from oneforcing_jax.flow import TRAIN_STEPS
from oneforcing_jax.generation.adapters import Adapted
from oneforcing_jax.generation.noise import sample_keys, seeded
from oneforcing_jax.generation.origins import blocks as layout
from oneforcing_jax.generation.streaming import VideoModel, decoded
from oneforcing_jax.generation.student import Settings
from oneforcing_jax.system import checkpoint, textfiles

# The model says which of these its text encoder reads; the toy knows few words.
_EXAMPLES = (
    "a cat on a beach, waves in the background",
    "a city street at night in the rain, neon lights",
    "a sailing boat on a calm sea at sunset",
    "a circle moving left",
    "a square moving up",
    "a triangle moving right",
    "a red circle",
    "a blue square",
)
SHOWN = 3
# Repetitions of an example that make the longest prompt, at most: text encoders take some hundred tokens.
LONGEST = 200


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a video is to be.

    Attributes:
      prompt: that it begins with.
      seed: of the noise.
      frames: pixel frames, an image included.
      first_steps: denoising steps of the first block, 1 to `Studio.first_steps`; None: that many.
      image: uint8 [1, y, x, 3], the first frame; None: there is none.
      window: latent frames that a block sees, one of `Studio.windows`; None: the first of them.
      recompute: with a new prompt, what is still seen passes anew under it.
      adapter: the name of one of `Studio.adapters`; "": none.
    """

    prompt: str
    seed: int = 0
    frames: int = 1
    first_steps: int | None = None
    image: np.ndarray | None = None
    window: int | None = None
    recompute: bool = False
    adapter: str = ""


class Made(NamedTuple):
    """Frames of a block, uint8 [m, y, x, 3], and seconds that the model and the decoder took for them."""

    frames: np.ndarray
    model: float
    decode: float


class Studio:
    """Makes what sessions wish for.

    Every video has the plan of the longest one, of which it takes what it needs: so all lengths share their
    programs, and a video can go on.

    Args:
      model: a causal student.
      settings: of its videos; their length is that of a wish that names none.
      fps: frames per second.
      most: pixel frames that a video may have.
      window: how far back a block sees at most; wishes may ask for a half and a quarter of it.

    Raises:
      InputError: a longest video that is shorter than the usual one.
    """

    def __init__(
        self, model: VideoModel, settings: Settings, fps: float, most: int, window: Window
    ) -> None:
        self.model, self.settings, self.fps, self.most = model, settings.taken(False), fps, most
        self.windows, self.sink = _windows(window, settings), window.sink
        self.adapters = model.adapters.weights if isinstance(model, Adapted) else {}
        self.frames = self.pixel_frames(settings.shape[0])
        if most < self.frames:
            raise InputError(
                f"--most_frames: expected {self.frames} or more, the frames of a usual video, found {most}; "
                "raise it, or lower --frames"
            )

    @property
    def first_steps(self) -> int:
        """Denoising steps of a first block, as the model was trained; it may have fewer."""
        return len(self.settings.first_steps or ())

    def pixel_frames(self, latents: int) -> int:
        """Pixel frames of so many latent ones."""
        rows, columns = self.settings.shape[2:]
        return self.model.encoders.codec.video_shape(latents, rows, columns)[0] if latents else 0

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a frame in pixels."""
        frames, _, *latent = self.settings.shape
        _, rows, columns = self.model.encoders.codec.video_shape(frames, *latent)
        return rows, columns

    def check(self, prompt: str) -> None:
        """Refuses a prompt that the text encoder cannot read.

        Raises:
          InputError: it is empty, no text, has too many tokens or unknown words.
        """
        if not prompt.strip():
            raise InputError("prompt: expected words, found an empty prompt; say what to show")
        textfiles.check_unicode("prompt", prompt)
        self.model.encoders.text.check(prompt)

    @property
    def name(self) -> str:
        """Which model it is: a demo's name or the end of its folder's, and whether it is the average."""
        source = self.model.source
        demo = next((name for name in demos.DEMOS if demos.folder(name) == source.folder), "")
        parts = [part for part in source.folder.absolute().parts if part != checkpoint.FOLDER]
        name = f"demo {demo}" if demo else "/".join(parts[-2:])
        return f"{name}, moving average" if source.ema else name

    @functools.cached_property
    def examples(self) -> list[str]:
        """Prompts that the text encoder reads."""
        return list(itertools.islice(filter(self._reads, _EXAMPLES), SHOWN))

    def _reads(self, prompt: str) -> bool:
        try:
            self.check(prompt)
        except InputError:
            return False
        return True

    def origin(self, wish: Wish, prompts: Sequence[str] = ()) -> Origin:
        """What a file is to say of a video that has had these prompts, or the wish's alone. It was compressed
        to be watched, and so is no file of `generate`."""
        said = layout(self._settings(wish).taken(wish.image is not None)) | {
            "live": True, "fps": self.fps, "size": self.size, "shift": self.model.source.shift,
            "dtype": self.model.source.config.dtype.name, "recompute": wish.recompute,
            "window": wish.window or next(iter(self.windows)), "sink": self.sink,
        }  # fmt: skip
        if wish.adapter:
            said["adapter"] = f"{wish.adapter}:{self.adapters[wish.adapter]:g}"
        if wish.image is not None:
            said["image"] = digest(wish.image.tobytes())
        return Origin(
            self.model.source.identity, "\n".join(prompts) or wish.prompt, wish.seed, 0, said
        )

    def make(self, wish: Wish, prompt: Callable[[int], str]) -> Generator[Made]:
        """Blocks of a video, one by one. The next is begun when it is asked for, and not before: what was
        said in between counts.

        Args:
          wish: what to make; its prompt is not read.
          prompt: is asked before each block, with the number of the first pixel frame that it makes.

        Raises:
          NotFinite: the model makes no picture.
        """
        model, (_, *shape) = self._adapted(wish.adapter), self.settings.shape
        given = (
            None
            if wish.image is None
            else model.continued_latents(wish.image, self.settings, quiet)
        )
        embed = functools.lru_cache(maxsize=2)(lambda words: model.embed([words]))
        blocks: Iterable[jax.Array] = model.maker.stream(
            seeded(sample_keys([wish.seed], [0]), (shape[0], shape[1], shape[2])),
            lambda latents: embed(prompt(self.pixel_frames(latents))),
            self._plan(wish, 0 if given is None else given.shape[1]),
            given,
            recompute=wish.recompute,
            window=self.windows[wish.window or next(iter(self.windows))],
        )
        if given is not None:
            blocks = itertools.chain([given], blocks)
        decode, begun = model.encoders.codec.stream(), time.perf_counter()
        for latents in blocks:
            jax.block_until_ready(latents)
            ready = time.perf_counter()
            for _, frames in decoded([latents], decode):
                yield Made(frames[0], ready - begun, time.perf_counter() - ready)
            begun = time.perf_counter()

    def _adapted(self, name: str) -> VideoModel:
        """The model with an adapter, or without; nothing is compiled for it."""
        if not isinstance(self.model, Adapted) or not name:
            return self.model
        return self.model.adapted({name: self.adapters[name]})

    def _plan(self, wish: Wish, given: int) -> Plan:
        """The blocks of the longest video."""
        block = self.settings.block_frames
        first = given or self.settings.first_frames or block
        each = self.pixel_frames(2) - self.pixel_frames(1)
        needed = 1 + math.ceil((self.most - self.pixel_frames(1)) / each)
        frames = first + max(1, math.ceil((needed - first) / block)) * block
        settings = dataclasses.replace(
            self._settings(wish), shape=(frames, *self.settings.shape[1:])
        )
        return settings.plan(self.model.source.shift, given)

    def _settings(self, wish: Wish) -> Settings:
        """With the first block's steps: as trained, or fewer and evenly spaced."""
        count = wish.first_steps or self.first_steps
        if count == self.first_steps:
            return self.settings
        steps = tuple(TRAIN_STEPS * (1 - i / count) for i in range(count))
        return dataclasses.replace(self.settings, first_steps=steps)

    def warm(self) -> Iterator[None]:
        """Compiles all that sessions run, in the order in which most need it; a step is a block or less.

        A switch of the prompt has programs of its own, and until the window rolls there may be some for each
        part of it. Prompts have some by their length, and each window has its own.
        """
        if not self.examples:
            return
        one, turns = self.examples[0], itertools.cycle([self.examples[0], self.examples[-1]])
        picture = np.zeros((1, *self.size, 3), np.uint8)
        ways = [
            (lambda _: one, False),
            (lambda _: next(turns), False),
            (lambda _: next(turns), True),
        ]
        for window in self.windows:
            plain, blocks = Wish(one, window=window), window // self.settings.block_frames + 3
            fewer = [
                (dataclasses.replace(plain, first_steps=n), 1) for n in range(1, self.first_steps)
            ]
            kinds = [(plain, blocks), *fewer, (dataclasses.replace(plain, image=picture), blocks)]
            for wish, count in kinds:
                # A block alone has no switch.
                for prompt, again in ways if count > 1 else ways[:1]:
                    made = self.make(dataclasses.replace(wish, recompute=again), prompt)
                    yield from (None for _ in itertools.islice(made, count))
        for words in itertools.takewhile(self._reads, (f"{one} " * n for n in range(1, LONGEST))):
            self.model.embed([words])
            yield


def _windows(window: Window, settings: Settings) -> dict[int, Window]:
    """By size: a window, its half and its quarter, as far as blocks fit beside the sink."""
    if window.size is None:
        raise InputError("window: expected a size, found none; videos that are watched have no end")
    least = window.sink + max(settings.block_frames, settings.first_frames or 0) + 1
    sizes = [window.size, *(n for n in (window.size // 2, window.size // 4) if n >= least)]
    return {size: dataclasses.replace(window, size=size) for size in sizes}


def quiet(line: str) -> None:
    """Says nothing: how an image was read and fitted can be seen."""
