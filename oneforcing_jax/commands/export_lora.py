"""Writes adapters (LoRA) for others: those that a stage trained, or those of a file in another's names.

    oneforcing export-lora --checkpoint runs/style/one_forcing --ema --out style.safetensors
    oneforcing export-lora --lora style.safetensors --layout kohya --out style_kohya.safetensors

ComfyUI's layout is read by Diffusers and LightX2V, too, kohya's by musubi-tuner. PEFT's is a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from oneforcing_jax.convert import lora, to_lora
from oneforcing_jax.generation import merging
from oneforcing_jax.setup import parts
from oneforcing_jax.system.command import Help, any_path, ending


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing export-lora") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--checkpoint", type=any_path, help="a run's WORKDIR/STAGE")
    one.add_argument("--lora", type=any_path, help="a file of adapters, or a PEFT folder")
    parser.add_argument("--ema", action="store_true", help="the moving average of the adapters")
    parser.add_argument("--layout", choices=to_lora.LAYOUTS, default="comfyui", help="whose names")
    parser.add_argument("--out", required=True, type=any_path, help=".safetensors, or a folder")
    parts.add_option(parser)
    given = parser.parse_args(arguments)
    with ending("nothing was written"):
        found = (
            lora.read(given.lora) if given.lora else merging.trained(given.checkpoint, given.ema)
        )
        to_lora.write(found, given.layout, given.out)
        print(f"{found.source} -> {given.out}: adapters of {len(found.pairs)} matrices")
