"""The fastest setting of a training stage that fits a target: how the mesh is split, how much of a batch goes
through at once, what the backward pass computes again, and what waits in the host's memory.

Arithmetic comes first: a setting whose state, gradients and layer inputs alone exceed the memory is dropped,
and the others are ordered by the time that their operations and traffic take at least. The first few are
compiled; each says how far the arithmetic of memory is off, and by that some later ones are dropped too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from oneforcing_jax import methods
from oneforcing_jax.causal import flops
from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.config import PREFIX
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system.room import HOST, per_device
from oneforcing_jax.targets import programs, roofline
from oneforcing_jax.targets.forecast import Forecast, make
from oneforcing_jax.targets.topology import Target
from oneforcing_jax.training.train import trained

# Arrays of the size of a layer's input that its backward pass finds in memory. The number for "none" is that
# of compiled programs of the 1.3B model.
KEPT = {"attention": 2, "full": 1, "offload": 0, "none": 110}
# The most devices that work on one sample together.
WITHIN = 8
INSIDE = ("context", "sequence", "tensor")

Load = Callable[[Sequence[str]], Run]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a stage.

    Attributes:
      fields: of the config.
      seconds: of a mean iteration, at least, by arithmetic.
      bytes: of a device's memory, at least.
    """

    fields: Mapping[str, Any]
    seconds: float
    bytes: float

    @property
    def remat(self) -> str:
        """What the backward pass computes again."""
        return next(str(v) for name, v in self.fields.items() if name.endswith(".remat"))

    @property
    def overrides(self) -> list[str]:
        """As they are pasted."""
        return [f"{PREFIX}{name}={value}" for name, value in self.fields.items()]


@dataclasses.dataclass(frozen=True)
class Result:
    """A setting and what compiling it said."""

    setting: Setting
    forecast: Forecast

    @property
    def seconds(self) -> float:
        """Predicted, of a mean iteration; infinite where it does not fit."""
        return self.forecast.mean("predicted_s") if self.forecast.fits else math.inf

    @property
    def peak(self) -> int:
        """Bytes of a device; 0 where a program does not compile."""
        costs = self.forecast.costs
        return 0 if any(c.error for c in costs) else max(c.bytes["peak"] for c in costs)


def search(load: Load, name: str, target: Target, compilations: int) -> Iterator[Result]:
    """Compiles the most promising settings, and gives each as it is known.

    Args:
      load: the config with the given overrides.
      name: of the stage.
      target: its devices.
      compilations: settings that are compiled at most.

    Raises:
      InputError: no setting fits by arithmetic.
    """
    settings = promising(load, name, target)
    if not settings:
        raise InputError(
            f"search: expected a setting of stage {name!r} that fits {target.name}, found that the state of "
            "each exceeds the memory or does not divide; take more devices or another batch"
        )
    missing: dict[str, float] = {}  # what arithmetic left out at least, by remat
    with tqdm(total=compilations, unit="setting", dynamic_ncols=True) as bar:
        for setting in settings:
            if setting.bytes + missing.get(setting.remat, 0.0) > target.chip.memory:
                continue
            bar.set_description_str(" ".join(named(setting)))
            found = programs.train(load(setting.overrides), name, target.devices)
            result = Result(setting, make("train", "mean iteration", target, found))
            bar.update(1)
            yield result
            if result.peak:
                more = result.peak - setting.bytes
                missing[setting.remat] = min(more, missing.get(setting.remat, more))
            if bar.n == compilations:
                return


