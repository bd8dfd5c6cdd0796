"""Measures the host memory of a conversion, on random weights.

    python tools/convert_memory.py --gigabytes 1 --format pt

Makes a checkpoint of the shape of Wan2.1 with as many layers as fit the size, converts it with
tools/convert_wan.py in a process of its own, and exits with 1 if the peak resident memory exceeds
the model's size by more than --margin gigabytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from oneforcing_jax.convert import to_torch, torch_io
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import get
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system.command import Help, any_path, ending

GIGABYTE = 10**9
FORMATS = {"safetensors": "diffusion_pytorch_model.safetensors", "pt": "model.pt"}
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def shapes_of(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the original layout."""
    tree = FAMILY.abstract(config)
    return {
        key: to_torch.torch_shape(key, leaf, tuple(get(tree, leaf.path).shape))
        for key, leaf in wan_keys.transformer(config.num_layers).items()
    }


def fitting(size: str, target: float, itemsize: int) -> WanConfig:
    """Wan2.1 with as many layers as make `target` bytes."""

    def total(layers: int) -> int:
        shapes = shapes_of(dataclasses.replace(FAMILY.models[size], num_layers=layers))
        return itemsize * sum(math.prod(shape) for shape in shapes.values())

    one = total(1)
    layer = total(2) - one
    return dataclasses.replace(
        FAMILY.models[size], num_layers=max(1, round(1 + (target - one) / layer))
    )


def write(path: Path, config: WanConfig, dtype: np.dtype) -> None:
    """The synthetic checkpoint."""
    shapes, random = shapes_of(config), np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in shapes.items():
            yield name, random.standard_normal(shape, np.float32).astype(dtype)

    if path.suffix == ".safetensors":
        torch_io.write_safetensors(path, shapes, dict.fromkeys(shapes, dtype), tensors())
    else:
        torch_io.write_torch(path, {"generator": {f"model.{name}": a for name, a in tensors()}})


def peak_memory(command: Sequence[str]) -> float:
    """Peak resident memory of a command, in bytes.

    Raises:
      InputError: the command failed.
    """
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise InputError(f"the conversion failed (status {status}); its own message is above")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="convert_memory", description=__doc__, formatter_class=Help
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint")
    parser.add_argument(
        "--format", choices=sorted(FORMATS), default="safetensors", help="of the checkpoint"
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="bfloat16", help="of its tensors"
    )
    parser.add_argument(
        "--size", choices=sorted(FAMILY.models), default="1.3b", help="width of layers"
    )
    parser.add_argument("--margin", type=float, default=1.0, help="allowed above the size, in GB")
    parser.add_argument("--folder", type=any_path, help="for temporary files, twice the size")
    given = parser.parse_args(arguments)
    dtype = DTYPES[given.dtype]
    config = fitting(given.size, given.gigabytes * GIGABYTE, dtype.itemsize)
    model = dtype.itemsize * sum(math.prod(s) for s in shapes_of(config).values())
    tool = Path(__file__).with_name("convert_wan.py")
    temporary = tempfile.TemporaryDirectory(
        prefix="convert_memory_", dir=given.folder, ignore_cleanup_errors=True
    )
    with ending("nothing is left of it"), temporary as name:
        folder = Path(name)
        path = folder / FORMATS[given.format]
        # It runs in a process of its own, because a child's peak counts what its parent held at its start.
        spawn = multiprocessing.get_context("spawn")
        writer = spawn.Process(target=write, args=(path, config, dtype))
        writer.start()
        writer.join()
        source = folder if path.suffix == ".safetensors" else path
        start = time.perf_counter()
        options = ("--source", str(source), "--out", str(folder / "out"))
        peak = peak_memory((sys.executable, str(tool), *options))
        seconds = time.perf_counter() - start
    above = (peak - model) / GIGABYTE
    print(
        f"{given.format} {given.dtype}, {config.num_layers} layers of {config.dim}: model "
        f"{model / GIGABYTE:.2f} GB, peak {peak / GIGABYTE:.2f} GB, {above:.2f} GB above the "
        f"model, {seconds:.0f} s"
    )
    if above > given.margin:
        sys.exit(f"error: expected at most {given.margin} GB above the model, found {above:.2f}")


if __name__ == "__main__":
    main()
