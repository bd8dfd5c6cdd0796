"""Comparison of methods over seeds: which runs there are, what is read of them, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from oneforcing_jax.evaluation.curves import series
from oneforcing_jax.system.files import read_record
from oneforcing_jax.training.metrics import read_rows

# Stages that all rows share, and those of a row.
SHARED = ("world", "teacher", "exam", "teacher_forcing", "ode_pairs", "ode", "consistency")
OWN = ("one_forcing", "report")
# What a base of another layout of blocks takes from the first one.
COMMON = ("world", "teacher", "exam")
SCORES = "scores.json"
LEVEL = 0.95


def _adversarial(weight: float) -> dict[str, Any]:
    """Fields of both weights of the adversarial branch."""
    return {
        "one_forcing.gan_generator_weight": weight,
        "one_forcing.gan_discriminator_weight": weight,
    }


DMD, STRONG = _adversarial(0.0), _adversarial(0.3)
CONSISTENT = {"stages.one_forcing.init.generator": "consistency:model"}
CHUNKS = {"blocks.frames": 2}
UNGUIDED = {"one_forcing.guidance": 0.0}
NOISIER = {"shift": 6.0}


class Row(NamedTuple):
    """A method of the comparison.

    Attributes:
      name: in the table.
      fields: of the config, which make it.
      seeds: runs.
      base: which shared stages it begins from, out of BASES.
      student: the network that is scored; one that a shared stage made is scored as it is.
      against: the row that it is compared with, seed by seed.
    """

    name: str
    fields: Mapping[str, Any] = {}
    seeds: int = 3
    base: str = "framewise"
    student: str = "ema one_forcing:generator"
    against: str = "DMD alone"

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are its own."""
        return OWN if OWN[0] in self.student else OWN[1:]


BASES: dict[str, Mapping[str, Any]] = {"framewise": {}, "chunkwise": CHUNKS, "noisier": NOISIER}
AGAINST = "DMD alone"
METHODS = (
    Row("ODE regression alone", student="ode:model"),
    Row("consistency alone", student="consistency:model"),
    Row(AGAINST, DMD, 5),
    Row("One-Forcing", {}, 5),
    Row("adversarial alone", {"one_forcing.dmd_weight": 0.0}),
    Row("ASD", {"one_forcing.real": "self"}),
    Row(
        "One-Forcing + forward KL",
        {"one_forcing.forward_kl_weight": 1.0, "stages.one_forcing.data": "ode_pairs/store"},
    ),
    Row("One-Forcing from consistency", CONSISTENT, against="DMD alone from consistency"),
    Row("DMD alone from consistency", DMD | CONSISTENT),
    Row("DMD alone, four steps", DMD | {"blocks.steps": (1000.0, 750.0, 500.0, 250.0)}),
    Row("One-Forcing, chunkwise", CHUNKS, base="chunkwise", against="DMD alone, chunkwise"),
    Row("DMD alone, chunkwise", DMD | CHUNKS, base="chunkwise"),
)
# One-Forcing under other settings, and what it must be compared with there. At the paper's weights the
# adversarial branch hardly moves this student, so what else could matter is tried at ten times these.
CONDITIONS = (
    Row("One-Forcing, adversarial x10", STRONG, 5),
    Row("One-Forcing, adversarial x100", _adversarial(3.0), 5),
    Row(
        "One-Forcing, adversarial x10, R1 and R2",
        STRONG | {"one_forcing.r1.weight": 1.0, "one_forcing.r2.weight": 0.001},
    ),
    Row("One-Forcing, adversarial x10, head on the last layer", STRONG | {"head.layers": (3,)}),
    Row("DMD alone, no guidance", DMD | UNGUIDED),
    Row(
        "One-Forcing, adversarial x10, no guidance",
        STRONG | UNGUIDED,
        against="DMD alone, no guidance",
    ),
    Row("One-Forcing, adversarial x100, no guidance", _adversarial(3.0) | UNGUIDED, 5),
    Row("DMD alone, more noise", DMD | NOISIER, base="noisier"),
    Row(
        "One-Forcing, adversarial x10, more noise",
        STRONG | NOISIER,
        base="noisier",
        against="DMD alone, more noise",
    ),
)
ROWS = (*METHODS, *CONDITIONS)


