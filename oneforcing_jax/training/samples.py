"""Sample videos of a training run: the same prompts and noise every time, raw weights and their average."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from oneforcing_jax import sharding
from oneforcing_jax.causal.plan import draw
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import pad
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup.ranges import Natural
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import places, processes
from oneforcing_jax.training import randomness
from oneforcing_jax.training.steps import Trainer

FOLDER, MOTION = "samples", "samples/motion"
# H.264 quality of the grid of videos.
_CRF = 18


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Sample videos.

    Attributes:
      every: iterations from one set to the next; 0: none are made.
      prompts: what they show.
      decoder: of `encoders.DECODERS`; "": the codec's own.
    """

    every: Natural = 0
    prompts: tuple[str, ...] = ()
    decoder: str = ""


class Samples:
    """Makes them.

    Args:
      run, name, settings: the run, the stage and its samples.
      trainer: of the stage.
      store: folder of the training data, which knows its encoders; the text encoder is let go after
        the prompts are embedded.
      folder: of the stage; videos go to `samples/` in it.

    Raises:
      MissingInput, InputError: no encoders, or a prompt that they cannot read.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        settings: SampleSettings,
        trainer: Trainer,
        store: Path,
        folder: Path,
    ) -> None:
        # Here, for they need PyAV, which a machine that measures may lack.
        from oneforcing_jax.data.origin import Origin
        from oneforcing_jax.data.video import write_video

        self._write = write_video
        sampled = trainer.method.sampled
        if sampled is None or sampled.plan is None or not settings.prompts:
            found = "none" if sampled is None else "no blocks" if sampled.plan is None else "blocks"
            raise InputError(
                "samples: expected a causal student and at least one prompt, found a method with "
                f"{found} and {len(settings.prompts)} prompts; set stages.{name}.samples.every to 0"
            )
        self._folder, self._fps, self._plan = folder / FOLDER, run.fps, sampled.plan
        model, mesh = trainer.method.nets[sampled.net].model, trainer.mesh
        try:
            self._codec, text, _ = encoding.load(
                store, model.config.text_len, decoder=settings.decoder or None
            )
        except FileNotFoundError as error:
            raise MissingInput(
                f"samples: {error}; or set the stage's samples.every to 0 to train without"
            ) from None
        self._prompts = len(settings.prompts)
        # As they are trained: what is shown is what the losses see.
        self._origin = Origin(
            prompt="\n".join(settings.prompts), seed=run.seed, settings=run.blocks.said
        )
        embedded = [pad(text.encode(p), text.length) for p in settings.prompts]
        # As many as the mesh splits evenly; the surplus is not shown.
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        count = -(-self._prompts // parts) * parts
        key = randomness.key(run.seed, name, "samples")
        draws = draw(key, (count, *run.latents.shape), self._plan, 0.0)
        prompts = np.stack(embedded * count)[:count]
        place = sharding.named(mesh, ("batch",))
        given = prompted(prompts)
        self._draws, self._condition = jax.device_put((draws, given), place)
        self._student = Student(model, {}, mesh=mesh)
        self._averaged = bool(trainer.averaged)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics that `make` returns."""
        return (MOTION, f"{MOTION}_ema") if self._averaged else (MOTION,)

    def make(self, iteration: int, nets: Mapping[str, Any]) -> dict[str, float]:
        """Writes one video, a row of prompts for each network, and returns how much each moves.

        Args:
          iteration: names the file.
          nets: "" the raw parameters, and if there is one "ema" their average.

        Returns:
          {"samples/motion": ..., "samples/motion_ema": ...}: mean change of a pixel from frame to
          frame, in parts of its range.
        """
        grid, motions = [], {}
        for name, params in nets.items():
            video = self._video(params)
            if video is not None:
                motion = np.abs(np.diff(video.astype(np.float32), axis=1)).mean() / 255
                motions[MOTION + (f"_{name}" if name else "")] = float(motion)
                grid.append(np.concatenate(list(video), axis=2))
        if grid:
            places.make(self._folder)
            frames = np.concatenate(grid, axis=1)
            even = [(0, 0), *((0, size % 2) for size in frames.shape[1:3]), (0, 0)]
            self._write(
                self._folder / f"{iteration:06d}.mp4", np.pad(frames, even), self._fps, crf=_CRF,
                origin=self._origin,
            )  # fmt: skip
        return motions

    def _video(self, params: Any) -> np.ndarray | None:
        """Videos of all prompts, uint8 [prompts, f, y, x, 3]; all make them, the first process decodes."""
        decode, frames = self._codec.stream(), []
        student = self._student.of(params)
        condition = student.prepare(self._condition)
        for block in student.stream(self._draws, condition, self._plan):
            whole = multihost_utils.process_allgather(block, tiled=True)
            if processes.is_first():
                frames.append(np.asarray(decode(jnp.asarray(whole[: self._prompts]))))
        return np.concatenate(frames, 1) if frames else None
