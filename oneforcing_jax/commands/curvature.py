"""Measures where the trajectories of a teacher bend (paper, equation 2 and Figure 3).

    oneforcing evaluate curvature --checkpoint=weights/wan_1.3b --encoders=weights/wan_1.3b \\
        --prompts=prompts.txt --shift=8 --out=curvature.json
    oneforcing evaluate curvature --checkpoint=runs/toy/teacher --store=runs/toy/world/store \\
        --out=teacher.json
    oneforcing evaluate curvature --checkpoint=runs/toy/teacher_forcing --store=runs/toy/world/store \\
        --causal --out=causal.json --beside=teacher.json

Writes OUT, and beside it a plot, each curve over its own peak. The same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.evaluation.trajectories import report
from oneforcing_jax.setup import parts
from oneforcing_jax.system.command import Help, any_path, count, ending


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing evaluate curvature"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    add, texts = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("--checkpoint", required=True, type=any_path, help="as of oneforcing_jax.generate")
    add("--ema", action="store_true", help="the moving average of the weights")
    texts.add_argument("--prompts", type=any_path, help="a prompt a line")
    texts.add_argument("--store", type=any_path, help="store of clips: its texts are the prompts")
    add("--encoders", type=any_path, help="with --prompts; default: the checkpoint's own")
    add("--causal", action="store_true", help="blocks given the real blocks before them, by Euler")
    add("--clips", type=count, default=100, help="trajectories; fewer if there are fewer clips")
    add("--sampling_steps", type=count, default=50, help="of UniPC, or of Euler with --causal")
    add("--guidance", type=float, default=6.0, help="g in uncond + g (cond - uncond)")
    add("--shift", type=float, help="of the noise schedule; default as trained, Wan 5")
    add("--seed", type=int, default=0, help="of the noise")
    add("--batch", type=count, default=1, help="trajectories at once")
    add("--out", required=True, type=any_path, help=".json; the plot is a .png beside it")
    add("--beside", type=any_path, nargs="*", default=(), help="reports to draw in the same plot")
    parts.add_option(parser)
    args = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ending("the same command continues after the finished trajectories"):
        report(args)
