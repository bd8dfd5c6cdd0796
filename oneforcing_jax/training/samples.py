"""Sample videos of a training run: the same prompts and noise every time, raw weights and their average."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from oneforcing_jax import build, sharding
from oneforcing_jax.causal import rollout
from oneforcing_jax.data import encoders as encoding
from oneforcing_jax.data.text import pad
from oneforcing_jax.data.video import write_video
from oneforcing_jax.generation.student import Student

FOLDER = "samples"
# H.264 quality of the grid of videos.
_CRF = 18


class Samples:
    """Makes them.

    Args:
      config, stage: of the run.
      store: folder of the training data, which knows its encoders; the text encoder is let go after
        the prompts are embedded.
      folder: of the stage; videos go to `samples/` in it.
      mesh: of the run.

    Raises:
      FileNotFoundError, ValueError: no encoders, or a prompt that they cannot read.
    """

    def __init__(
        self, config: ConfigDict, stage: ConfigDict, store: Path, folder: Path, mesh: Mesh
    ) -> None:
        if stage.method == "teacher" or not stage.samples.prompts:
            raise ValueError(
                "samples: expected a causal student and at least one prompt, found method "
                f"{stage.method!r} and {len(stage.samples.prompts)} prompts; set samples.every to 0"
            )
        self._folder, self._fps = folder / FOLDER, config.fps
        model, latents = build.model(config, "generator"), config.latents
        try:
            self._codec, text, _ = encoding.load(store, model.text_len)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"samples: {error}; or set the stage's samples.every to 0 to train without"
            ) from None
        self._prompts = len(stage.samples.prompts)
        embedded = [pad(text.encode(p), text.length) for p in stage.samples.prompts]
        # As many as the mesh splits evenly; the surplus is not shown.
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        count = -(-self._prompts // parts) * parts
        self._plan = build.plan(config)
        shape = (count, latents.frames, latents.channels, latents.rows, latents.columns)
        draws = rollout.draw(jax.random.key(config.seed + 1), shape, self._plan, 0.0)
        prompts = np.stack(embedded * count)[:count]
        place = sharding.named(mesh, ("batch",))
        self._draws, self._text = jax.device_put((draws, prompts), place)
        self._student = Student(model, None, mesh=mesh)

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
            if jax.process_index() == 0:
                motion = np.abs(np.diff(video.astype(np.float32), axis=1)).mean() / 255
                motions["samples/motion" + (f"_{name}" if name else "")] = float(motion)
                grid.append(np.concatenate(list(video), axis=2))
        if grid:
            self._folder.mkdir(exist_ok=True)
            frames = np.concatenate(grid, axis=1)
            even = [(0, 0), *((0, size % 2) for size in frames.shape[1:3]), (0, 0)]
            write_video(
                self._folder / f"{iteration:06d}.mp4", np.pad(frames, even), self._fps, crf=_CRF
            )
        return motions

    def _video(self, params: Any) -> np.ndarray:
        """Videos of all prompts, uint8 [prompts, f, y, x, 3]."""
        decode, frames = self._codec.stream(), []
        for block in self._student.of(params).stream(self._draws, self._text, self._plan):
            whole = multihost_utils.process_allgather(block, tiled=True)
            frames.append(np.asarray(decode(jnp.asarray(whole[: self._prompts]))))
        return np.concatenate(frames, 1)