def promising(load: Load, name: str, target: Target) -> list[Setting]:
    """Settings that fit by arithmetic. The fastest come first; equally fast ones go by memory."""
    found: list[Setting] = []
    kinds = {memory.kind for memory in target.devices[0].addressable_memories()}
    has_host = HOST in kinds
    for mesh in meshes(len(target.devices)):
        fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
        try:
            run = load([f"{PREFIX}{field}={size}" for field, size in fields.items()])
            state = _State.of(run, name, target)
        except InputError:  # sizes that do not divide the model's or the batch
            continue
        for more in _variants(run, name, mesh["data"] * mesh["fsdp"], has_host):
            changed = load([f"{PREFIX}{field}={value}" for field, value in (fields | more).items()])
            found.append(_weighed(changed, name, target, mesh, state, fields | more))
    fitting = [setting for setting in found if setting.bytes <= target.chip.memory]
    return sorted(fitting, key=lambda s: (s.seconds, s.bytes))


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Splits of the devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for fsdp, *inside in itertools.product(divisors, repeat=4):
        within = math.prod(inside)
        if within <= WITHIN and devices % (fsdp * within) == 0:
            outside = {"data": devices // (fsdp * within), "fsdp": fsdp}
            yield outside | dict(zip(INSIDE, inside, strict=True))


def _variants(run: Run, name: str, shares: int, has_host: bool) -> Iterator[dict[str, Any]]:
    """What can be changed on one mesh."""
    stage = trained(run)[name]
    method = methods.of_stage(run, name)
    parts = [n for n in (1, 2, 4, 8) if stage.batch % (n * shares) == 0]
    host = (False, True) if has_host else (False,)
    for part, remat, away, *chosen in itertools.product(
        parts, KEPT, host, *method.choices.values()
    ):
        fields: dict[str, Any] = {
            f"stages.{name}.microbatch": stage.batch // part if part > 1 else 0
        }
        fields |= {f"{method.nets[net].section}.remat": remat for net in method.trained}
        fields |= dict(zip(method.choices, chosen, strict=True))
        yield fields | {f"stages.{name}.offload_optimiser": away}


@dataclasses.dataclass(frozen=True)
class _State:
    """What a mesh decides: bytes of the arguments on a device, and of the optimisers' part of them;
    parameters of the largest trained network, in all and on one device."""

    bytes: int
    optimisers: int
    parameters: int
    share: int

    @classmethod
    def of(cls, run: Run, name: str, target: Target) -> _State:
        found = programs.train(run, name, target.devices)[0]
        nets = found.state["params"].values()
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(net)) for net in nets]
        shares = [per_device(net) // 4 for net in nets]
        optimisers = per_device(found.state["opt"])
        return cls(per_device(found.arguments), optimisers, max(sizes), max(shares))


def _weighed(
    run: Run,
    name: str,
    target: Target,
    mesh: Mapping[str, int],
    state: _State,
    fields: Mapping[str, Any],
) -> Setting:
    """A setting with the least time and memory that arithmetic gives it."""
    stage, chip = trained(run)[name], target.chip
    method = methods.of_stage(run, name)
    net, size = method.nets[method.trained[0]].config, run.latents
    tokens = stage.batch * size.frames * net.frame_tokens(size.rows, size.columns)
    # With "none", the clips of a critic update leave all that their layers keep, even when they go in turn.
    own_rollout = len(method.trained) > 1
    in_turn = "in_turn" in fields.values() and net.remat != "none"
    parts = stage.batch // (stage.microbatch or stage.batch)
    # Bytes of one array of a device's tokens, and of the inputs of all layers.
    width = 2 * net.dim * tokens * mesh["tensor"] / len(target.devices)
    inputs = net.num_layers * (3 if own_rollout and not in_turn else 1) * width
    away = state.optimisers * stage.offload_optimiser
    memory = state.bytes + 4 * state.share - away + KEPT[net.remat] * inputs / parts
    to_host = 2 * away + 2 * inputs * (net.remat == "offload")

    work = sum(update.work.hardware / update.every for update in method.updates)
    # Weights are gathered in two bytes for each pass, and for each block of a rollout.
    gathers = parts * (4 + own_rollout * len(run.plan))
    sent = gathers * 2 * state.parameters / mesh["tensor"] * (1 - 1 / mesh["fsdp"])
    passes = work / flops.clip(net, tokens // (stage.batch * size.frames), size.frames).forward
    sent += passes * net.num_layers * _exchanged(mesh) * width
    seconds = stage.batch * work / len(target.devices) / chip.rate + sent / chip.link
    return Setting(fields, seconds + to_host / roofline.HOST, memory)


def _exchanged(mesh: Mapping[str, int]) -> float:
    """Arrays of a device's tokens that it sends in a layer: queries, keys, values and outputs are exchanged
    over `sequence`, keys and values gathered over `context`, and two sums taken over `tensor`."""
    gathered = 2 * (mesh["context"] - 1)
    return 4 * (1 - 1 / mesh["sequence"]) + gathered + 4 * (1 - 1 / mesh["tensor"])


def named(setting: Setting) -> list[str]:
    """The fields of a setting that change something, in short."""
    plain = {"mesh": 1, "microbatch": 0, "offload_optimiser": False}
    shown = []
    for name, value in setting.fields.items():
        first, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
        if value != plain.get(first, plain.get(last)) and name != "critic.remat":
            shown.append(f"{last}={value}")
    return shown


def table(results: Sequence[Result]) -> str:
    """What was tried, the fastest that fits first, and the overrides of that one to paste."""
    lines = [f"{'seconds':>9}{'peak GB':>9}  setting"]
    for result in sorted(results, key=lambda r: r.seconds):
        plan, setting = result.forecast, " ".join(named(result.setting))
        error = next((cost.error for cost in plan.costs if cost.error), "")
        if error:
            lines.append(f"{'-':>9}{'-':>9}  {setting}: does not compile: {error[:120]}")
            continue
        peak = result.peak / 1e9
        verdict = "" if plan.fits else ": does not fit"
        lines.append(f"{plan.mean('predicted_s'):9.4g}{peak:9.2f}  {setting}{verdict}")
    best = min(results, key=lambda r: r.seconds, default=None)
    if best is None or not math.isfinite(best.seconds):
        return "\n".join([*lines, "none of these fits"])
    return "\n".join([*lines, "fastest that fits:", " ".join(best.setting.overrides)])
