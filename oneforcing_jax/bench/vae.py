"""Time and memory of the Wan VAE: whole encode, whole decode, and decode as a stream, random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import meta

from oneforcing_jax.bench.timing import timed
from oneforcing_jax.dtypes import DTYPES
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import vae, vae_stream
from oneforcing_jax.models.vae import WanVAE
from oneforcing_jax.models.vae_layers import VAEConfig


def measure(
    config: VAEConfig, frames: int, rows: int, columns: int, repeats: int
) -> list[dict[str, Any]]:
    """One row for each of encode, decode, and a steady step of a streamed decode.

    Args:
      config: of the VAE.
      frames, rows, columns: of the video in pixels.
      repeats: runs of which the median counts.

    Raises:
      InputError: sizes that the strides do not divide.
    """
    model = WanVAE(config)
    params = meta.unbox(vae.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
    pixels = jnp.zeros((1, frames, 3, rows, columns), config.dtype)
    shape = jax.eval_shape(partial(model.apply, method="encode"), {"params": params}, pixels).shape
    latents = jax.random.normal(jax.random.key(1), shape)

    def whole(method: str) -> Callable[..., Any]:
        return jax.jit(lambda params, x: model.apply({"params": params}, x, method=method))

    work = _flops(model, params, pixels, latents)
    made = [
        _row("encode", frames, timed(whole("encode"), (params, pixels), repeats), work["encode"]),
        _row("decode", frames, timed(whole("decode"), (params, latents), repeats), work["decode"]),
    ]
    state = vae_stream.init_stream(config, 1, *shape[3:])
    step = jax.jit(vae_stream.decode_step)
    _, state = step(params, state, latents[:, :1])
    times = timed(step, (params, state, latents[:, :1]), repeats)
    return [*made, _row("stream step", config.time_stride, times, work["step"])]


def _row(name: str, frames: int, times: dict[str, Any], work: float) -> dict[str, Any]:
    rates = {"frames_per_s": frames / times["step_s"], "flops_per_s": work / times["step_s"]}
    return {"work": name, "frames": frames, **times, "flops": work, **rates}


def _flops(model: WanVAE, params: Any, pixels: jax.Array, latents: jax.Array) -> dict[str, float]:
    """Operations by XLA's count of a first and a later chunk, which hold no loop."""

    def chunk(method: str, x: jax.Array, cache: Any) -> tuple[float, Any]:
        program = jax.jit(
            lambda params, x, cache: model.apply({"params": params}, x, cache, method=method)
        )
        lowered = program.lower(params, x, cache)
        cost: Any = lowered.cost_analysis()
        return cost["flops"], lowered.out_info[1]

    later = latents.shape[1] - 1
    one, cache = chunk("encode_chunk", pixels[:, :1], None)
    more = chunk("encode_chunk", pixels[:, : model.config.time_stride], cache)[0]
    first, cache = chunk("decode_chunk", latents[:, :1], None)
    step = chunk("decode_chunk", latents[:, :1], cache)[0]
    return {"encode": one + later * more, "decode": first + later * step, "step": step}


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
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--columns", type=int, default=832)
    parser.add_argument("--width", type=int, default=VAEConfig().width, help="of the first stage")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")


def run(given: argparse.Namespace, unknown: Sequence[str]) -> dict[str, Any]:
    """Times encode and decode; prints a table and returns what it says."""
    if unknown:
        raise InputError(f"expected the options of `bench vae --help`, found {unknown[0]}")
    config = VAEConfig(width=given.width, dtype=DTYPES[given.dtype])
    rows = measure(config, given.frames, given.rows, given.columns, given.repeats)
    device = jax.devices()[0].device_kind
    print(f"VAE, {given.frames} frames of {given.rows}x{given.columns}, {given.dtype}, {device}")
    print(table(rows))
    names = ("frames", "rows", "columns", "width", "dtype")
    return {"device": device, **{name: getattr(given, name) for name in names}, "work": rows}
