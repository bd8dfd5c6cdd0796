"""Metrics over iterations, means and spans over the runs of each method (Figures 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.drawing import figure, save
from oneforcing_jax.training.metrics import read_rows

# Panels: titles and metrics.
GAP = {"logit gap, real - fake": "critic/logit_gap"}
LOSSES = {
    "DMD loss": "generator/dmd_loss",
    "generator's adversarial loss": "generator/gan_loss",
    "critic's denoising loss": "critic/denoise_loss",
    "discriminator's loss": "critic/gan_loss",
}


def series(folder: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations [n] and values [n] of the rows that have the metric."""
    rows = [row for row in read_rows(folder) if metric in row]
    return np.array([row["iteration"] for row in rows]), np.array([row[metric] for row in rows])


def plot(
    path: Path, runs: Mapping[str, Sequence[Path]], panels: Mapping[str, str] = LOSSES
) -> None:
    """Draws panels of metrics; `runs` are folders of stages, by method.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: no run has any of the metrics.
    """
    colours = {name: f"C{i}" for i, name in enumerate(runs)}
    shown = {}
    made = figure(3.6 * len(panels) + 1, 3.6)
    grid = made.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, metric) in zip(grid, panels.items(), strict=True):
        for name, folders in runs.items():
            found = [series(folder, metric) for folder in folders]
            found = [(at, values) for at, values in found if len(at)]
            if not found:
                continue
            shortest = min(len(at) for at, _ in found)
            at, values = found[0][0][:shortest], np.stack([v[:shortest] for _, v in found])
            (shown[name],) = axes.plot(at, values.mean(0), color=colours[name])
            axes.fill_between(at, values.min(0), values.max(0), alpha=0.2, color=colours[name])
        axes.set(title=title, xlabel="iteration")
    if not shown:
        raise InputError(
            f"expected rows with {', '.join(panels.values())} in the runs of {list(runs)}, found none; name "
            "folders of stages that train a critic"
        )
    made.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4)
    save(made, path)
