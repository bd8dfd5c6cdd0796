"""From a name to videos, in few lines.

from oneforcing_jax import Pipeline

pipeline = Pipeline.from_pretrained("demo")
frames = pipeline.generate("a circle moving left", seed=1)      # uint8 [f, y, x, 3]
pipeline.save("circle.mp4")

for number, frame in enumerate(pipeline.stream("a square moving up", num_frames=64)):
    show(frame)                                                  # uint8 [y, x, 3], as they are made
    if number == 16:
        pipeline.switch("a triangle moving down")

It is thin. `generation.streaming.VideoModel` (the attribute `model`) makes batches, and continues images and
videos; many files are the work of `oneforcing generate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneforcing_jax import demos
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.data.images import read_image
from oneforcing_jax.data.origin import Origin, digest
from oneforcing_jax.data.resize import enlarged
from oneforcing_jax.data.video import VideoWriter
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families.records import MODEL
from oneforcing_jax.flow import TRAIN_STEPS
from oneforcing_jax.generation import origins, pretrained, streaming
from oneforcing_jax.generation.making import SMALL
from oneforcing_jax.generation.streaming import VideoModel
from oneforcing_jax.generation.student import Settings
from oneforcing_jax.setup import ranges
from oneforcing_jax.setup.ranges import Amount, Count, Seed
from oneforcing_jax.system import hub, places, textfiles

DEMO = "demo"


class _Video(NamedTuple):
    """Frames uint8 [f, y, x, 3], and what their file says."""

    frames: np.ndarray
    origin: Origin


class Pipeline:
    """A causal student that makes videos of prompts.

    Args:
      model: student and encoders, from `streaming.load`; `from_pretrained` finds them by a name.
      side: pixels of the longer side to which `save` enlarges frames that are smaller; None: it does not.

    Attributes:
      model: as given.
      fps: frames a second of its videos.
    """

    def __init__(self, model: VideoModel, side: int | None = None) -> None:
        self.model, self.fps, self._side = model, model.source.fps, side
        self._prompt: list[str] | None = None
        self._made: _Video | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        encoders: str | Path | None = None,
        ema: bool = False,
        dtype: str | None = None,
        window: int | None = None,
    ) -> Pipeline:
        """A pipeline of weights that are there.

        Args:
          name: a folder of `oneforcing convert`, or a stage of a training run (WORKDIR/STAGE); a Hugging Face
            repository OWNER/NAME[@REVISION] that holds such a folder; or "demo", which comes with the
            package. What is on disk goes before a repository of that name.
          encoders: folder of codec and text encoder; None: the weights' own.
          ema: the moving average of the weights.
          dtype: of the arithmetic, "float32" or "bfloat16"; None: the run's, bfloat16 for converted weights.
          window: latent frames that a block sees, its own too; None: as many as the model was trained on.
            Memory is constant in the length of a video.

        Raises:
          MissingInput, InputError: nothing of that name, or what does not fit, in one line.
        """
        if name == DEMO:
            name, side = demos.find().folder, demos.SIDE
        else:
            name, side = _folder(str(name)), None
        _check("window", Count, window)
        window = window or pretrained.find(name, ema, dtype).frames
        model = streaming.load(name, encoders, ema=ema, dtype=dtype, window=Window(window))
        return cls(model, side)

    def generate(
        self,
        prompt: str,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        image: str | Path | None = None,
    ) -> np.ndarray:
        """A video, uint8 [num_frames, height, width, 3].

        Args:
          prompt: what to show.
          num_frames: of the video; None: as trained. Blocks must fill them, and the codec must take them.
          height, width: in pixels; None: as trained. The codec and the patches of the model must divide them.
          seed: of the noise, 0 to 2^32 - 1. A longer video begins with the shorter one of its seed.
          num_inference_steps: of every block, spaced evenly; None: the timesteps of its training, which for
            a model of one step are four in the first block, and one in the others.
          image: file of the first frame, scaled to cover the video's size; None: it is made, too.

        Raises:
          MissingInput, InputError: a prompt that the text encoder does not read, numbers and sizes that do
            not fit, or no image.
          NotFinite: weights that make no picture.
        """
        settings = self._settings(num_frames, height, width, num_inference_steps)
        blocks = self._blocks(prompt, settings, seed, image)
        frames = np.concatenate(list(blocks))
        named = {} if image is None else {"image": digest(places.read(Path(image)))}
        said = origins.blocks(settings.taken(image is not None)) | named | {
            "frames": len(frames), "size": list(frames.shape[1:3]), "fps": self.fps,
            "shift": self.model.source.shift, "dtype": self.model.source.config.dtype.name,
        }  # fmt: skip
        self._made = _Video(frames, Origin(self.model.source.identity, prompt, seed, 0, said))
        return frames

    def stream(
        self,
        prompt: str,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        image: str | Path | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames uint8 [height, width, 3] as they are made; arguments and errors are those of `generate`.

        `switch` changes the prompt of the newest stream. Who stops asking ends it.
        """
        settings = self._settings(num_frames, height, width, num_inference_steps)
        blocks = self._blocks(prompt, settings, seed, image)
        return itertools.chain.from_iterable(blocks)

    def switch(self, prompt: str) -> None:
        """Goes on with another prompt in the newest stream, from the next block that is begun. One block is
        on its way already.

        Raises:
          InputError: a prompt that the text encoder does not read, or nothing was streamed yet.
        """
        if self._prompt is None:
            raise InputError("switch: expected a stream, found none; call stream first")
        self._check_prompt(prompt)
        self._prompt[0] = prompt

    def save(self, path: str | Path, frames: Iterable[np.ndarray] | None = None) -> None:
        """Writes an .mp4 file, which says in its metadata what made it. The demo's small frames are enlarged.

        Args:
          path: of the file; its folder must exist.
          frames: uint8 [y, x, 3] each, as `stream` gives them; None: the last video of `generate`.

        Raises:
          InputError: nothing was generated, no frames, or a file that cannot be written.
        """
        origin = Origin(self.model.source.identity)
        if frames is None:
            if self._made is None:
                raise InputError(
                    "save: expected a video, found none; call generate first, or give frames"
                )
            frames, origin = self._made
        if Path(path).suffix.lower() != ".mp4":
            raise InputError(f"save: expected a .mp4 file, found {path}; name one")
        coming = map(self._shown, frames)
        first = next(coming, None)
        if first is None:
            raise InputError("save: expected frames, found none; give some")
        small = min(first.shape[:2]) < SMALL
        with VideoWriter(path, self.fps, full_chroma=small, origin=origin) as writer:
            for frame in itertools.chain([first], coming):
                writer.write(frame[None])

    def _shown(self, frame: np.ndarray) -> np.ndarray:
        """A frame as files show it."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise InputError(
                f"save: expected frames uint8 [y, x, 3], found {frame.dtype} {list(frame.shape)}; give those "
                "of stream"
            )
        return enlarged(frame, self._side) if self._side else frame

    def _settings(
        self, frames: int | None, height: int | None, width: int | None, steps: int | None
    ) -> Settings:
        """What a video is, checked."""
        given = {
            "num_frames": frames,
            "height": height,
            "width": width,
            "num_inference_steps": steps,
        }
        for name, value in given.items():
            _check(name, Amount, value)
        source, codec = self.model.source, self.model.encoders.codec
        _, rows, columns = codec.video_shape(source.frames, source.rows, source.columns)
        changes: dict[str, Any] = {}
        if steps:
            spaced = tuple(TRAIN_STEPS * (1 - i / steps) for i in range(steps))
            changes = {"steps": spaced, "first_steps": None}
        return self.model.settings(frames, (height or rows, width or columns), **changes)

    def _blocks(
        self, prompt: str, settings: Settings, seed: int, image: str | Path | None
    ) -> Iterator[np.ndarray]:
        """Frames of a video block by block, whose prompt `switch` changes."""
        self._check_prompt(prompt)
        _check("seed", Seed, seed)
        given = None
        if image is not None:
            given = self.model.continued_latents(read_image(image), settings)
        self._prompt = said = [prompt]
        return self.model.stream(lambda _: said[0], settings, seed, given)

    def _check_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise InputError("prompt: expected words, found an empty prompt; say what to show")
        textfiles.check_unicode("prompt", prompt)
        self.model.encoders.text.check(prompt)


def _check(name: str, kind: Any, value: Any) -> None:
    """Refuses an argument that is no number of a kind."""
    if value is None:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if words := ranges.wrong(kind, value if whole else -1):
        raise InputError(f"{name}: expected {words}, found {value!r}; change it")


def _folder(name: str) -> Path:
    """The folder on disk, or of a repository that is downloaded."""
    path = places.path(name)
    if path.exists() or places.is_url(path):
        return path
    named = hub.REPOSITORY.fullmatch(name)
    if not named or named[3]:
        raise MissingInput(
            f"{name}: expected {pretrained.EXPECTED}, a Hugging Face repository OWNER/NAME[@REVISION] that "
            f"holds one, or {DEMO!r}, found nothing of that name; check it"
        )
    records = hub.download(name, named[1], named[2], [f"*{MODEL}"])
    if not any((records / part / MODEL).is_file() for part in ("", "transformer")):
        raise InputError(
            f"{name}: expected converted weights with their {MODEL}, found none in the repository; run "
            f"oneforcing convert --source {name} --out FOLDER, and name the folder"
        )
    return hub.download(name, named[1], hub.commit(records) or named[2], None)
