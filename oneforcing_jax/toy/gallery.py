"""Prompts of the toy, the encoders' view of them, and scores of the videos that answer them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow, randomness, sharding
from oneforcing_jax.causal.plan import draw
from oneforcing_jax.data import encoders as encoding
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.data.text import pad
from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation.samplers import euler, sample
from oneforcing_jax.models import params as parameters
from oneforcing_jax.ranges import Count
from oneforcing_jax.run import Run
from oneforcing_jax.toy import scores as scoring
from oneforcing_jax.toy.world import World
from oneforcing_jax.training import sources
from oneforcing_jax.trees import Params

# Scores given as a part of those of real videos.
RATIOS = ("sharpness", "motion")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the toy's models are looked at.

    Attributes:
      samples: prompts, and videos of each model.
      steps, guidance: of the teacher's sampler.
    """

    samples: Count
    steps: Count
    guidance: float


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config."""

    world: World
    evaluation: Evaluation


def check(run: Run, world: str) -> None:
    """Checks what a gallery will need.

    Raises:
      InputError: sections that do not fit, or no such stage.
    """
    run.view(Config)
    if world not in run.stages:
        raise InputError(
            f"config: expected the stage of a world among {list(run.stages)}, found {world!r}; name it"
        )


def load(run: Run, workdir: Path, source: str, ema: bool = False) -> Params:
    """Parameters of a stage's network on the first device, "STAGE:NET"; "random STAGE:NET" gives new ones."""
    name = source.removeprefix("random ")
    module = sources.network(run, name).module
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    if name != source:
        key = randomness.key(run.seed, *name.split(":"), "untrained")
        random: Params = jax.jit(lambda: sharding.unbox(parameters.init(module, key)))()
        return random
    abstract = sharding.abstract(parameters.shapes(module), mesh)
    loaded: Params = sources.load(run, workdir, source, abstract, ema)
    return loaded


class Gallery:
    """What the exam and the report look at.

    Args:
      run: of the toy.
      workdir: its work directory.
      world: name of the stage that made the world.
    """

    def __init__(self, run: Run, workdir: Path, world: str) -> None:
        config, folder = run.view(Config), workdir / world
        self.run, self.workdir, self.world = run, workdir, config.world
        self.settings = config.evaluation
        encoders = encoding.load(folder / "store")
        self.codec = encoders.codec
        self.negative = Store.open(folder / "store").read_shared(NEGATIVE_TEXT)
        count = self.settings.samples
        self.captions = list(itertools.islice(itertools.cycle(self.world.captions()), count))
        embedded = [pad(encoders.text.encode(c), encoders.text.length) for c in self.captions]
        self.text = np.stack(embedded)
        files = sorted((folder / "videos").glob("*.mp4"))
        rows = [json.loads(line) for line in (folder / "videos" / "captions.jsonl").open()]
        rows.sort(key=lambda row: row["video"])
        self.real_captions = [row["caption"] for row in rows][:count]
        self.real = np.stack([read_video(file)[0] for file in files[:count]])
        self.seen = self.decode(self.codec.encode(self.real))
        self.reference = scoring.scores(self.seen, self.real_captions, self.world)
        self.plan = run.plan
        key = randomness.key(run.seed, "gallery")
        self.draws = draw(key, (count, *run.latents.shape), self.plan, 0.0)

    def decode(self, latents: jax.Array) -> np.ndarray:
        """Pixels uint8 [n, f, y, x, 3]."""
        return np.asarray(self.codec.stream()(latents))

    def score(self, videos: np.ndarray, captions: list[str]) -> dict[str, float]:
        """Accuracies, sharpness and motion as parts of those of real videos seen through the codec, and
        the Fréchet distance to them."""
        found = scoring.scores(videos, captions, self.world)
        ratios = {k: found[k] / max(self.reference[k], 1e-6) for k in RATIOS}
        return found | ratios | {"frechet": scoring.frechet_distance(self.seen, videos, self.world)}

    def teacher(self, source: str) -> np.ndarray:
        """Videos of the many-step bidirectional teacher."""
        latents = sample(
            sources.network(self.run, source).module,
            load(self.run, self.workdir, source),
            self.draws.start,
            jnp.asarray(self.text),
            jnp.asarray(self.negative),
            euler(flow.grid(self.settings.steps, self.run.shift)),
            guidance=self.settings.guidance,
        )
        return self.decode(latents)
