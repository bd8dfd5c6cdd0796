"""Time and memory of the Wan VAE or the tiny decoder: encode, decode, decode as a stream; random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import meta

from oneforcing_jax.bench import trace
from oneforcing_jax.bench.timing import timed
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.families.wan_codec import WanCodec
from oneforcing_jax.models import tiny_decoder, vae, vae_stream
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.vae import WanVAE
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup.dtypes import DTYPES


def measure(
    config: VAEConfig,
    frames: int,
    rows: int,
    columns: int,
    repeats: int,
    decoder: str | None = None,
    profile: bool = False,
) -> list[dict[str, Any]]:
    """One row for each of encode, decode, and a steady step of a streamed decode.

    Args:
      config: of the VAE.
      frames, rows, columns: of the video in pixels.
      repeats: runs of which the median counts.
      decoder: "tiny" for the tiny decoder, which has no encoder; None: the VAE's.
      profile: also their kernels.

    Raises:
      InputError: sizes that the strides do not divide.
    """
    shape = (1, *WanCodec(config, None).latent_shape(frames, rows, columns))
    made, params = random_params(config, decoder)
    found = (
        []
        if decoder
        else [_encode(config, params, (1, frames, 3, rows, columns), repeats, profile)]
    )
    latents = jax.random.normal(jax.random.key(1), shape)
    begin, step = vae_stream.init_stream(made, 1, *shape[3:]), jax.jit(vae_stream.decode_step)
    one = latents[:, :1]
    _, later = step(params, begin, one)
    # A single frame's program holds no loop.
    first, steady = (_flops(step, params, state, one) for state in (begin, later))
    for name, count, state, x, work in (
        ("decode", frames, begin, latents, first + (shape[1] - 1) * steady),
        ("stream step", made.time_stride, later, one, steady),
    ):
        found.append(_row(name, count, timed(step, (params, state, x), repeats, profile), work))
    return found


def random_params(
    config: VAEConfig, decoder: str | None = None
) -> tuple[vae_stream.DecoderConfig, Any]:
    """Config and random parameters, in the compute dtype, of the VAE or of the decoder in its place."""
    made: Any = TinyDecoderConfig(dtype=config.dtype) if decoder else config
    init: Any = tiny_decoder.init_params if decoder else vae.init_params
    params = meta.unbox(init(made, jax.random.key(0)))
    return made, jax.tree.map(lambda leaf: leaf.astype(made.dtype), params)


def _encode(
    config: VAEConfig, params: Any, shape: tuple[int, ...], repeats: int, profile: bool
) -> dict[str, Any]:
    """The row of an encode of pixels [1, f, 3, y, x]."""
    model = WanVAE(config)

    def call(method: str) -> Callable[..., Any]:
        return jax.jit(lambda params, *x: model.apply({"params": params}, *x, method=method))

    pixels, chunk = jnp.zeros(shape, config.dtype), call("encode_chunk")
    first, later = pixels[:, :1], pixels[:, : config.time_stride]
    _, cache = jax.eval_shape(chunk, params, first, None)
    work = _flops(chunk, params, first, None)
    work += (shape[1] - 1) // config.time_stride * _flops(chunk, params, later, cache)
    return _row("encode", shape[1], timed(call("encode"), (params, pixels), repeats, profile), work)


def _row(name: str, frames: int, times: dict[str, Any], work: float) -> dict[str, Any]:
    rates = {"frames_per_s": frames / times["step_s"], "flops_per_s": work / times["step_s"]}
    return {"work": name, "frames": frames, **times, "flops": work, **rates}


def _flops(call: Any, *arguments: Any) -> float:
    """Operations of a program without loops, by XLA's count."""
    return float(call.lower(*arguments).cost_analysis()["flops"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'work':>12} {'compile s':>10} {'seconds':>9} {'frames/s':>9} {'GB':>7} {'TFLOP/s':>8}"
    ]
    lines += [
        f"{row['work']:>12} {row['compile_s']:10.1f} {row['step_s']:9.4f} "
        f"{row['frames_per_s']:9.2f} {row['memory_bytes'] / 1e9:7.3f} "
        f"{row['flops_per_s'] / 1e12:8.3g}"
        for row in rows
    ]
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument("--frames", type=int, default=FAMILY.video.frames, help="of the video")
    parser.add_argument("--rows", type=int, default=FAMILY.video.rows, help="of a frame")
    parser.add_argument("--columns", type=int, default=FAMILY.video.columns, help="of a frame")
    parser.add_argument("--width", type=int, default=VAEConfig().width, help="of the first stage")
    parser.add_argument("--decoder", choices=FAMILY.decoders, help="in place of the VAE's")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the computation"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")
    parser.add_argument("--profile", action="store_true", help=trace.HELP)


def run(given: argparse.Namespace, unknown: Sequence[str]) -> dict[str, Any]:
    """Times encode and decode; prints a table and returns what it says."""
    if unknown:
        raise InputError(f"expected the options of `bench vae --help`, found {unknown[0]}")
    config = VAEConfig(width=given.width, dtype=DTYPES[given.dtype])
    sizes = given.frames, given.rows, given.columns
    rows = measure(config, *sizes, given.repeats, given.decoder, given.profile)
    device = jax.devices()[0].device_kind
    size = f"{given.frames} frames of {given.rows}x{given.columns}"
    print(f"{given.decoder or 'VAE'}, {size}, {given.dtype}, {device}")
    print("\n".join([table(rows), *trace.lines_of(rows)]))
    names = ("frames", "rows", "columns", "width", "decoder", "dtype")
    return {"device": device, **{name: getattr(given, name) for name in names}, "work": rows}
