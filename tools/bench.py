"""Times what the devices at hand do, with random weights and data: training, generation, the VAE.

    python tools/bench.py train --config=configs/toy.py --stage=one_forcing --out=bench.json \\
        --config.stages.one_forcing.batch=4
    python tools/bench.py generate --config=configs/framewise.py
    python tools/bench.py vae --dtype=bfloat16

Compilation is apart from the first call, and that from the steady time (the median). Operations are
counted from the shapes (`oneforcing_jax/flops.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax import build, flops
from oneforcing_jax import config as configs
from oneforcing_jax.bench import generate, vae
from oneforcing_jax.data.files import write_whole
from oneforcing_jax.models.wan import WanConfig


def random_batch(config: ConfigDict, stage: ConfigDict, text: WanConfig) -> dict[str, np.ndarray]:
    """A batch of noise in the shapes of the stage's data."""
    rng, size = np.random.default_rng(0), config.latents
    latents = (stage.batch, size.frames, size.channels, size.rows, size.columns)
    shapes = {
        "latents": latents,
        "text": (stage.batch, text.text_len, text.text_dim),
        "negative": (text.text_len, text.text_dim),
    }
    if stage.method == "causal_ode":
        shapes["trajectory"] = (stage.batch, len(config.ode.kept) + 1, *latents[1:])
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def measure(config: ConfigDict, name: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each update of the stage."""
    stage = config.stages[name]
    trainer = build.trainer(config, stage)
    with jax.set_mesh(trainer.mesh):
        state = trainer.init_state({net: trainer.init_net(net) for net in trainer.method.trained})
        frozen = {net: trainer.init_net(net) for net in trainer.method.frozen}
        text = next(iter(trainer.method.nets.values())).config
        batch = trainer.put(random_batch(config, stage, text))
        rows = []
        for update, step in zip(trainer.method.updates, trainer.steps(), strict=True):
            times, state = _time(step, state, frozen, batch, repeats)
            work = flops.update(config, stage, update.net)
            rate = work / times["step_s"]
            rows.append(
                {"update": update.net, "every": update.every, **times}
                | {"flops": work, "flops_per_s": rate, "memory_bytes": _memory(times)}
            )
    return rows


def _time(
    step: Any, state: Any, frozen: Any, batch: Any, repeats: int
) -> tuple[dict[str, Any], Any]:
    start = time.perf_counter()
    compiled = step.lower(state, frozen, batch, np.int32(0)).compile()
    seconds = [time.perf_counter() - start]
    for iteration in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, frozen, batch, np.int32(iteration))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    compile_s, first_s, *steady = seconds
    planned = compiled.memory_analysis()
    row = {
        "compile_s": compile_s,
        "first_s": first_s,
        "step_s": statistics.median(steady),
        "slowest_s": max(steady),
        "temp_bytes": planned.temp_size_in_bytes,
        "argument_bytes": planned.argument_size_in_bytes,
    }
    return row, state


def _memory(times: dict[str, Any]) -> int:
    """Peak of a device since the start; where it does not say, what the program asks for."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or times["temp_bytes"] + times["argument_bytes"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    head = ("update", "compile s", "first s", "step s", "memory GB", "TFLOP", "TFLOP/s")
    lines = [head]
    for row in rows:
        numbers = (
            f"{row['compile_s']:.1f}",
            f"{row['first_s']:.3f}",
            f"{row['step_s']:.4f}",
            f"{row['memory_bytes'] / 1e9:.3f}",
            f"{row['flops'] / 1e12:.4g}",
            f"{row['flops_per_s'] / 1e12:.4g}",
        )
        lines.append((row["update"], *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(texts)


def report(config: ConfigDict, name: str, repeats: int) -> dict[str, Any]:
    """Rows of a stage, and the mean iteration that they make."""
    rows = measure(config, name, repeats)
    return {
        "stage": name,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch": config.stages[name].batch,
        "updates": rows,
        "mean_iteration_s": sum(row["step_s"] / row["every"] for row in rows),
    }


def train_options(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--stage", default="one_forcing", help="a training stage of the config")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median counts")


def train(given: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Times a training stage; prints a table and returns what it says."""
    config = configs.load(given.config, overrides)
    stages = [name for name, stage in config.stages.items() if stage.kind == "train"]
    if given.stage not in stages:
        raise ValueError(f"stage: expected one of {stages}, found {given.stage!r}")
    if given.repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, found {given.repeats}")
    made = report(config, given.stage, given.repeats)
    print(f"{made['stage']}, batch {made['batch']}, {made['devices']} x {made['device']}")
    print(table(made["updates"]))
    print(f"mean iteration {made['mean_iteration_s']:.4f} s")
    return made


COMMANDS = {
    "train": (train_options, train),
    "generate": (generate.options, generate.run),
    "vae": (vae.options, vae.run),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, help="what to time")
    for name, (options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, allow_abbrev=False)
        options(command)
        command.add_argument("--out", type=Path, help="JSON file to write")
    given, rest = parser.parse_known_args(arguments)
    try:
        made = COMMANDS[given.what][1](given, rest)
        if given.out:
            write_whole(given.out, (json.dumps(made, indent=1) + "\n").encode())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
