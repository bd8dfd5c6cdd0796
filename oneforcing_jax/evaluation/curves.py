"""Metrics over iterations, means and spans over the runs of each method (Figures 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


Curve = tuple[np.ndarray, np.ndarray]


def series(rows: Sequence[Mapping[str, Any]], metric: str) -> Curve:
    """Iterations [n] and values [n] of the rows of a stage that have the metric."""
    found = [row for row in rows if metric in row]
    return np.array([row["iteration"] for row in found]), np.array([row[metric] for row in found])


def span(curves: Sequence[Curve]) -> np.ndarray:
    """Iterations, mean, lowest and highest value of several runs, [4, n], as far as all of them went; runs
    without values do not count."""
    found = [(at, values) for at, values in curves if len(at)]
    if not found:
        return np.zeros((4, 0))
    shortest = min(len(at) for at, _ in found)
    values = np.stack([values[:shortest] for _, values in found])
    return np.stack([found[0][0][:shortest], values.mean(0), values.min(0), values.max(0)])


def plot(
    path: Path, runs: Mapping[str, Sequence[Path]], panels: Mapping[str, str] = LOSSES
) -> None:
    """Draws panels of metrics; `runs` are folders of stages, by method.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: no run has any of the metrics.
    """
    colours = {name: f"C{i}" for i, name in enumerate(runs)}
    read = {name: [read_rows(folder) for folder in folders] for name, folders in runs.items()}
    shown = {}
    made = figure(3.6 * len(panels) + 1, 3.6)
    grid = made.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, metric) in zip(grid, panels.items(), strict=True):
        for name, folders in read.items():
            at, mean, low, high = span([series(rows, metric) for rows in folders])
            if len(at):
                (shown[name],) = axes.plot(at, mean, color=colours[name])
                axes.fill_between(at, low, high, alpha=0.2, color=colours[name])
        axes.set(title=title, xlabel="iteration")
    if not shown:
        raise InputError(
            f"expected rows with {', '.join(panels.values())} in the runs of {list(runs)}, found none; name "
            "folders of stages that train a critic"
        )
    made.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4)
    save(made, path)
