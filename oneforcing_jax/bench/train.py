"""Time of each update of a training stage, of the parts of a One-Forcing update, and of its data.

Parts are programs of their own, so they do not sum to the whole: inside an update XLA fuses and
overlaps them. "replay" and "sequential" are the two gradients of a rollout, each with the rollout.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax import build
from oneforcing_jax import config as configs
from oneforcing_jax.bench.timing import clocked, compiled, summary, timed
from oneforcing_jax.causal import flops, rollout
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.methods import one_forcing
from oneforcing_jax.methods.one_forcing import OneForcing
from oneforcing_jax.training import tiny
from oneforcing_jax.training.steps import Trainer

# Batches read to time the data.
READ = 5


def measure(config: ConfigDict, name: str, repeats: int, parts: bool) -> list[dict[str, Any]]:
    """One row for each part of an iteration, whole updates first."""
    stage = config.stages[name]
    trainer = build.trainer(config, stage)
    with jax.set_mesh(trainer.mesh):
        data, batch = _data(config, stage, trainer)
        state = trainer.init_state({net: trainer.init_net(net) for net in trainer.method.trained})
        frozen = {net: trainer.init_net(net) for net in trainer.method.frozen}
        rows = []
        for update, step in zip(trainer.method.updates, trainer.steps(), strict=True):
            times, state = _time_step(step, state, frozen, batch, repeats)
            work = flops.update(config, stage, update.net)
            rows.append(_row(f"{update.net} update", times, work) | {"every": update.every})
        if parts and stage.method == "one_forcing":
            nets = state["params"] | frozen
            costs = {k: stage.batch * v for k, v in flops.one_forcing_parts(config).items()}
            rows += list(_parts(build.one_forcing(config), nets, batch, costs, repeats))
    return rows + data


def _data(config: ConfigDict, stage: ConfigDict, trainer: Trainer) -> tuple[list[dict], Any]:
    """Rows of reading a batch and of bringing it to the devices, and the batch."""
    fields = build.data_fields(config, stage)
    with tempfile.TemporaryDirectory() as folder:
        store = tiny.write_noise(Path(folder) / "store", fields, stage.batch)
        negative = store.read_shared(tiny.NEGATIVE_TEXT)
        stream = batches(store, stage.batch, seed=0, start=0)
        read, put = [], []
        for _ in range(READ):
            seconds, host = clocked(next, stream)
            read.append(seconds)
            seconds, batch = clocked(trainer.put, host | {"negative": negative})
            put.append(seconds)
    rows = [_row(name, {"step_s": statistics.median(t)}, 0.0) for name, t in
            (("data: read a batch", read), ("host: batch to devices", put))]  # fmt: skip
    return rows, batch


def _parts(
    method: OneForcing, nets: Mapping[str, Any], batch: Any, work: Mapping[str, float], repeats: int
) -> Iterator[dict[str, Any]]:
    text, plan = batch["text"], method.plan
    draws = one_forcing.draw_generator(method, jax.random.key(0), batch["latents"].shape)
    first = rollout.first_of_window(plan, method.gradient_blocks)
    x, sigma = draws.dmd_noise, draws.dmd_sigma

    def made(params: Any) -> jax.Array:
        return rollout.generate(method.student(params), draws.rollout, text, plan).latents

    def scores(critic: Any, teacher: Any) -> Any:
        fake: Any = method.critic.apply({"params": critic}, x, sigma, text, want_logit=False)
        real = one_forcing.real_x0(method, teacher, x, sigma, text, batch["negative"])
        return fake.flow, real

    def adversarial(critic: Any) -> jax.Array:
        def loss(latents: jax.Array) -> jax.Array:
            return one_forcing.generator_adversarial(method, critic, latents, batch, draws)[0]

        return jax.grad(loss)(x)

    def gradient(form: Callable[..., jax.Array]) -> Callable[[Any], Any]:
        mode = method.context_gradient

        def weighted(params: Any) -> jax.Array:
            clip = form(method.student(params), draws.rollout, text, plan, first, mode)
            return jnp.vdot(x, clip)

        return jax.grad(weighted)

    generator, critic, teacher = (nets[name] for name in ("generator", "critic", "teacher"))
    programs: dict[str, tuple[Callable[..., Any], tuple]] = {
        "rollout": (made, (generator,)),
        "scores": (scores, (critic, teacher)),
        "adversarial": (adversarial, (critic,)),
        "replay": (gradient(rollout.differentiable), (generator,)),
        "sequential": (gradient(rollout.sequential), (generator,)),
    }
    if not method.gan_generator_weight:
        del programs["adversarial"]
    for name, (program, arguments) in programs.items():
        yield _row(f"  {name}", timed(jax.jit(program), arguments, repeats), work[name])


def _time_step(
    step: Any, state: Any, frozen: Any, batch: Any, repeats: int
) -> tuple[dict[str, Any], Any]:
    """Times a step, which takes its state over; the state after it."""
    made, compile_s = compiled(step, (state, frozen, batch, np.int32(0)))
    seconds = []
    for i in range(repeats + 1):
        one, (state, _) = clocked(made, state, frozen, batch, np.int32(i))
        seconds.append(one)
    return summary(made, compile_s, seconds), state


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


def report(config: ConfigDict, name: str, repeats: int, parts: bool) -> dict[str, Any]:
    """Rows of a stage, and the mean iteration that they make."""
    rows = measure(config, name, repeats, parts)
    device = jax.devices()[0].device_kind
    seconds = sum(row["step_s"] / row["every"] for row in rows if "every" in row)
    work = sum(row["flops"] / row["every"] for row in rows if "every" in row)
    peak = flops.peak(device)
    return {
        "stage": name,
        "device": device,
        "devices": jax.device_count(),
        "batch": config.stages[name].batch,
        "work": rows,
        "mean_iteration_s": seconds,
        "flop_utilisation": work / seconds / (peak * jax.device_count()) if peak else None,
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--stage", default="one_forcing", help="a training stage of the config")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median counts")
    parser.add_argument("--no_parts", action="store_true", help="whole updates and data alone")


def run(given: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Times a training stage; prints a table and returns what it says."""
    config = configs.load(given.config, overrides)
    stages = [name for name, stage in config.stages.items() if stage.kind == "train"]
    if given.stage not in stages:
        raise ValueError(f"stage: expected one of {stages}, found {given.stage!r}")
    if given.repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, found {given.repeats}")
    made = report(config, given.stage, given.repeats, not given.no_parts)
    print(f"{made['stage']}, batch {made['batch']}, {made['devices']} x {made['device']}")
    print(table(made["work"]))
    used = made["flop_utilisation"]
    part = "" if used is None else f", {used:.0%} of the device"
    print(f"mean iteration {made['mean_iteration_s']:.4f} s{part}")
    return made
