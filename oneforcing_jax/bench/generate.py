"""Time of a video with random weights, part by part.

Wan's VAE, or the tiny decoder, decodes latents with 16 channels; of others three channels are shown.
Diffusion and decoding are run apart, and each block is waited for; "overlapped" is both as videos are
really made.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import meta

from oneforcing_jax import sharding
from oneforcing_jax.bench import trace, vae
from oneforcing_jax.bench.timing import peak_memory, waited
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import Plan, make_plan
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.families.wan_codec import WanCodec
from oneforcing_jax.generation.noise import Noise, sample_keys, seeded
from oneforcing_jax.generation.streaming import decoded
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import Condition, prompted
from oneforcing_jax.models.model import Model, unstacked
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Latents, Run
from oneforcing_jax.system.command import numbers
from oneforcing_jax.targets import chips
from oneforcing_jax.training.train import student

# Blocks before the steady ones: the first, and the one that follows it.
STARTING = 2

Decoder = Callable[[], Callable[[jax.Array], jax.Array]]


def random_student(model: Model, window: Window) -> Student:
    """A student with random weights, in the dtypes that it is used with."""

    def init() -> Any:
        params = meta.unbox(model.init(jax.random.key(0)))
        return jax.tree.map(lambda x, like: x.astype(like.dtype), params, abstract)

    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    abstract = model.in_use(mesh)
    return Student(model, unstacked(jax.jit(init)()), window)


def random_decoder(latents: Latents, dtype: Any, decoder: str | None = None) -> Decoder:
    """What `Codec.stream` is, with random weights of Wan's VAE or the tiny decoder; other latents are shown
    as they are.

    Raises:
      InputError: a decoder for latents that are not Wan's.
    """
    wan = VAEConfig(dtype=dtype)
    if latents.channels != wan.channels:
        if decoder:
            raise InputError(
                f"decoder: expected latents of {wan.channels} channels, which {decoder} is for, found "
                f"{latents.channels}; leave it out"
            )
        return lambda: _pixels
    config, params = vae.random_params(wan, decoder)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    placed = jax.device_put(params, sharding.named(mesh))
    return WanCodec(wan, None, decoder=(config, placed)).stream


@jax.jit
def _pixels(latents: jax.Array) -> jax.Array:
    """Three channels of latents [b, f, c, y, x] as frames uint8 [b, f, y, x, 3]."""
    shown = jnp.clip(127.5 * (jnp.moveaxis(latents[:, :, :3], 2, -1) + 1), 0, 255)
    return shown.astype(jnp.uint8)


def random_inputs(student: Student, latents: Latents, batch: int) -> tuple[Noise, Condition]:
    """Noise of a batch of videos, and embeddings of their prompts, not prepared."""
    c = student.model.config
    text = jax.random.normal(jax.random.key(1), (batch, c.text_len, c.text_dim))
    shape = (c.in_dim, latents.rows, latents.columns)
    return seeded(sample_keys(range(batch), [0] * batch), shape), prompted(text)


def video(student: Student, noise: Noise, given: Condition, plan: Plan) -> Iterator[jax.Array]:
    """What `Student.stream` gives; preparing the condition is a part of its first block."""
    yield from student.stream(noise, student.prepare(given), plan)


def measure(
    student: Student, decoder: Decoder, latents: Latents, plan: Plan, batch: int, repeats: int
) -> dict[str, Any]:
    """Medians over `repeats` videos, after one that compiles."""
    noise, given = random_inputs(student, latents, batch)
    rows: list[dict[str, float]] = []
    pixel_frames = 0
    for _ in range(repeats + 1):
        diffusion, blocks = waited(video(student, noise, given, plan))
        decode, frames = waited(blocks, decoder())
        pixel_frames = sum(part.shape[1] for part in frames)
        del blocks, frames
        total, _ = waited(decoded(video(student, noise, given, plan), decoder()))
        steady = diffusion[STARTING:] or diffusion
        rows.append(
            {
                "first_frame_s": total[0],
                "first_block_s": diffusion[0],
                "steady_block_s": statistics.median(steady),
                "steady_decode_s": statistics.median(decode[STARTING:] or decode),
                "diffusion_s": sum(diffusion),
                "decode_s": sum(decode),
                "total_s": sum(total),
            }
        )
    found = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    found |= {"with_compilation_s": sum(rows[0][k] for k in ("diffusion_s", "decode_s", "total_s"))}
    return found | {
        "frames": batch * pixel_frames,
        "frames_per_s": batch * pixel_frames / found["total_s"],
    }


def report(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """All that is printed and written."""
    size, blocks = run.latents, run.blocks
    network = student(run)
    made = network.config
    plan = make_plan(
        size.frames,
        blocks.frames,
        args.steps,
        run.shift,
        blocks.first_frames or None,
        args.first_steps,
    )
    streamed = random_student(network.model, Window(args.window, args.sink))
    decoder = random_decoder(size, made.dtype, args.decoder)
    found = measure(streamed, decoder, size, plan, args.batch, args.repeats)
    # The count has exact lengths of keys, and each block sees all before it; a window makes it less.
    tokens = made.frame_tokens(size.rows, size.columns)
    work = args.batch * flops.generation(made, tokens, plan).forward
    device = jax.devices()[0]
    chip = chips.find(device.device_kind)
    rate = work / found["diffusion_s"]
    memory = peak_memory()  # before the profile, which is no part of the work
    kernels = {}
    if args.profile:
        noise, given = random_inputs(streamed, size, args.batch)
        again = functools.partial(video, streamed, noise, given, plan)
        kernels = {"kernels": trace.profiled(lambda: list(again()))[0]}
    return {
        "device": device.device_kind,
        "config": args.config,
        "batch": args.batch,
        "latent_frames": size.frames,
        "blocks": [[block.frames, len(block.sigmas)] for block in plan],
        **found,
        "diffusion_flops": work,
        "diffusion_flops_per_s": rate,
        "utilisation": rate / chip.peak if chip and not args.window else None,
        "peak_memory_bytes": memory,
        **kernels,
    }


def lines(made: dict[str, Any]) -> list[str]:
    """The report as text, in the split of the original's table."""
    rows = [
        ("first frames on the host", made["first_frame_s"]),
        ("first block", made["first_block_s"]),
        ("steady block", made["steady_block_s"]),
        ("its decoding", made["steady_decode_s"]),
        ("diffusion, all blocks", made["diffusion_s"]),
        ("decoding, all blocks", made["decode_s"]),
        ("both, one after the other", made["diffusion_s"] + made["decode_s"]),
        ("both, overlapped", made["total_s"]),
    ]
    text = [f"{name:<27}{1000 * seconds:>10.1f} ms" for name, seconds in rows]
    used = made["utilisation"]
    part = "" if used is None else f", {100 * used:.0f}% of the device"
    text.append(f"{made['frames_per_s']:.2f} frames/s; {made['diffusion_flops'] / 1e12:.4g} TFLOP "
                f"at {made['diffusion_flops_per_s'] / 1e12:.4g} TFLOP/s{part}")  # fmt: skip
    memory = made["peak_memory_bytes"]
    text.append(
        f"peak memory {memory / 1e9:.2f} GB" if memory else "peak memory: the device does not say"
    )
    return text + trace.lines_of([made])


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="a Python file with get_config(), or the name of one of ours: toy",
    )
    add("--steps", type=numbers, default=FAMILY.video.steps, help="timesteps of every block")
    add(
        "--first_steps",
        type=numbers,
        default=FAMILY.video.first_steps,
        help="timesteps of the first block",
    )
    add("--decoder", choices=FAMILY.decoders, help="in place of the VAE's")
    add("--batch", type=int, default=1, help="videos side by side")
    add("--window", type=int, help="latent frames that a block sees; default all")
    add("--sink", type=int, default=0, help="first frames that stay visible")
    add("--repeats", type=int, default=3, help="videos of which the median counts")
    add("--profile", action="store_true", help=trace.HELP)


def run(given: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Times a video part by part; prints the parts and returns them."""
    for name in ("batch", "repeats"):
        if getattr(given, name) < 1:
            raise InputError(f"{name}: expected 1 or more, found {getattr(given, name)}")
    made = report(Run.of(configs.load(given.config, overrides)), given)
    print(f"{made['latent_frames']} latent frames, batch {made['batch']}, {made['device']}")
    print("\n".join(lines(made)))
    return made
