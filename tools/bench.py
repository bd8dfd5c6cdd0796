"""Times every update of a training stage on the devices at hand, with random weights and data.

    python tools/bench.py --config=configs/toy.py --stage=one_forcing --out=bench.json \\
        --config.stages.one_forcing.batch=4
    python tools/bench.py generate --config=configs/framewise.py

Compilation is apart from the first call, and that from the steady time (the median). Operations are
counted from the shapes, as XLA's own count takes the body of a scan once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax import build, rollout
from oneforcing_jax import config as configs
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.rollout import Plan


class Flops(NamedTuple):
    """Operations of a forward (a multiply and an add are two).

    Attributes:
      linear: in products with weights.
      attention: in products of activations with each other.
    """

    linear: float
    attention: float

    def plus(self, other: Flops) -> Flops:
        """Both."""
        return Flops(self.linear + other.linear, self.attention + other.attention)

    @property
    def forward(self) -> float:
        """Of the forward alone."""
        return self.linear + self.attention

    def train(self, remat: str) -> float:
        """Of forward and backward."""
        return (3 + (remat == "full")) * self.forward

    def train_input(self, remat: str) -> float:
        """The same where the weights take no gradient: their products have one backward product."""
        again = 1 + (remat == "full")
        return (again + 1) * self.linear + (again + 2) * self.attention


def dit(c: WanConfig, frame_tokens: int, asked: int, pairs: int, prompts: int = 1) -> Flops:
    """A forward of one clip.

    Args:
      c: sizes of the transformer.
      frame_tokens: tokens of a frame.
      asked: frames that go through.
      pairs: pairs of a frame that asks and a frame that it sees; a bidirectional clip has frames^2.
      prompts: how often the keys and values of the text are computed.
    """
    tokens, d, s = asked * frame_tokens, c.dim, c.text_len
    per_token = 4 * d * d + 2 * d * d + 2 * d * c.ffn_dim  # self, cross (query and out), ffn
    layer = 2 * tokens * per_token + prompts * 2 * s * 2 * d * d
    patch = c.patch**2
    stem = tokens * patch * (c.in_dim + c.out_dim) * d + prompts * s * d * (c.text_dim + d)
    time_embedding = asked * d * (c.freq_dim + d + 6 * d)
    seen = 4 * d * (pairs * frame_tokens**2 + tokens * s)
    linear = c.num_layers * layer + 2 * (stem + time_embedding)
    return Flops(float(linear), float(c.num_layers * seen))


def clip(c: WanConfig, frame_tokens: int, frames: int) -> Flops:
    """A bidirectional forward."""
    return dit(c, frame_tokens, frames, frames**2)


def structured(c: WanConfig, frame_tokens: int, groups: Sequence[attention.Group]) -> Flops:
    """A forward with an attention structure."""
    sizes = [(g.queries[1] - g.queries[0], sum(b - a for a, b in g.keys)) for g in groups]
    return dit(c, frame_tokens, sum(q for q, _ in sizes), sum(q * k for q, k in sizes))


def generation(c: WanConfig, frame_tokens: int, plan: Plan) -> Flops:
    """A rollout: all steps of every block, and the clean pass of all but the last."""
    total, stop = Flops(0.0, 0.0), 0
    for number, block in enumerate(plan):
        stop += block.frames
        passes = len(block.sigmas) + (number < len(plan) - 1)
        one = dit(c, frame_tokens, block.frames, block.frames * stop, prompts=0)
        total = total.plus(Flops(passes * one.linear, passes * one.attention))
    return total


def update_flops(config: ConfigDict, stage: ConfigDict, net: str) -> float:
    """Operations of one update of a stage, whole batch."""
    name = "generator" if net == "model" and stage.method != "teacher" else net
    name = "teacher" if stage.method == "teacher" else name
    trained = build.model(config, name)
    frames, tokens = config.latents.frames, _frame_tokens(config, trained)
    if stage.method == "teacher":
        return stage.batch * clip(trained, tokens, frames).train(trained.remat)
    if stage.method in ("teacher_forcing", "causal_ode"):
        groups = attention.teacher_forcing(build.layout(config))
        return stage.batch * structured(trained, tokens, groups).train(trained.remat)
    return stage.batch * _one_forcing(config, net)


def _frame_tokens(config: ConfigDict, c: WanConfig) -> int:
    return c.frame_tokens(config.latents.rows, config.latents.columns)


def _one_forcing(config: ConfigDict, net: str) -> float:
    """One clip's share; the adversarial head, less than a percent, is not counted."""
    generator, teacher, critic = (
        build.model(config, n) for n in ("generator", "teacher", "critic")
    )
    frames, tokens, plan = (
        config.latents.frames,
        _frame_tokens(config, generator),
        build.plan(config),
    )
    settings = config.one_forcing
    made = generation(generator, tokens, plan)
    judged = clip(critic, tokens, frames)
    if net == "critic":
        gan = settings.gan_discriminator_weight
        clips = 1 + (2 + bool(settings.r1.weight) + bool(settings.r2.weight) if gan else 0)
        return made.forward + clips * judged.train(critic.remat)

    total = judged.forward + 2 * clip(teacher, tokens, frames).forward
    if settings.gan_generator_weight:
        total += judged.train_input(critic.remat) + settings.relativistic * judged.forward
    first = rollout.first_of_window(plan, settings.gradient_blocks or None)
    if settings.context_gradient == "full":
        before = generation(generator, tokens, plan[:first])
        return total + before.forward + 4 * (made.forward - before.forward)
    groups = attention.noisy_after_clean(build.layout(config), first=first)
    replayed = structured(generator, tokens, groups)
    return total + made.forward + replayed.train(generator.remat)


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
            flops = update_flops(config, stage, update.net)
            rate = flops / times["step_s"]
            rows.append(
                {"update": update.net, "every": update.every, **times}
                | {"flops": flops, "flops_per_s": rate, "memory_bytes": _memory(times)}
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


def _generate(arguments: Sequence[str]) -> None:
    """The subcommand `generate`, which is in a file of its own."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_generate

    bench_generate.main(arguments, generation)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["generate"]:
        _generate(arguments[1:])
        return
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--stage", default="one_forcing", help="a training stage of the config")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median counts")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    known, overrides = parser.parse_known_args(arguments)
    try:
        config = configs.load(known.config, overrides)
        stages = [name for name, stage in config.stages.items() if stage.kind == "train"]
        if known.stage not in stages:
            raise ValueError(f"stage: expected one of {stages}, found {known.stage!r}")
        if known.repeats < 1:
            raise ValueError(f"repeats: expected 1 or more, found {known.repeats}")
        made = report(config, known.stage, known.repeats)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{made['stage']}, batch {made['batch']}, {made['devices']} x {made['device']}")
    print(table(made["updates"]))
    print(f"mean iteration {made['mean_iteration_s']:.4f} s")
    if known.out:
        known.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
