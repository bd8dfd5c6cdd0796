"""What videos are made from: their size and blocks, given frames, noise and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.causal.plan import ClipDraws
from oneforcing_jax.data.images import read_image
from oneforcing_jax.data.origin import digest
from oneforcing_jax.data.video import at_rate, read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.codec import Codec
from oneforcing_jax.generation import recordings, streaming
from oneforcing_jax.generation.jobs import Job
from oneforcing_jax.generation.noise import Noise, recorded, sample_keys, seeded
from oneforcing_jax.generation.pretrained import Source
from oneforcing_jax.generation.streaming import VideoModel
from oneforcing_jax.generation.student import Settings
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.setup.ranges import Amount, Count, Quality, Rate
from oneforcing_jax.system import places


@dataclasses.dataclass(frozen=True)
class Look:
    """The options that say what a video is; `oneforcing_jax.generate --help` explains them."""

    frames: Amount | None
    size: tuple[Count, Count] | None
    fps: Rate | None
    crf: Quality
    method: str | None
    steps: tuple[float, ...] | None
    first_frames: Count | None
    first_steps: tuple[float, ...] | None
    teacher: bool

    def settings(self, source: Source, codec: Codec) -> Settings:
        """Sizes and blocks for a model: what is not chosen is as it was trained.

        Raises:
          InputError: sizes that codec or transformer cannot take.
        """
        chosen = {"steps": self.steps, "first_steps": self.first_steps}
        changes: dict[str, Any] = {name: value for name, value in chosen.items() if value}
        if self.method:
            changes |= {"block_frames": source.family.block_frames(self.method)}
            changes["first_frames"] = None
        if self.first_frames:
            changes["first_frames"] = self.first_frames
        settings = streaming.settings_of(source, codec, self.frames, self.size, **changes)
        if not self.teacher:
            return settings
        whole = settings.shape[0]
        return dataclasses.replace(
            settings, block_frames=whole, first_frames=None, first_steps=None
        )


@dataclasses.dataclass(frozen=True)
class Given:
    """The options that name files to begin from."""

    image: Path | None
    video: Path | None
    noise_file: Path | None
    prompt_embeds: Path | None

    def __post_init__(self) -> None:
        if self.image and self.video:
            raise InputError(
                f"--image, --video: expected one of them, found {self.image} and {self.video}; leave one out"
            )

    @property
    def continued(self) -> Path | None:
        """What a video begins with; None: with a first block of its own."""
        return self.image or self.video

    def digests(self) -> dict[str, str]:
        """Names the contents of the files; one that is not there is refused where it is read."""
        files = {name: file for name, file in vars(self).items() if file is not None}
        return {name: digest(places.read(file)) for name, file in files.items() if file.is_file()}

    def pixels(self, fps: float) -> np.ndarray | None:
        """First frames uint8 [f, y, x, 3] at a rate, or None."""
        if self.image:
            return read_image(self.image)
        return at_rate(*read_video(self.video), fps) if self.video else None


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a command's videos are made from.

    Attributes:
      model: makes them.
      settings, fps: size and blocks, and frames a second.
      first: given latents [1, f, c, y, x], or None.
      draws: start and renoise of all videos from a file, or None.
      embeddings: [prompts, s, d] from a file, or None.
    """

    model: VideoModel
    settings: Settings
    fps: float
    first: jax.Array | None
    draws: tuple[np.ndarray, np.ndarray | None] | None
    embeddings: np.ndarray | None

    @classmethod
    def of(cls, model: VideoModel, look: Look, given: Given, jobs: Sequence[Job]) -> Scene:
        """Reads what the options name.

        Raises:
          MissingInput, InputError: files or sizes that do not fit the model and the videos.
        """
        settings = look.settings(model.source, model.encoders.codec)
        fps = look.fps or model.source.fps
        first, pixels = None, given.pixels(fps)
        if pixels is not None:
            first = model.continued_latents(
                pixels, settings, lambda line: print(f"{given.continued}: {line}")
            )
        known = 0 if first is None else first.shape[1]
        if look.teacher:
            settings = dataclasses.replace(settings, block_frames=settings.shape[0] - known)
        plan = settings.plan(model.source.shift, known)
        draws = embeddings = None
        if given.noise_file:
            steps = max(len(block.sigmas) for block in plan)
            frames = (settings.shape[0] - known, *settings.shape[1:])
            draws = recordings.read_noise(given.noise_file, len(jobs), frames, steps)
        if given.prompt_embeds:
            config = model.source.config
            shape = (jobs[-1].line + 1, config.text_len, config.text_dim)
            embeddings = recordings.read_embeddings(given.prompt_embeds, shape)
        else:
            for words in {job.prompt.embedded: None for job in jobs}:
                model.encoders.text.check(words)
        return cls(model, settings, fps, first, draws, embeddings)

    def noise(self, group: Sequence[Job]) -> Noise:
        """The noise of a batch comes from the file, or from seeds."""
        if self.draws is None:
            keys = sample_keys([job.seed for job in group], [job.sample for job in group])
            return seeded(keys, self.settings.shape[1:])
        rows, (start, more) = [job.number for job in group], self.draws
        renoise = None if more is None else jnp.asarray(more[rows])
        known = 0 if self.first is None else self.first.shape[1]
        return recorded(ClipDraws(jnp.asarray(start[rows]), None, renoise), known)

    def condition(self, group: Sequence[Job]) -> Condition:
        """The condition of a batch has embeddings from the file, or of the prompts."""
        if self.embeddings is None:
            return self.model.embed([job.prompt.embedded for job in group])
        return self.model.prepared(self.embeddings[[job.line for job in group]])

    def given(self, batch: int) -> jax.Array | None:
        """Given latents, once for each video of a batch."""
        if self.first is None:
            return None
        return self.model.place(np.repeat(np.asarray(self.first), batch, 0))
