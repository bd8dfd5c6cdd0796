"""The options that say which model makes videos, and that model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from oneforcing_jax.causal.cache import Window
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import Family
from oneforcing_jax.generation import adapters, samplers, streaming
from oneforcing_jax.generation.adapters import File
from oneforcing_jax.generation.streaming import VideoModel, Words
from oneforcing_jax.models.products.eight_bits import EightBits
from oneforcing_jax.setup.ranges import Amount, Count, Natural, Positive

SAMPLERS: dict[str, Callable[[np.ndarray], samplers.Sampler]] = {
    "unipc": samplers.unipc,
    "euler": samplers.euler,
}
# Where the text encoder may lie.
PLACES = ("device", "host")


@dataclasses.dataclass(frozen=True)
class Loading:
    """The options; `oneforcing_jax.generate --help` explains them."""

    checkpoint: Path
    encoders: Path | None
    decoder: str | None
    ema: bool
    dtype: str | None
    shift: Positive | None
    batch: Amount
    window: Count | None
    sink: Natural
    relative: bool
    mesh: Mapping[str, int]
    teacher: bool
    sampler: str
    sampling_steps: Count | None
    guidance: float | None
    lora: Sequence[File] = ()
    text_encoder: str = PLACES[0]
    kept_prompts: Path | None = None
    precision: EightBits | None = None

    def __post_init__(self) -> None:
        if self.precision and (self.lora or self.teacher):
            found = "--lora" if self.lora else "--teacher"
            raise InputError(
                f"--precision: expected a causal student without adapters with it, found {found}; leave one "
                "out, or merge adapters with import-lora"
            )
        if self.lora and self.teacher:
            raise InputError(
                "--lora: expected a causal student with it, found --teacher; merge it with import-lora"
            )
        if self.sink and self.window is None:
            raise InputError(f"sink: expected --window with it, found a sink of {self.sink} alone")
        if self.relative and not self.sink:
            raise InputError(
                "relative: expected --sink with it, found none; it moves the sink alone"
            )

    def words(self) -> Words:
        """How prompts are embedded."""
        return Words(self.text_encoder == "host", self.kept_prompts)

    def sight(self) -> Window:
        """How far back a block sees."""
        return Window(self.window, self.sink, self.relative)

    def guidance_of(self, family: Family) -> float:
        """g in uncond + g (cond - uncond): as chosen, or the family's."""
        return family.video.guidance if self.guidance is None else self.guidance

    def sampling_steps_of(self, family: Family) -> int:
        """Steps of the teacher: as chosen, or the family's."""
        return self.sampling_steps or family.video.sampling_steps

    def model(self, together: bool = True) -> VideoModel:
        """The student, or with `teacher` the bidirectional model in many steps; `together`: see
        `adapters.load`."""
        if not self.teacher:
            load = functools.partial(adapters.load, files=self.lora, together=together)
            return (load if self.lora else streaming.load)(
                self.checkpoint, self.encoders, decoder=self.decoder, ema=self.ema, dtype=self.dtype,
                shift=self.shift, window=self.sight(), batch=self.batch, split=self.mesh,
                words=self.words(), precision=self.precision,
            )  # fmt: skip

        def sampler(family: Family, shift: float) -> samplers.Sampler:
            grid = samplers.wan_grid(self.sampling_steps_of(family), shift)
            return SAMPLERS[self.sampler](grid)

        # Wan counts guidance from the unconditional prediction, the paper and we from the conditional.
        return streaming.load_teacher(
            self.checkpoint, self.encoders, sampler=sampler,
            guidance=lambda family: self.guidance_of(family) - 1,
            decoder=self.decoder, ema=self.ema, dtype=self.dtype, shift=self.shift, batch=self.batch,
            words=self.words(),
        )  # fmt: skip
