"""Says what training, generation or encoding costs on a target, by compiling it ahead; no device is needed.

    oneforcing plan train --config=configs/framewise.py --target=tpu:v5p:2x2x4 \\
        --config.stages.one_forcing.batch=16 --out=plan.json
    oneforcing plan train --config=configs/framewise.py --target=gpu:h200:8 --search
    oneforcing plan train --config=configs/framewise.py --preset=h100x8
    oneforcing plan vae --config=configs/framewise.py --target=gpu:h200:1 --decoder=tiny

A target is a slice of TPUs (tpu:v6e:8x8, two of them tpu:v5p:2x2x4*2), GPUs (gpu:h100:8), or local. The
compilers come with the extras plan-tpu and plan-gpu. Seconds are calibrated where the device was measured,
and a lower bound elsewhere; the plan says which. See oneforcing_jax/targets/roofline.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup import presets
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.targets import topology

# A search compiles so many settings unless it is told otherwise.
COMPILATIONS = 8


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing plan") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="what", required=True, help="what to plan")
    for name, text in (
        ("train", "the updates of a training stage"),
        ("generate", "making a video, block by block"),
        ("vae", "decoding a video"),
        ("encode", "encoding a clip and its caption"),
    ):
        command = commands.add_parser(name, help=text, formatter_class=Help, allow_abbrev=False)
        command.add_argument(
            "--config",
            required=True,
            help="a Python file with get_config(), or the name of one of ours: toy",
        )
        command.add_argument("--preset", help=f"one of {', '.join(presets.PRESETS)}")
        command.add_argument("--target", help=f"{topology.FORMS}; default: the preset's")
        command.add_argument("--out", type=any_path, help="JSON file to write")
        if name in ("generate", "vae"):
            command.add_argument("--decoder", help="tiny, in place of the VAE's")
        if name == "train":
            command.add_argument("--stage", help="a stage that trains; default: those of `run`")
            command.add_argument(
                "--search",
                type=int,
                nargs="?",
                const=COMPILATIONS,
                metavar="N",
                help="compile up to N other settings of mesh, microbatch, remat and offload, and say "
                f"which is fastest and fits (default {COMPILATIONS})",
            )
    given, rest = parser.parse_known_args(arguments)
    with ending("nothing was written"):
        if given.preset is not None:
            given.target = given.target or presets.find(given.preset).target
            rest = [*presets.overrides(given.preset), *rest]
        if given.target is None:
            raise InputError(f"target: expected {topology.FORMS}, found none; give it or --preset")
        made = _run(given, rest)
        if given.out:
            from oneforcing_jax.system.files import write_whole

            content = made[0] if len(made) == 1 else {"stages": made}
            write_whole(given.out, (json.dumps(content, indent=1) + "\n").encode())


def _run(given: argparse.Namespace, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Makes the plans, prints them, and returns what is written."""
    topology.prepare(given.target)  # before anything starts a backend
    from oneforcing_jax.setup import config as configs
    from oneforcing_jax.setup.run import Run
    from oneforcing_jax.targets import forecast

    target = topology.find(given.target)
    run = Run.of(configs.load(given.config, overrides))
    if given.what == "train" and given.search is not None:
        return _search(given, overrides, target)
    if given.what == "train":
        plans = forecast.train(run, [given.stage] if given.stage else forecast.stages(run), target)
    else:
        make = {
            "generate": lambda: forecast.generate(run, target, given.decoder),
            "vae": lambda: forecast.vae(run, target, given.decoder),
            "encode": lambda: forecast.encode(run, target),
        }
        plans = [make[given.what]()]
    for made in plans:
        print(forecast.table(made))
    return [made.as_json() for made in plans]


def _search(given: argparse.Namespace, overrides: Sequence[str], target: Any) -> list[Any]:
    """Searches for each stage, prints what was tried, and returns the plans of what fits best."""
    from oneforcing_jax.setup import config as configs
    from oneforcing_jax.setup.run import Run
    from oneforcing_jax.targets import forecast, search

    def load(more: Sequence[str]) -> Any:
        return Run.of(configs.load(given.config, [*overrides, *more]))

    if given.search < 1:
        raise InputError(f"search: expected 1 compilation or more, found {given.search}")
    chosen = []
    for stage in [given.stage] if given.stage else forecast.stages(load(())):
        results: list[search.Result] = []
        try:
            for result in search.search(load, stage, target, given.search):
                results.append(result)
        except KeyboardInterrupt:
            print("interrupted; what was compiled until then:")
        print(search.table(results))
        if results:
            best = min(results, key=lambda result: result.seconds)
            chosen.append(best.forecast.as_json() | {"overrides": best.setting.overrides})
    return chosen
