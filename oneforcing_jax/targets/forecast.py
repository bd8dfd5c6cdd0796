"""What a run costs on a target, without having it: `tools/plan.py`, and `main --dry_run --target=`.

The real programs are compiled ahead at full size. The compiler tells their memory; operations, bytes and
traffic are read from what it made, and seconds predicted from these (`targets/roofline.py`): calibrated where
the device was measured, elsewhere the least that its data sheet allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import generation, measure, programs, speeds
from oneforcing_jax.targets.measure import Cost
from oneforcing_jax.targets.topology import Target
from oneforcing_jax.training.train import trained

# Programs that were compiled before.
CACHE = Path("build/plan")
# Whose numbers a prediction has that nobody's measurements calibrated.
DATA_SHEET = "the data sheet"


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The costs of the programs of one kind of work on a target.

    Attributes:
      what: "train", "generate", "vae" or "encode".
      unit: what `runs` of the programs make together: "iteration", "video", "clip".
      target: its devices.
      costs: of each program.
    """

    what: str
    unit: str
    target: Target
    costs: tuple[Cost, ...]

    @property
    def source(self) -> str:
        """Who measured the device by which seconds are predicted; "": nobody, they are not calibrated."""
        return speeds.of(self.target.chip).source

    @property
    def fits(self) -> bool:
        """Whether every program compiles and fits the memory."""
        return all(cost.fits for cost in self.costs)

    def mean(self, field: str) -> float:
        """Sum over the programs of a field times how often each runs."""
        return sum(cost.runs * getattr(cost, field) for cost in self.costs)

    def utilisation(self, field: str) -> float | None:
        """Share of the chips' peak that "model_flops" or "hardware_flops" take in the predicted time."""
        work, seconds = self.mean(field), self.mean("predicted_s")
        peak = self.target.chip.peak * len(self.target.devices)
        return work / seconds / peak if work and seconds and peak else None

    def video(self) -> dict[str, Any]:
        """Seconds of a video: of its first block and each that follows, of their mean, of decoding a block
        in the middle, and of all blocks and frames."""
        steady = [c for c in self.costs if c.name.startswith("generate/steady")]
        decoding = [c for c in self.costs if not c.name.startswith("generate")]
        decode_s = sum(c.runs * c.predicted_s for c in decoding)
        blocks = [c.predicted_s for c in steady]
        first = [c.predicted_s for c in self.costs if c.name == "generate/first block"]
        return {
            "first_block_s": sum(first),
            "steady_blocks_s": blocks,
            "steady_block_s": sum(blocks) / len(blocks) if blocks else 0.0,
            "steady_decode_s": decoding[-1].predicted_s if decoding else 0.0,
            "diffusion_s": self.mean("predicted_s") - decode_s,
            "decode_s": decode_s,
        }

    def as_json(self) -> dict[str, Any]:
        """The plan as it is written."""
        programs = []
        for cost in self.costs:
            row = dataclasses.asdict(cost)
            programs.append(row | {"collective_bytes": cost.collective_bytes, "fits": cost.fits})
        total: dict[str, Any] = {
            "predicted_s": self.mean("predicted_s"),
            "flops": self.mean("flops"),
            "hbm_bytes": self.mean("hbm_bytes"),
            "collective_bytes": self.mean("collective_bytes"),
            "model_flops": self.mean("model_flops"),
            "model_utilisation": self.utilisation("model_flops"),
            "hardware_utilisation": self.utilisation("hardware_flops"),
        }
        total |= self.video() if self.what == "generate" else {}
        if any(cost.error for cost in self.costs):  # sums without a program would be too small
            total = dict.fromkeys(total)
        peak = max((c.bytes["peak"] for c in self.costs if c.bytes), default=0)
        total |= {"unit": self.unit, "peak_bytes": peak}
        return {
            "what": self.what,
            "target": self.target.name,
            "device": self.target.chip.kind,
            "devices": len(self.target.devices),
            "calibrated": bool(self.source),
            "source": self.source or DATA_SHEET,
            "fits": self.fits,
            "total": total,
            "programs": programs,
        }


def make(
    what: str, unit: str, target: Target, found: Iterable[Any], cache: Path | None = CACHE
) -> Forecast:
    """Compiles the programs, one after the other, behind a progress bar."""
    costs: list[Cost] = []
    with tqdm(list(found), desc=what, unit="program", leave=False, dynamic_ncols=True) as bar:
        for program in bar:
            bar.set_postfix_str(program.readings[0].name)
            costs += measure.costs(program, target, cache)
    return Forecast(what, unit, target, tuple(costs))


def stages(run: Run) -> list[str]:
    """The training stages that a config runs."""
    return [name for name in run.run if name in trained(run)]


