"""Makes videos from prompts.

    python -m oneforcing_jax.generate --checkpoint weights/framewise --encoders weights/wan \\
        --prompt "a cat on a beach" --out cat.mp4
    python -m oneforcing_jax.generate --checkpoint runs/toy/one_forcing --prompts prompts.txt --out videos

The same command continues an interrupted one: finished files are skipped. docs/generate.md says more;
oneforcing_jax.generation.streaming does the same from Python.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import ClipDraws
from oneforcing_jax.command import axes, ending, numbers, size
from oneforcing_jax.data.images import at_rate, read_image
from oneforcing_jax.data.video import VideoWriter, read_video
from oneforcing_jax.dtypes import DTYPES
from oneforcing_jax.errors import InputError
from oneforcing_jax.files import write_whole
from oneforcing_jax.generation import jobs as listing
from oneforcing_jax.generation import recordings, samplers, streaming
from oneforcing_jax.generation.jobs import Job
from oneforcing_jax.generation.streaming import VideoModel
from oneforcing_jax.generation.student import (
    FIRST_STEPS,
    Noise,
    Settings,
    Text,
    recorded,
    sample_keys,
    seeded,
)
from oneforcing_jax.published import BLOCK_FRAMES

SAMPLERS: dict[str, Callable[[np.ndarray], samplers.Sampler]] = {
    "unipc": samplers.unipc,
    "euler": samplers.euler,
}
# Below this many pixel rows or columns, colour at half resolution shows.
SMALL = 128


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oneforcing_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # fmt: off
    add, several = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("--checkpoint", required=True, help="folder of tools/convert_wan.py, or a run's WORKDIR/STAGE")
    add("--encoders", help="folder of VAE and text encoder; default: the checkpoint's own")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--dtype", choices=sorted(DTYPES), help="default: the run's; bfloat16 for converted weights")

    several.add_argument("--prompt", help="what to show")
    several.add_argument("--prompts", type=Path, help="a prompt a line, or .jsonl of prompt and seed")
    add("--rewritten_prompts", type=Path, help="a line for each of --prompts: embedded in its place")
    add("--image", type=Path, help="first frame of every video")
    add("--video", type=Path, help="first frames of every video, which continues them")
    add("--out", required=True, type=Path, help="folder, or for a single video a .mp4 file")
    add("--naming", choices=listing.NAMINGS, default="vbench", help="PROMPT-K.mp4 or LINE-K.mp4")
    add("--samples", type=int, default=1, help="videos of each prompt")
    add("--seed", type=int, default=0, help="of the noise, which depends on it and on K alone")

    add("--frames", type=int, help="pixel frames, given ones included; default as trained, Wan 81")
    add("--size", type=size, help="rows x columns in pixels; default as trained, Wan 480x832")
    add("--fps", type=float, help="frames per second; default as trained, Wan 16")
    add("--crf", type=int, default=18, help="H.264 quality, 0 (best) to 51")

    add("--method", choices=sorted(BLOCK_FRAMES), help="1 or 3 latent frames a block; default as trained")
    add("--steps", type=numbers, default=(1000.0,), help="timesteps of a block; default 1000")
    add("--first_frames", type=int, help="latent frames of the first block; default as trained")
    first = "timesteps of the first block, default 1000,750,500,250; not with --image or --video"
    add("--first_steps", type=numbers, default=FIRST_STEPS, help=first)
    add("--shift", type=float, help="of the noise schedule; default as trained, Wan 5")
    add("--window", type=int, help="latent frames that a block sees, its own too; default all")
    add("--sink", type=int, default=0, help="first frames that stay visible, counted in --window")

    add("--teacher", action="store_true", help="sample a bidirectional checkpoint in many steps")
    add("--sampler", choices=sorted(SAMPLERS), default="unipc", help="of --teacher")
    add("--sampling_steps", type=int, default=50, help="of --teacher")
    add("--guidance", type=float, default=5.0, help="of --teacher, g in uncond + g (cond - uncond)")

    add("--batch", type=int, default=1, help="videos side by side, split over the devices")
    split = "devices of a video along mesh axes, such as sequence=4,context=2; default one"
    add("--mesh", type=axes, default={}, help=split)
    add("--shard", default="0/1", help="I/N: this process makes share I of N")
    add("--noise_file", type=Path, help=".npz: noise [n, f, c, y, x], renoise [n, steps - 1, f, ...]")
    add("--prompt_embeds", type=Path, help=".npy [prompts, s, d], read in place of the text encoder")
    add("--save_latents", action="store_true", help="float32 [f, c, y, x] beside each video, .npy")
    # fmt: on
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with ending("the same command continues after the finished videos"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Makes the videos that are missing."""
    jobs = _jobs(args)
    share = listing.share_of(jobs, args.shard)
    todo = [
        job
        for job in share
        if not job.path.is_file() or (args.save_latents and not job.latents.is_file())
    ]
    if len(todo) < len(share):
        print(f"{len(share) - len(todo)} of {len(share)} videos are there already")
    if not todo:
        return
    for name in ("batch", "frames"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: expected 1 or more, found {value}")
    if args.sink and args.window is None:
        raise InputError(f"sink: expected --window with it, found a sink of {args.sink} alone")
    model = _model(args)
    settings, given = _settings(args, model)
    noise, text = _noise(args, jobs, settings, given), _text(args, model, jobs)
    total = len(todo) * settings.shape[0]
    with tqdm(total=total, unit="latent frame", disable=None) as bar:
        for start in range(0, len(todo), args.batch):
            group = todo[start : start + args.batch]
            # The last group is filled up, so that one program serves all.
            filled = [group[i % len(group)] for i in range(args.batch)]
            _write(args, model, settings, group, noise(filled), text(filled), given, bar)
    print(f"videos made in {todo[0].path.parent}: {len(todo)}")


def _jobs(args: argparse.Namespace) -> list[Job]:
    if args.prompt is not None:
        if args.rewritten_prompts:
            raise InputError("--rewritten_prompts: expected --prompts with it, found --prompt")
        if not args.prompt.strip():
            raise InputError("prompt: expected words, found an empty prompt; say what to show")
        prompts = [listing.Prompt(args.prompt, args.prompt)]
    else:
        prompts = listing.read_prompts(args.prompts, args.rewritten_prompts)
    jobs = listing.make(prompts, args.out, args.samples, args.seed, args.naming)
    folder = jobs[0].path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make {folder}: {error.strerror}; choose another") from None
    return jobs


def _model(args: argparse.Namespace) -> VideoModel:
    common: dict[str, Any] = {
        name: getattr(args, name) for name in ("encoders", "ema", "dtype", "shift", "batch")
    }
    if not args.teacher:
        window = Window(args.window, args.sink)
        return streaming.load(args.checkpoint, window=window, split=args.mesh, **common)

    def sampler(shift: float) -> samplers.Sampler:
        return SAMPLERS[args.sampler](samplers.wan_grid(args.sampling_steps, shift))

    # Wan counts guidance from the unconditional prediction, the paper and we from the conditional.
    guidance = args.guidance - 1
    return streaming.load_teacher(args.checkpoint, sampler=sampler, guidance=guidance, **common)


def _settings(args: argparse.Namespace, model: VideoModel) -> tuple[Settings, Any]:
    """Settings, and the given first latents [1, f, c, y, x] or None."""
    changes: dict[str, Any] = {"steps": args.steps, "first_steps": args.first_steps}
    if args.method:
        changes |= {"block_frames": BLOCK_FRAMES[args.method], "first_frames": None}
    if args.first_frames:
        changes["first_frames"] = args.first_frames
    settings = model.settings(args.frames, args.size, **changes)
    if args.teacher:
        settings = dataclasses.replace(
            settings, block_frames=settings.shape[0], first_frames=None, first_steps=None
        )
    file, given = args.image or args.video, None
    if file and args.teacher:
        raise InputError(
            f"--teacher: it makes whole clips and cannot continue {file}; leave one out"
        )
    if file:
        frames = read_image(file) if args.image else at_rate(*read_video(file), _fps(args, model))
        given = model.first_frames(frames, settings, log=lambda line: print(f"{file}: {line}"))
    settings.plan(model.source.shift, 0 if given is None else given.shape[1])
    return settings, given


def _fps(args: argparse.Namespace, model: VideoModel) -> float:
    return model.source.fps if args.fps is None else args.fps


def _noise(
    args: argparse.Namespace, jobs: Sequence[Job], settings: Settings, given: Any
) -> Callable[[Sequence[Job]], Noise]:
    """Noise of a batch: from the file, or from seeds."""
    first = 0 if given is None else given.shape[1]
    if not args.noise_file:
        return lambda group: seeded(
            sample_keys([job.seed for job in group], [job.sample for job in group]),
            settings.shape[1:],
        )
    steps = max(len(block.sigmas) for block in settings.plan(1.0, first))
    frames = (settings.shape[0] - first, *settings.shape[1:])
    start, renoise = recordings.read_noise(args.noise_file, len(jobs), frames, steps)

    def noise(group: Sequence[Job]) -> Noise:
        rows = [job.number for job in group]
        more = None if renoise is None else jnp.asarray(renoise[rows])
        return recorded(ClipDraws(jnp.asarray(start[rows]), None, more), first)

    return noise


def _text(
    args: argparse.Namespace, model: VideoModel, jobs: Sequence[Job]
) -> Callable[[Sequence[Job]], Text]:
    """Embeddings of a batch: from the file, or of the prompts."""
    if not args.prompt_embeds:
        return lambda group: model.embed([job.prompt.embedded for job in group])
    config, lines = model.source.config, jobs[-1].line + 1
    shape = (lines, config.text_len, config.text_dim)
    array = recordings.read_embeddings(args.prompt_embeds, shape)
    return lambda group: model.place(array[[job.line for job in group]])


def _write(
    args: argparse.Namespace,
    model: VideoModel,
    settings: Settings,
    group: Sequence[Job],
    noise: Noise,
    text: Text,
    given: Any,
    bar: tqdm,
) -> None:
    """Makes a batch and writes it as it comes; files take their names when they are whole."""
    if given is not None:
        given = model.place(np.repeat(np.asarray(given), args.batch, 0))
    parts: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writers: list[VideoWriter] = []
        for latents, frames in model.videos(noise, text, settings, given):
            small = min(frames.shape[2:4]) < SMALL
            writers = writers or [
                stack.enter_context(
                    VideoWriter(job.path, _fps(args, model), crf=args.crf, full_chroma=small)
                )
                for job in group
            ]
            for writer, video in zip(writers, frames, strict=False):
                writer.write(video)
            if args.save_latents:
                parts.append(np.asarray(latents, np.float32))
            bar.update(len(group) * latents.shape[1])
        if args.save_latents:
            for job, clip in zip(group, np.concatenate(parts, 1), strict=False):
                content = io.BytesIO()
                np.save(content, clip)
                write_whole(job.latents, content.getvalue())


if __name__ == "__main__":
    main()
