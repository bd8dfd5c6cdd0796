"""Prompts of the toy, the encoders' view of them, and scores of the videos that answer them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow, sharding
from oneforcing_jax.causal.plan import ClipDraws, Plan, draw, num_frames
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import pad
from oneforcing_jax.generation.samplers import euler, sample
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import NEGATIVE, prompted
from oneforcing_jax.models.trees import Params
from oneforcing_jax.setup.ranges import Amount, Count, Natural
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import processes, textfiles
from oneforcing_jax.toy import judge
from oneforcing_jax.toy.scores import Against
from oneforcing_jax.toy.world import World
from oneforcing_jax.training import randomness, sources


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the toy's models are looked at.

    Attributes:
      samples: prompts, and videos of each model.
      steps, guidance: of the teacher's sampler.
      long: latent frames of the videos on which drift is measured; 0: it is not.
    """

    samples: Amount
    steps: Count
    guidance: float
    long: Natural


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
    config = run.view(Config)
    if config.evaluation.long:
        if not config.world.bounce:
            raise InputError(
                "evaluation.long: expected a world that bounces, found one whose shapes leave the frame; "
                "set world.bounce, or 0"
            )
        run.plan_of(config.evaluation.long)
    if world not in run.stages:
        raise InputError(
            f"config: expected the stage of a world among {list(run.stages)}, found {world!r}; name it"
        )


def load(run: Run, workdir: Path, source: str, ema: bool = False) -> Params:
    """Parameters of a stage's network, "STAGE:NET", on the first device of this process; "random STAGE:NET"
    gives new ones."""
    name = source.removeprefix("random ")
    model = sources.network(run, name).model
    mesh = sharding.make_mesh({"data": 1}, jax.local_devices()[:1])
    if name != source:
        key = randomness.key(run.seed, *name.split(":"), "untrained")
        random: Params = jax.jit(lambda: sharding.unbox(model.init(key)))()
        return random
    abstract = sharding.abstract(model.shapes, mesh)
    loaded: Params = sources.load(run, workdir, source, abstract, ema)
    return loaded


class Gallery:
    """What the exam and the report look at. Processes divide the videos of a model, and all get all of them.

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
        self.codec, self._reader = encoders.codec, encoders.text
        self.negative = Store.open(folder / "store").negative_text()
        count = self.settings.samples
        self.captions = list(itertools.islice(itertools.cycle(self.world.captions()), count))
        self.text = self.embedded(self.captions)
        files = sorted((folder / "videos").glob("*.mp4"))
        rows = [
            json.loads(line)
            for line in textfiles.lines(textfiles.read(folder / "videos" / "captions.jsonl"))
        ]
        rows.sort(key=lambda row: row["video"])
        self.real_captions = [row["caption"] for row in rows][:count]
        self.real = np.stack([read_video(file)[0] for file in files[:count]])
        self.seen = self.decode(self.codec.encode(self.real))
        judged = judge.load(folder / judge.FILE)
        # Real videos as the models know them: through the codec.
        self.against = Against(self.seen, self.real_captions, judged, self.world)
        self.plan, self.long = run.plan, run.plan_of(self.settings.long or run.latents.frames)

    def embedded(self, captions: Sequence[str]) -> np.ndarray:
        """Captions as models read them, [n, length, dim]."""
        return np.stack([pad(self._reader.encode(c), self._reader.length) for c in captions])

    def draws(self, plan: Plan) -> ClipDraws:
        """The noise of the captions' videos of some plan."""
        key = randomness.key(self.run.seed, "gallery")
        shape = (len(self.captions), num_frames(plan), *self.run.latents.shape[1:])
        return draw(key, shape, plan, 0.0)

    def clip(self, student: Student, plan: Plan) -> np.ndarray:
        """A student's videos of the captions."""
        draws, text = self._own((self.draws(plan), jnp.asarray(self.text)))
        condition = student.prepare(prompted(text))
        return self._all(student.clip(draws, condition, plan))

    def _own(self, rows: Any) -> Any:
        """The rows that this process answers; as many in each process, the first ones again at the end."""
        index, parts = processes.part()
        each = -(-len(self.captions) // parts)
        chosen = np.arange(index * each, (index + 1) * each) % len(self.captions)
        return rows if parts == 1 else jax.tree.map(lambda x: x[chosen], rows)

    def _all(self, latents: jax.Array) -> np.ndarray:
        """Pixels of all processes' answers."""
        return processes.gathered(self.decode(latents))[: len(self.captions)]

    def decode(self, latents: jax.Array) -> np.ndarray:
        """Pixels uint8 [n, f, y, x, 3]."""
        return np.asarray(self.codec.stream()(latents))

    def teacher(self, source: str) -> np.ndarray:
        """Videos of the many-step bidirectional teacher."""
        noise, text = self._own((self.draws(self.plan).start, jnp.asarray(self.text)))
        model = sources.network(self.run, source).model
        latents = sample(
            model,
            load(self.run, self.workdir, source),
            noise,
            prompted(text),
            model.null({NEGATIVE: jnp.asarray(self.negative)}),
            euler(flow.grid(self.settings.steps, self.run.shift)),
            guidance=self.settings.guidance,
        )
        return self._all(latents)
