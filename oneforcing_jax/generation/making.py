"""How videos are made and written, whatever they show: its options, and what they do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from oneforcing_jax import demos
from oneforcing_jax.data import mark
from oneforcing_jax.data.origin import Origin
from oneforcing_jax.data.resize import enlarged
from oneforcing_jax.data.video import VideoWriter
from oneforcing_jax.generation.adapters import File
from oneforcing_jax.generation.jobs import Job
from oneforcing_jax.generation.loading import PLACES, SAMPLERS, Loading
from oneforcing_jax.generation.origins import Origins
from oneforcing_jax.generation.scene import Given, Look, Scene
from oneforcing_jax.live import display as displays
from oneforcing_jax.live import watching
from oneforcing_jax.live.display import Display
from oneforcing_jax.models.products.eight_bits import EightBits
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.setup.ranges import Amount, Quality, options
from oneforcing_jax.system import processes
from oneforcing_jax.system.command import any_path, axes, numbers, size
from oneforcing_jax.system.files import write_whole

# Below this many pixel rows or columns, colour at half resolution shows.
SMALL = 128
# From so many latent frames on, a command says how long they may take: seconds of a steady block of the 1.3B
# student at 480x832, the mean of 21 that docs/performance.md has.
MANY, STEADY = 10_000, 0.043
# What `generate` has options for, and a command that streams one video does not choose.
STREAMED = {
    "teacher": False, "sampler": "unipc", "sampling_steps": 1, "guidance": 0.0, "batch": 1,
    "crf": 0, "first_steps": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Writing:
    """The options that say how videos are made and written."""

    batch: Amount
    crf: Quality
    save_latents: bool
    mark: str | None
    demo: str | None = None

    @property
    def side(self) -> int | None:
        """Pixels of the longer side, to which a demo's small frames are enlarged; None: as they are made."""
        return demos.SIDE if self.demo else None


