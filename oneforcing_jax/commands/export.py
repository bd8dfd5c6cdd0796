"""Exports a network of an Orbax checkpoint for PyTorch.

    oneforcing export --checkpoint runs/framewise/one_forcing/checkpoints \\
        --ema --out framewise.pt
    oneforcing export --checkpoint checkpoints/framewise --layout diffusers --out folder
    oneforcing export --checkpoint runs/framewise/one_forcing --ema --layout pipeline --out pipeline
    oneforcing export --checkpoint runs/framewise/one_forcing --ema --layout student --out student

The original layout is a .pt file for the inference script of One-Forcing: {"generator": ...}, or
{"generator_ema": ...} with --ema. The diffusers layout is a .safetensors file, or a folder that
WanTransformer3DModel.from_pretrained reads. What lies beside kernels, such as adapters, is merged with them.
A pipeline is a folder of all networks, which makes videos with diffusers alone:

    pipe = diffusers.DiffusionPipeline.from_pretrained("pipeline", trust_remote_code=True)
    pipe("a cat on a sofa").frames[0]

It holds a file of code, which diffusers runs only when it is told to trust it. Extra: verify.

A student is a folder of ours with its encoders and the draft of a card, for `oneforcing publish`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from oneforcing_jax.convert import to_pipeline, to_student, to_torch
from oneforcing_jax.generation import pretrained
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system.command import Help, any_path, count, ending

# Folders of a student with its encoders.
WHOLE = {"pipeline": to_pipeline.export, "student": to_student.export}


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing export") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("--checkpoint", required=True, type=any_path, help="folder of checkpoints")
    parser.add_argument("--out", required=True, type=any_path, help=".pt, .safetensors or a folder")
    parser.add_argument(
        "--layout", choices=(*to_torch.LAYOUTS, *WHOLE), default="original", help="of the file"
    )
    parser.add_argument("--net", default="generator", help="generator, critic, teacher, ...")
    parser.add_argument("--ema", action="store_true", help="the moving average of its parameters")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: as stored")
    parser.add_argument("--num_heads", type=count, help="for config.json, if heads are not of 128")
    parser.add_argument(
        "--encoders",
        type=any_path,
        help="of a pipeline or student: their folder, if they are not the checkpoint's",
    )
    parts.add_option(parser)
    given = parser.parse_args(arguments)
    with ending("nothing was written"):
        if export := WHOLE.get(given.layout):
            for option, usual in (("net", "generator"), ("num_heads", None)):
                if getattr(given, option) != usual:
                    parser.error(f"--{option} is for single networks; leave it out")
            student = to_student.find(given.checkpoint, given.out, given.ema, given.encoders)
            export(student, given.out, given.dtype)
            return
        if given.encoders:
            parser.error(f"--encoders is for the layouts {', '.join(WHOLE)}; leave it out")
        product = functools.partial(pretrained.product, given.checkpoint, given.net)
        to_torch.export(
            given.checkpoint, given.out, given.layout, given.net, given.ema, given.dtype, given.num_heads,
            product=product,
        )  # fmt: skip
