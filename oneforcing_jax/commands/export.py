"""Exports a network of an Orbax checkpoint for PyTorch.

    oneforcing export --checkpoint runs/framewise/one_forcing/checkpoints \\
        --ema --out framewise.pt
    oneforcing export --checkpoint checkpoints/framewise --layout diffusers --out folder

The original layout is a .pt file for the inference script of One-Forcing: {"generator": ...}, or
{"generator_ema": ...} with --ema. The diffusers layout is a .safetensors file, or a folder that
WanTransformer3DModel.from_pretrained reads. What lies beside kernels, such as adapters, is merged with them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from oneforcing_jax.convert import to_torch
from oneforcing_jax.generation import pretrained
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system.command import Help, any_path, count, ending


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing export") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("--checkpoint", required=True, type=any_path, help="folder of checkpoints")
    parser.add_argument("--out", required=True, type=any_path, help=".pt, .safetensors or a folder")
    parser.add_argument(
        "--layout", choices=to_torch.LAYOUTS, default="original", help="of the file"
    )
    parser.add_argument("--net", default="generator", help="generator, critic, teacher, ...")
    parser.add_argument("--ema", action="store_true", help="the moving average of its parameters")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: as stored")
    parser.add_argument("--num_heads", type=count, help="for config.json, if heads are not of 128")
    parts.add_option(parser)
    given = parser.parse_args(arguments)
    options = {name: value for name, value in vars(given).items() if name != "trust_parts"}
    with ending("nothing was written"):
        product = functools.partial(pretrained.product, given.checkpoint, given.net)
        to_torch.export(**options, product=product)