@dataclasses.dataclass(frozen=True)
class Making:
    """The options that say how videos are made, checked before anything is."""

    look: Look
    files: Given
    loading: Loading
    writing: Writing

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Making:
        """From the options of a command line.

        Raises:
          InputError: an option outside its range, or beside one that it does not go with.
        """
        look, files = options(Look, given), options(Given, given)
        return cls(look, files, options(Loading, given), options(Writing, given))

    def fitted(self, videos: int) -> Making:
        """With no more places in a batch than videos, rounded up to the devices."""
        devices = jax.local_device_count()
        batch = min(self.writing.batch, -(-videos // devices) * devices)
        loading = dataclasses.replace(self.loading, batch=batch)
        return dataclasses.replace(
            self, loading=loading, writing=dataclasses.replace(self.writing, batch=batch)
        )

    def origins(self) -> Origins:
        """What the videos' files are to say; see `Origins.find`."""
        writing = self.writing
        return Origins.find(
            self.loading, self.look, self.files, writing.crf, writing.mark, writing.side
        )

    def scene(self, jobs: Sequence[Job]) -> Scene:
        """The model, and what its videos are made from; `jobs` are all of the command, of all shards."""
        return Scene.of(self.loading.model(), self.look, self.files, jobs)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how videos are made, whatever they show."""
    add_model(parser)
    # fmt: off
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of the noise, which depends on it and on K alone")
    add("--crf", type=int, default=18, help="H.264 quality, 0 (best) to 51")
    marks = "marks the pixels invisibly; KEY, where given, is needed to find it (docs/provenance.md)"
    add("--mark", nargs="?", const=mark.KEY, metavar="KEY", help=marks)
    first = "timesteps of the first block, not with --image or --video; default as trained, but in one step "
    first += "1000,750,500,250"
    add("--first_steps", type=numbers, help=first)
    add("--overwrite", action="store_true", help="make videos anew that were made from something else")

    add("--teacher", action="store_true", help="sample a bidirectional checkpoint in many steps")
    add("--sampler", choices=sorted(SAMPLERS), default="unipc", help="of --teacher")
    add("--sampling_steps", type=int, help="of --teacher; default the family's")
    add("--guidance", type=float, help="of --teacher, g in uncond + g (cond - uncond); default the family's")

    add("--batch", type=int, default=1, help="videos side by side, split over the devices")
    shown = "shows them while they are made, in a terminal that draws pictures, in characters, or in a window"
    add("--watch", nargs="?", const="auto", choices=displays.KINDS, help=shown)
    add("--shard", default="0/1", help="I/N: this command makes share I of N")
    # fmt: on
    processes.add_options(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model makes videos, and what its videos are."""
    # fmt: off
    add = parser.add_argument
    found = "folder of tools/convert_wan.py, or a run's WORKDIR/STAGE"
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--checkpoint", type=any_path, help=found)
    demos.add_option(one)
    add("--encoders", type=any_path, help="folder of VAE and text encoder; default: the checkpoint's own")
    where = "whose memory holds the text encoder, and who runs it; host for small devices"
    add("--text_encoder", choices=PLACES, default=PLACES[0], help=where)
    add("--kept_prompts", type=any_path, help="folder of embeddings, so that a prompt is encoded once")
    add("--decoder", help="tiny, in place of the VAE's, for previews; docs/generate.md")
    add("--ema", action="store_true", help="the moving average of the weights")
    one_of = "adapters of a .safetensors file or PEFT folder, FILE[:WEIGHT]; once for each (docs/generate.md)"
    add("--lora", type=File.of, action="append", default=[], help=one_of)
    add("--dtype", choices=sorted(DTYPES), help="default: the run's; bfloat16 for converted weights")
    bits = "int8 or fp8: matrices of eight bits; KIND:NAMES leaves some as they are, such as int8:ffn.2 "
    bits += "(docs/generate.md)"
    add("--precision", type=EightBits.of, help=bits)

    add("--frames", type=int, help="pixel frames, given ones included; default as trained, or its family's")
    add("--size", type=size, help="rows x columns in pixels; default as trained, or its family's")
    add("--fps", type=float, help="frames per second; default as trained, or its family's")

    add("--method", help="framewise or chunkwise: 1 or 3 latent frames a block; default as trained")
    add("--steps", type=numbers, help="timesteps of a block; default as trained, or its family's")
    add("--first_frames", type=int, help="latent frames of the first block; default as trained")
    add("--shift", type=float, help="of the noise schedule; default as trained, or its family's")
    add("--window", type=int, help="latent frames that a block sees, its own too; default all")
    add("--sink", type=int, default=0, help="first frames that stay visible, counted in --window")
    add("--relative", action="store_true", help="rotary positions of the sink follow the window")
    kept = "folder that keeps compiled programs; default: this user's, ~/.cache/oneforcing_jax; '': none"
    add("--programs", help=kept)
    split = "devices of a video along mesh axes, such as sequence=4,context=2; default one"
    add("--mesh", type=axes, default={}, help=split)
    # fmt: on
    parts.add_option(parser)


def write(
    scene: Scene,
    jobs: Sequence[Job],
    writing: Writing,
    origins: Origins,
    display: Display | None = None,
) -> None:
    """Makes videos batch by batch, and writes them as they come; a display shows the first of each batch."""
    print(f"steps: {origins.steps}")
    first, total = scene.given(writing.batch), len(jobs) * scene.settings.shape[0]
    if total > MANY:
        hours = total * STEADY / 3600
        print(
            f"{total:,} latent frames to make: {hours:,.1f} hours at the {STEADY * 1000:g} ms of one H200"
        )
    # A bar would be drawn into the pictures of a terminal.
    hidden = True if display or not processes.is_first() else None
    with tqdm(total=total, unit="latent frame", disable=hidden) as bar:
        for start in range(0, len(jobs), writing.batch):
            group = jobs[start : start + writing.batch]
            # The last group is filled up, so that one program serves all.
            filled = [group[i % len(group)] for i in range(writing.batch)]
            noise, condition = scene.noise(filled), scene.condition(filled)
            made = scene.model.videos(noise, condition, scene.settings, first)
            said = [origins.of(job) for job in group]
            with contextlib.closing(_written(made, group, said, scene.fps, writing)) as parts:
                seen = (_counted(part, bar, len(group)) for part in parts)
                if display:
                    print(group[0].prompt.embedded)
                    watching.shown(seen, scene.fps, display)
                for _ in seen:
                    pass
    first_file, last_file = jobs[0].path, jobs[-1].path.name
    if len(jobs) == 1:
        print(f"video made: {first_file}")
    else:
        print(f"videos made in {first_file.parent}: {len(jobs)}, {first_file.name} to {last_file}")


def _counted(part: tuple[jax.Array, np.ndarray], bar: tqdm[Any], videos: int) -> np.ndarray:
    """The first video's frames of a part of a batch, whose latent frames are counted."""
    latents, frames = part
    bar.update(videos * latents.shape[1])
    return frames[0]


def _shown(videos: np.ndarray, side: int | None) -> np.ndarray:
    """Frames uint8 [b, f, y, x, 3] as files show them."""
    if side is None:
        return videos
    return np.stack([[enlarged(frame, side) for frame in video] for video in videos])


def _written(
    made: Iterator[tuple[jax.Array, np.ndarray]],
    group: Sequence[Job],
    origins: Sequence[Origin],
    fps: float,
    writing: Writing,
) -> Generator[tuple[jax.Array, np.ndarray]]:
    """Latents and frames of a batch as they come, the frames written; files take their names when they are
    whole."""
    parts: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writers: list[VideoWriter] = []
        for latents, frames in made:
            shown = _shown(frames, writing.side)
            small = min(shown.shape[2:4]) < SMALL
            writers = writers or [
                stack.enter_context(
                    VideoWriter(job.path, fps, crf=writing.crf, full_chroma=small, origin=origin)
                )
                for job, origin in zip(group, origins, strict=True)
            ]
            for writer, video in zip(writers, shown, strict=False):
                writer.write(video if writing.mark is None else mark.add(video, writing.mark))
            if writing.save_latents:
                parts.append(np.asarray(latents, np.float32))
            yield latents, frames
        if writing.save_latents:
            for job, clip in zip(group, np.concatenate(parts, 1), strict=False):
                content = io.BytesIO()
                np.save(content, clip)
                write_whole(job.latents, content.getvalue())
