"""Times what the devices at hand do: training, generation and the VAE with random weights, a live server, and
reading data; all of a GPU.

    oneforcing bench train --config=configs/toy.py --stage=one_forcing --out=bench.json \\
        --config.stages.one_forcing.batch=4
    oneforcing bench generate --config=configs/framewise.py
    oneforcing bench vae --dtype=bfloat16
    oneforcing bench serve --checkpoint=runs/toy/one_forcing
    oneforcing bench gpu --out=folder
    oneforcing bench data --store=gs://bucket/store --batch=4 --every=9.3

Compilation is apart from the first call, and that from the steady time (the median). Operations are
counted from the shapes (`oneforcing_jax/causal/flops.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from oneforcing_jax.bench import data, generate, gpu, serve, train, vae
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import write_whole

COMMANDS = {
    "train": (train.options, train.run),
    "generate": (generate.options, generate.run),
    "vae": (vae.options, vae.run),
    "serve": (serve.options, serve.run),
    "data": (data.options, data.run),
    "gpu": (gpu.options, gpu.run),
}


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing bench") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="what", required=True, help="what to time")
    for name, (options, run) in COMMANDS.items():
        command = commands.add_parser(
            name, help=str(run.__doc__).partition("\n")[0], formatter_class=Help, allow_abbrev=False
        )
        options(command)
        command.add_argument("--out", type=any_path, help="JSON file to write; of gpu a folder")
    given, rest = parser.parse_known_args(arguments)
    with ending("nothing was written"):
        made = COMMANDS[given.what][1](given, rest)
        if given.out and made is not None:
            write_whole(given.out, (json.dumps(made, indent=1) + "\n").encode())