def train(run: Run, stages: Sequence[str], target: Target) -> list[Forecast]:
    """A plan for each training stage.

    Raises:
      InputError: not such a stage, or one that does not fit the devices.
    """
    return [
        make("train", "mean iteration", target, programs.train(run, stage, target.devices))
        for stage in stages
    ]


def generate(run: Run, target: Target, decoder: str | None = None) -> Forecast:
    """One video, from its prompt's embedding to pixels."""
    return make("generate", "video", target, generation.generate(run, target.devices, decoder))


def vae(run: Run, target: Target, decoder: str | None = None) -> Forecast:
    """Decoding of a video."""
    mesh = programs.video_mesh(run, target.devices)
    return make("vae", "video", target, programs.decode(run, mesh, decoder))


def encode(run: Run, target: Target) -> Forecast:
    """Encoding of a clip and its caption."""
    return make("encode", "clip", target, programs.encode(run, target.devices))


COLUMNS: tuple[tuple[str, str, Callable[[Cost], str]], ...] = (
    ("compile s", ">9", lambda c: f"{c.compile_s:.1f}"),
    ("state", ">7", lambda c: _gb(c.bytes["state"])),
    ("frozen", ">7", lambda c: _gb(c.bytes["resident"])),
    ("temp", ">7", lambda c: _gb(c.bytes["temporary"])),
    ("peak GB", ">8", lambda c: _gb(c.bytes["peak"])),
    ("TFLOP", ">10", lambda c: f"{c.flops / 1e12:.4g}"),
    ("moved GB", ">10", lambda c: f"{c.hbm_bytes / 1e9:.4g}"),
    ("sent GB", ">9", lambda c: f"{c.collective_bytes / 1e9:.3g}"),
    ("seconds", ">10", lambda c: f"{c.predicted_s:.4g}"),
)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 1e12 else f"{size / 1e9:.0f}"


def table(forecast: Forecast) -> str:
    """The plan as text; sizes, operations and bytes are of each device."""
    target, chip = forecast.target, forecast.target.chip
    names = [cost.name for cost in forecast.costs]
    wide = max(map(len, [*names, "program"])) + 1
    head = "".join(f"{title:{form}}" for title, form, _ in COLUMNS)
    lines = [
        f"{target.name}: {len(target.devices)} x {chip.kind}, {_gb(chip.memory)} GB each",
        f"seconds: {_basis(forecast)}",
        f"{'program':<{wide}}{head}  bound by",
    ]
    for cost in forecast.costs:
        if cost.error:
            lines.append(f"{cost.name:<{wide}} does not compile: {cost.error}")
            continue
        row = "".join(f"{show(cost):{form}}" for _, form, show in COLUMNS)
        fits = "" if cost.fits else "  does not fit"
        lines.append(f"{cost.name:<{wide}}{row}  {cost.bound}{fits}")
        lines += [f"{'':<{wide}} {note}" for note in cost.notes]
    return "\n".join([*lines, *_sent(forecast), _total(forecast)])


def _basis(forecast: Forecast) -> str:
    """What the seconds rest on."""
    if forecast.source:
        return f"calibrated by {forecast.source}"
    return f"not calibrated, the least that {DATA_SHEET} allows"


def _sent(forecast: Forecast) -> list[str]:
    """What is sent, by kind."""
    total: dict[str, float] = {}
    for cost in forecast.costs:
        for kind, size in cost.collectives.items():
            total[kind] = total.get(kind, 0.0) + cost.runs * size
    largest = sorted(total.items(), key=lambda item: -item[1])
    named = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in largest if size > 1e6)
    return [f"sent in a {forecast.unit}, GB a device: {named}"] if named else []


def _total(forecast: Forecast) -> str:
    if any(cost.error for cost in forecast.costs):
        return f"a {forecast.unit}: not known"
    more, less = ("", "") if forecast.source else (" or more", " or less")
    parts = [f"a {forecast.unit}: {forecast.mean('predicted_s'):.4g} s{more}"]
    if forecast.what == "generate":
        seconds = forecast.video()
        parts += [
            f"diffusion {seconds['diffusion_s']:.4g} s",
            f"decoding {seconds['decode_s']:.4g} s",
            f"a mean steady block {1000 * seconds['steady_block_s']:.4g} ms",
        ]
    for field, name in (("model_flops", "model"), ("hardware_flops", "hardware")):
        used = forecast.utilisation(field)
        if used is not None:
            parts.append(f"{name} utilisation {used:.0%}{less}")
    limit = forecast.target.chip.memory
    peak = max(cost.bytes["peak"] for cost in forecast.costs)
    verdict = "fits" if forecast.fits else "does not fit"
    parts.append(f"{verdict} ({_gb(peak)} of {_gb(limit)} GB)")
    return "; ".join(parts)
