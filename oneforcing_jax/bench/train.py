"""Time of each update of a training stage, of the parts of a One-Forcing update, and of its data.

Parts are programs of their own, so they do not sum to the whole: inside an update XLA fuses and
overlaps them. "replay" and "sequential" are the two gradients of a rollout, each with the rollout.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from oneforcing_jax.bench import trace
from oneforcing_jax.bench.timing import clocked, compiled, summary, timed
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.condition import NEGATIVE
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import chips
from oneforcing_jax.training import tiny
from oneforcing_jax.training.steps import Trainer
from oneforcing_jax.training.train import trained, trainer

# Batches read to time the data.
READ = 5


def measure(
    run: Run,
    name: str,
    repeats: int,
    parts: bool,
    profile: bool = False,
    note: Callable[[dict[str, Any]], object] = lambda row: None,
) -> list[dict[str, Any]]:
    """One row for each part of an iteration, whole updates first.

    Args:
      run, name: the config and its stage.
      repeats: runs of which the median counts.
      parts: also those of an update.
      profile: also the kernels of whole updates.
      note: is called with the row of each update as soon as it is there, and again with its kernels.
    """
    made = trainer(run, name, trained(run)[name])
    method = made.method
    with jax.set_mesh(made.mesh):
        data, batch = _data(made)
        state = made.init_state({net: made.init_net(net) for net in method.trained})
        frozen = made.frozen({net: made.init_net(net) for net in made.abstract()[1]})
        rows = []
        for update, step in zip(method.updates, made.steps(), strict=True):
            times, state, step = _time_step(step, state, frozen, batch, repeats)
            work = made.batch * update.work.model
            rows.append(_row(f"{update.net} update", times, work) | {"every": update.every})
            note(rows[-1])
            if profile:
                again = functools.partial(step, state, frozen, batch, np.int32(0))
                rows[-1]["kernels"], (state, _) = trace.profiled(again)
                note(rows[-1])
        if parts and method.parts:
            for part in method.parts(made.whole(state, frozen), batch):
                times = timed(jax.jit(part.call), part.arguments, repeats)
                rows.append(_row(f"  {part.name}", times, made.batch * part.work))
    return rows + data


def _data(trainer: Trainer) -> tuple[list[dict[str, Any]], Any]:
    """Rows of reading a batch and of bringing it to the devices, and the batch."""
    with tempfile.TemporaryDirectory() as folder:
        store = tiny.write_noise(Path(folder) / "store", trainer.method.fields, trainer.batch)
        negative = store.negative_text()
        stream = batches(store, trainer.batch, seed=0, start=0)
        read, put = [], []
        for _ in range(READ):
            seconds, host = clocked(next, stream)
            read.append(seconds)
            seconds, batch = clocked(trainer.put, host | {NEGATIVE: negative})
            put.append(seconds)
    rows = [_row(name, {"step_s": statistics.median(t)}, 0.0) for name, t in
            (("data: read a batch", read), ("host: batch to devices", put))]  # fmt: skip
    return rows, batch


def _time_step(
    step: Any, state: Any, frozen: Any, batch: Any, repeats: int
) -> tuple[dict[str, Any], Any, Any]:
    """Times a step, which takes its state over; the state after it, and the compiled step."""
    made, compile_s = compiled(step, (state, frozen, batch, np.int32(0)))
    seconds = []
    for i in range(repeats + 1):
        one, (state, _) = clocked(made, state, frozen, batch, np.int32(i))
        seconds.append(one)
    return summary(made, compile_s, seconds), state, made


def _row(name: str, times: dict[str, Any], work: float) -> dict[str, Any]:
    return {"work": name, **times, "flops": work, "flops_per_s": work / times["step_s"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'':<24}{'compile s':>10}{'seconds':>10}{'memory GB':>11}{'TFLOP':>11}{'TFLOP/s':>11}"
    ]
    for row in rows:
        compiled = f"{row['compile_s']:.1f}" if "compile_s" in row else ""
        memory = f"{row['memory_bytes'] / 1e9:.3f}" if "memory_bytes" in row else ""
        work = f"{row['flops'] / 1e12:.4g}" if row["flops"] else ""
        rate = f"{row['flops_per_s'] / 1e12:.4g}" if row["flops"] else ""
        lines.append(
            f"{row['work']:<24}{compiled:>10}{row['step_s']:>10.4f}{memory:>11}{work:>11}{rate:>11}"
        )
    return "\n".join(lines)


def report(run: Run, name: str, repeats: int, parts: bool, profile: bool = False) -> dict[str, Any]:
    """Rows of a stage, and the mean iteration that they make."""
    rows = measure(run, name, repeats, parts, profile)
    device = jax.devices()[0].device_kind
    seconds = sum(row["step_s"] / row["every"] for row in rows if "every" in row)
    work = sum(row["flops"] / row["every"] for row in rows if "every" in row)
    chip = chips.find(device)
    return {
        "stage": name,
        "device": device,
        "devices": jax.device_count(),
        "batch": trained(run)[name].batch,
        "work": rows,
        "mean_iteration_s": seconds,
        "flop_utilisation": work / seconds / (chip.peak * jax.device_count()) if chip else None,
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument(
        "--config",
        required=True,
        help="a Python file with get_config(), or the name of one of ours: toy",
    )
    parser.add_argument("--stage", default="one_forcing", help="a training stage of the config")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median counts")
    parser.add_argument("--no_parts", action="store_true", help="whole updates and data alone")
    parser.add_argument("--profile", action="store_true", help=trace.HELP)


def run(given: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Times a training stage; prints a table and returns what it says."""
    described = Run.of(configs.load(given.config, overrides))
    stages = list(trained(described))
    if given.stage not in stages:
        raise InputError(f"stage: expected one of {stages}, found {given.stage!r}")
    if given.repeats < 1:
        raise InputError(f"repeats: expected 1 or more, found {given.repeats}")
    made = report(described, given.stage, given.repeats, not given.no_parts, given.profile)
    print(f"{made['stage']}, batch {made['batch']}, {made['devices']} x {made['device']}")
    print("\n".join([table(made["work"]), *trace.lines_of(made["work"])]))
    used = made["flop_utilisation"]
    part = "" if used is None else f", {used:.0%} of the device"
    print(f"mean iteration {made['mean_iteration_s']:.4f} s{part}")
    return made
