"""Compares a student with itself in eight bits, block by block, and refuses what is too far from it.

    oneforcing evaluate precision --demo --precision int8 --prompt "a circle moving left" --search
    oneforcing evaluate precision --checkpoint weights/framewise --encoders weights/wan --precision fp8 \\
        --prompt "a cat on a beach" --prompt "waves at night" --samples 2

Both make the same clips from the same noise, and behind each block both see the clean latents that the
student made without eight bits. The worst block of all decides. docs/generate.md has the toy's figures.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.evaluation.precision import LIMIT, report
from oneforcing_jax.generation.making import add_model
from oneforcing_jax.system import compiled
from oneforcing_jax.system.command import Help, count, ending


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing evaluate precision"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    add_model(parser)
    add = parser.add_argument
    add("--prompt", required=True, action="append", help="what to show; once for each")
    add("--samples", type=count, default=1, help="clips of each prompt")
    add("--seed", type=int, default=0, help="of the noise")
    add("--limit", type=float, default=LIMIT, help="PSNR in dB that every block must reach")
    add("--search", action="store_true", help="also leaves each kind of matrix as it is in turn")
    args = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ending("nothing was written"), compiled.kept(args.programs):
        report(args)
