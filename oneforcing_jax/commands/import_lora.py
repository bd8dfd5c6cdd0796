"""Merges files of adapters (LoRA) into a transformer, and writes it as `oneforcing convert` does.

    oneforcing import-lora --checkpoint weights/framewise --lora style.safetensors:0.8 \\
        --lora motion.safetensors --out weights/framewise_style

Reads the names of Diffusers, PEFT (a folder too), kohya and ComfyUI. Adapters that the checkpoint was trained
with are merged, too. To use files without merging them: oneforcing generate --lora.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.generation import merging
from oneforcing_jax.generation.adapters import File
from oneforcing_jax.setup import parts
from oneforcing_jax.system.command import Help, any_path, ending


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing import-lora") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    found = "folder of oneforcing convert, or a run's WORKDIR/STAGE"
    parser.add_argument("--checkpoint", required=True, type=any_path, help=found)
    parser.add_argument("--ema", action="store_true", help="the moving average of its parameters")
    parser.add_argument(
        "--lora", required=True, action="append", type=File.of, help="FILE[:WEIGHT]; once for each"
    )
    parser.add_argument("--out", required=True, type=any_path, help="folder of the result")
    parts.add_option(parser)
    given = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is left out on purpose
    with ending("nothing was written"):
        merging.merge(given.checkpoint, given.lora, given.out, given.ema)
