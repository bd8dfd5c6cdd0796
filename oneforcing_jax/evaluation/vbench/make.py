"""Makes the videos that VBench looks for, by the code that `oneforcing_jax.generate` uses."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oneforcing_jax.data.video import Clip
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.vbench import record
from oneforcing_jax.evaluation.vbench import suite as suites
from oneforcing_jax.evaluation.vbench.suite import Suite
from oneforcing_jax.generation import jobs as listing
from oneforcing_jax.generation.jobs import Job, Prompt
from oneforcing_jax.generation.making import Making, write
from oneforcing_jax.generation.scene import Scene
from oneforcing_jax.setup.ranges import Amount, Seed, options
from oneforcing_jax.system import compiled, processes

# What `generate` has and VBench does not: a video's beginning, and recorded draws.
WITHOUT = {
    "image": None,
    "video": None,
    "noise_file": None,
    "prompt_embeds": None,
    "save_latents": False,
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The options that say which videos to make; `--help` explains them."""

    vbench: Path
    rewritten: Path | None
    dimension: Sequence[str]
    samples: Amount
    seed: Seed
    out: Path
    shard: str
    dry_run: bool
    overwrite: bool

    def jobs(self, suite: Suite, texts: Mapping[str, str] | None) -> list[Job]:
        """All videos, of all shards."""
        if self.out.suffix == ".mp4":
            raise InputError(f"--out: expected a folder, found {self.out}; name one")
        prompts = [Prompt(w, texts[w] if texts else w) for w in suite.prompts(self.dimension)]
        return listing.make(prompts, self.out, self.samples, self.seed)


def run(args: argparse.Namespace) -> None:
    """Makes the videos that are missing, and keeps what they are made from beside them.

    Raises:
      MissingInput, InputError: a bad list, options, checkpoint, or a folder of other videos.
    """
    processes.join(args)
    given = vars(args) | WITHOUT
    wanted, making = options(Wanted, given), Making.of(given)
    suite = suites.read(wanted.vbench)
    for line, first in suite.repeats():
        print(f"{suite.path.name}: line {line} repeats line {first}, which counts")
    texts = suite.rewritten(wanted.rewritten) if wanted.rewritten else None
    jobs = wanted.jobs(suite, texts)
    origins = making.origins()
    made = record.describe(making, origins.settings, wanted.seed, suite, texts)
    if not wanted.overwrite:
        record.compare(wanted.out, made, jobs)
    todo = listing.missing(listing.share_of(jobs, wanted.shard), origins.of, wanted.overwrite)
    if wanted.dry_run:
        print(*(job.path.name for job in todo), sep="\n")
        print(f"{len(todo):,} videos to make, of {len(jobs):,} of {jobs[-1].line + 1:,} prompts")
        return
    begun = time.perf_counter()
    if todo:
        listing.make_folder(wanted.out)
        making = making.fitted(len(todo))
        with compiled.kept(args.programs):
            scene = making.scene(jobs)
            record.keep(wanted.out, made, _clip(scene))
            write(scene, todo, making.writing, origins)
    processes.say_rates("generation", len(todo), time.perf_counter() - begun, "video")


def _clip(scene: Scene) -> Clip:
    frames, _, rows, columns = scene.settings.shape
    return Clip(*scene.model.encoders.codec.video_shape(frames, rows, columns), scene.fps)
