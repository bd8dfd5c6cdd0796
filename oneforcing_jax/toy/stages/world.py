"""The toy's first stage: renders captioned mp4 files, fits codec, text encoder and judge, fills a store."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from oneforcing_jax.data.encode import encode
from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.ranges import Count
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import PICTURE, Kind, MadeFrom, Stage, leaves, results
from oneforcing_jax.system import processes
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import encoders as folders
from oneforcing_jax.toy import judge, text, world
from oneforcing_jax.toy.sheet import contact_sheet
from oneforcing_jax.training.clips import clip


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields of the stage.

    Attributes:
      count: videos to render.
      codec_videos: how many of them the codec is fitted on.
      judge_iterations: updates of the judge.
    """

    count: Count
    codec_videos: Count
    judge_iterations: Count


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config: the world, and who reads the prompts."""

    world: world.World
    generator: WanConfig


def make(run: Run, name: str, fields: Fields, workdir: Path) -> None:
    """Does the stage; what is there already is kept. Processes divide the videos, and the first one fits."""
    folder, config = workdir / name, run.view(Config)
    videos = folder / "videos"
    pairs = world.write_dataset(videos, fields.count, run.seed, config.world)
    with processes.first("codec, text encoder and judge") as mine:
        if mine:
            _fit(run, fields, config, folder, [path for path, _ in pairs[: fields.codec_videos]])
    encoders = encoding.load(folder)
    captions = videos / "captions.jsonl"
    made = encode(videos, captions, folder, encoders, clip(run, encoders.codec), folder / "store")
    with processes.first("the world's picture") as mine:
        if mine and not (folder / PICTURE).exists():
            shown = pairs[: len(config.world.captions())]
            clips = np.stack([read_video(path)[0] for path, _ in shown])
            said = [caption for _, caption in shown]
            contact_sheet(folder / PICTURE, {"real": clips}, {}, said, said)
    if left_out := made.left_out():
        raise InputError(f"{name}: {next(iter(left_out.values()))}; remove it and run again")


def _fit(run: Run, fields: Fields, config: Config, folder: Path, videos: list[Path]) -> None:
    if not (folder / encoding.ENCODERS).exists():
        frames = np.concatenate([read_video(path)[0] for path in videos])
        width, length = config.generator.text_dim, config.generator.text_len
        words = text.TextEncoder.train(config.world.captions(), width, length, run.seed)
        folders.save(folder, codecs.fit(frames, run.latents.channels), words)
    if not (folder / judge.FILE).exists():
        judge.train(config.world, fields.judge_iterations).save(folder / judge.FILE)


def prepare(run: Run, name: str, fields: Fields) -> Stage:
    """Checks the stage."""
    config = run.view(Config)
    generator, most = config.generator, codecs.PATCH**2 * 3
    if run.latents.channels > most:
        raise InputError(
            f"latents.channels: expected {most} at most, as values of a patch, found "
            f"{run.latents.channels}; change it"
        )
    text.check_sizes(config.world.captions(), generator.text_dim, generator.text_len)
    # Their size alone counts for the network that reads the prompts.
    unread = ("shift", "blocks", "generator")
    size = {"generator.text_dim": generator.text_dim, "generator.text_len": generator.text_len}
    made_from = results(run, (Config,), unread) | size | leaves({f"stages.{name}": fields})
    work = functools.partial(make, run, name, fields)
    return Stage(name, work, made_from=MadeFrom(made_from))


KIND = Kind(Fields, lambda fields: (Config,), prepare)