def _adapters(rank: int) -> Row:
    """One-Forcing with adapters of student and critic. A learning rate moves these less than whole matrices,
    so alpha is above the rank."""
    own = {"rank": rank, "alpha": 4.0 * rank}
    fields = {
        f"stages.one_forcing.low_rank.{net}.{name}": value
        for net in ("generator", "critic")
        for name, value in own.items()
    }
    return Row(f"One-Forcing, rank {rank}", fields, against="One-Forcing")


# Made where they are asked for by name: the last stage with adapters, from the same initialisations.
LOW_RANK = tuple(_adapters(rank) for rank in (4, 16, 64))


class Claim(NamedTuple):
    """A statement of the paper: that `metric` of one row is higher than that of another, or lower."""

    text: str
    row: str
    against: str
    metric: str
    higher: bool


CLAIMS = (
    Claim("Real data keeps the logit gap open where ASD's closes (Figure 4)",
          "One-Forcing", "ASD", "logit_gap", True),
    Claim("The adversarial branch brings one step nearer to real videos than DMD alone (Table 2)",
          "One-Forcing", AGAINST, "frechet", False),
    Claim("... and makes more of them clear", "One-Forcing", AGAINST, "clear", True),
    Claim("Framewise is better than chunkwise (Table 1)",
          "One-Forcing", "One-Forcing, chunkwise", "frechet", False),
    Claim("Initialisation by ODE pairs keeps more motion than consistency (Table 3)",
          "One-Forcing", "One-Forcing from consistency", "motion", True),
    Claim("A forward KL costs motion (section 4.5)",
          "One-Forcing + forward KL", "One-Forcing", "motion", False),
)  # fmt: skip
# What is compared first, and what is said besides.
COLUMNS = ("frechet", "scene", "joint", "clear", "variety", "sharpness", "motion", "logit_gap")
MORE = (
    "diversity", "spectrum", "steady", "drift_clear", "drift_sharpness", "drift_motion", "drift_steady",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its interval of 95% (Student's t); NaN for one seed."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """From one value a seed."""
        n = len(values)
        half = math.nan
        if n > 1:
            error = float(np.std(values, ddof=1)) / math.sqrt(n)
            half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
        return cls(float(np.mean(values)), half, n)

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if math.isnan(self.half) else f"{self.mean:.3g} ± {self.half:.2g}"


Results = Mapping[str, Mapping[int, Mapping[str, float]]]


def read(folder: Path) -> dict[str, float]:
    """Scores of a finished run, and the gap of the critic's logits in the last quarter of its training.

    Raises:
      InputError: a damaged file.
    """
    found = dict(read_record(folder / OWN[1] / SCORES, "student"))
    _, gaps = series(read_rows(folder / OWN[0]), "critic/logit_gap")
    last = gaps[-max(1, len(gaps) // 4) :]
    return found | ({"logit_gap": float(last.mean())} if len(last) else {})


def paired(results: Results, row: str, against: str, metric: str) -> Estimate | None:
    """The difference of two rows over the seeds that both have; None where they share none."""
    one, other = results.get(row, {}), results.get(against, {})
    differences = [
        one[seed][metric] - other[seed][metric]
        for seed in sorted(one.keys() & other.keys())
        if metric in one[seed] and metric in other[seed]
    ]
    return Estimate.of(differences) if differences else None


def verdict(claim: Claim, results: Results) -> str:
    """Whether a claim comes out here: a line with the paired difference and its interval."""
    found = paired(results, claim.row, claim.against, claim.metric)
    if found is None:
        return f"not tried: {claim.text}"
    sign = _sign(found) * (1 if claim.higher else -1)
    said = {1: "holds here", 0: "open", -1: "**does not hold here**"}[sign]
    difference = f"{claim.metric} {claim.row} minus {claim.against}: {found}, {found.count} seeds"
    return f"{said}: {claim.text} ({difference})"


def table(results: Results, failed: Mapping[str, str], columns: Sequence[str] = COLUMNS) -> str:
    """Markdown: means over seeds with intervals, and the rows that failed."""
    lines = _head("method | seeds", columns)
    for row in ROWS:
        if row.name in failed:
            lines.append(f"| {row.name} | failed: {failed[row.name]} |" + " |" * len(columns))
        elif seeds := results.get(row.name):
            found = ([v[c] for v in seeds.values() if c in v] for c in columns)
            cells = [str(Estimate.of(values)) if values else "" for values in found]
            lines.append(f"| {row.name} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(results: Results) -> str:
    """Markdown: every row less the one that it is compared with, paired by seeds."""
    lines = _head("method | less", COLUMNS)
    for row in ROWS:
        if row.name in results and row.name != row.against:
            found = (paired(results, row.name, row.against, column) for column in COLUMNS)
            cells = " | ".join(str(x) if x else "" for x in found)
            lines.append(f"| {row.name} | {row.against} | {cells} |")
    return "\n".join(lines)


def conditions(results: Results) -> str:
    """Markdown: in which scores One-Forcing is better than DMD alone under each setting."""
    better = {"frechet": -1, "scene": -1, "joint": 1, "clear": 1, "variety": 1, "motion": 1}
    lines = _head("method | less", tuple(better))
    for row in ROWS:
        if row.name in results and row.name.startswith("One-Forcing") and "DMD" in row.against:
            found = (_sign(paired(results, row.name, row.against, metric)) for metric in better)
            cells = (
                {1: "better", -1: "worse", 0: "open"}[sign * s]
                for sign, s in zip(better.values(), found, strict=True)
            )
            lines.append(f"| {row.name} | {row.against} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sign(found: Estimate | None) -> int:
    """The sign of a difference whose interval does not hold 0; otherwise 0."""
    if found is None or math.isnan(found.half) or abs(found.mean) <= found.half:
        return 0
    return 1 if found.mean > 0 else -1


def page(
    results: Results, failed: Mapping[str, str], curvature: Mapping[str, Any], teacher: Mapping[str, float],
    command: str,
) -> str:  # fmt: skip
    """The page of a study: claims, tables, and how each row is made.

    Args:
      results, failed: scores by row and seed, and the line with which a row failed.
      curvature: report of the shared teacher.
      teacher: its scores.
      command: that was run.
    """
    known = [f"{name} {teacher[name]:.3g}" for name in (*COLUMNS, *MORE) if name in teacher]
    fields = [
        f"| {row.name} | {', '.join(f'`{k}={v}`' for k, v in row.fields.items()) or 'the config'} |"
        for row in ROWS
    ]
    parts = [
        "# A study of the methods on the toy world",
        f"`{command}`",
        "\n".join(
            f"- {line}"
            for line in (*(verdict(claim, results) for claim in CLAIMS), curved(curvature))
        ),
        f"Means over seeds ± half of an interval of {100 * LEVEL:.0f}% (Student's t).",
        table(results, failed),
        f"The shared teacher in many steps: {', '.join(known)}.",
        table(results, failed, MORE),
        "## Differences, paired by seeds",
        differences(results),
        "## Where the adversarial branch helps",
        conditions(results),
        "## How rows differ",
        "\n".join([*_head("method", ("fields",)), *fields]),
        "![First, middle and last frames](pictures.png)",
        "![Losses and the logit gap over iterations](curves.png)",
        "![Curvature of the teacher's trajectories](curvature.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _head(first: str, columns: Sequence[str]) -> list[str]:
    line = f"| {first} | {' | '.join(columns)} |"
    return [line, "|---" * (line.count("|") - 1) + "|"]


def curved(report: Mapping[str, Any]) -> str:
    """What came of the claim on curvature, from a report of tools/curvature.py on the shared teacher."""
    share = report["latents"]["high_share"]
    low, high = share["low"], share["high"]
    said = "holds here" if low > 0.5 else "**does not hold here**" if high < 0.5 else "open"
    return (
        f"{said}: Curvature gathers at high noise (appendix B; the share of it at t >= 0.9 is "
        f"{share['mean']:.3g} [{low:.3g}, {high:.3g}], {report['settings']['clips']} clips)"
    )
