"""Converts published PyTorch checkpoints to Orbax.

    oneforcing convert --source Wan-AI/Wan2.1-T2V-1.3B --out checkpoints/wan_1.3b
    oneforcing convert --source framewise.pt --out checkpoints/framewise --dtype bfloat16
    oneforcing convert --source taew2_1.pth --out checkpoints/wan_1.3b

Reads the folder of a model of Wan2.1, or of Wan2.2's 5B, or of its diffusers version, a .pt file of
One-Forcing, Causal Forcing or Self Forcing, the tiny decoder (taew2_1 or taew2_2, .pth or .safetensors;
OUT gets a folder tiny/), or a Hugging Face repository (OWNER/NAME, OWNER/NAME:FILE for one file,
OWNER/NAME@REVISION). The same command again skips what is finished.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.convert import to_orbax
from oneforcing_jax.convert.source import PARTS
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system.command import Help, any_path, count, ending


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing convert") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--source", required=True, help="folder, file, or OWNER/NAME[@REVISION][:FILE]"
    )
    parser.add_argument("--out", required=True, type=any_path, help="folder of the result")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: as in the files")
    parser.add_argument("--only", help=f"parts of a folder, among {','.join(PARTS)}")
    parser.add_argument("--num_heads", type=count, help="where config.json does not tell it")
    given = parser.parse_args(arguments)
    # Orbax warns of what it leaves out, which is left out on purpose.
    logging.getLogger("absl").setLevel(logging.ERROR)
    only = None if given.only is None else given.only.split(",")
    with ending("the same command continues after what is finished"):
        to_orbax.convert(given.source, given.out, given.dtype, only, given.num_heads)
