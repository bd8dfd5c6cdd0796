"""How far the trajectories of a teacher bend away from a straight line (paper, equation 2, appendix B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.drawing import figure, save

# Noise levels of the ends of a trajectory that the paper compares, and of its middle.
HIGH, MIDDLE = 0.9, (0.4, 0.6)
RESAMPLES = 2000
# What is measured: latents, and their differences from frame to frame, which leave out what stands still.
KINDS = ("latents", "differences")


def profile(states: np.ndarray, times: np.ndarray) -> np.ndarray:
    """C(t_i) = |(x_{t_i} - x_{t_i-1}) / (t_i - t_i-1) - (x_1 - x_0)|^2 / d of each step of each clip.

    Args:
      states: [b, n + 1, f, c, y, x], the trajectory from noise to a clean clip.
      times: [n + 1] its noise levels, which fall to 0.

    Returns:
      [b, n], of the steps that begin at times[:-1].

    Raises:
      InputError: another number of times, or times that do not fall.
    """
    if states.shape[1] != len(times) or len(times) < 2 or (np.diff(times) >= 0).any():
        raise InputError(
            f"curvature: expected a falling noise level for each of {states.shape[1]} states, found "
            f"{len(times)}: {np.asarray(times).tolist()[:8]}"
        )
    chord = states[:, 0] - states[:, -1]
    steps = zip(range(len(times) - 1), -np.diff(times), strict=True)
    rows = [(states[:, i] - states[:, i + 1]) / width - chord for i, width in steps]
    return np.stack([np.square(row).reshape(len(row), -1).mean(1) for row in rows], 1)


def differences(states: np.ndarray) -> np.ndarray:
    """States [b, n + 1, f, ...] as differences of neighbouring frames, [b, n + 1, f - 1, ...].

    Raises:
      InputError: clips of one frame.
    """
    if states.shape[2] < 2:
        raise InputError("curvature: expected clips of two frames or more, found one frame")
    return np.diff(states, axis=2)


def high_share(profiles: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[b] share of a clip's curvature, summed over its steps, that lies at t >= 0.9."""
    return profiles[:, times[:-1] >= HIGH].sum(1) / profiles.sum(1)


def high_to_middle(profiles: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[b] mean curvature of the steps at t >= 0.9 over that of the steps at 0.4 <= t < 0.6."""
    at = times[:-1]
    middle = (at >= MIDDLE[0]) & (at < MIDDLE[1])
    return profiles[:, at >= HIGH].mean(1) / profiles[:, middle].mean(1)


def interval(values: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean over clips, its standard error, and its bootstrapped interval of 95%."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    found = {"mean": values.mean(), "standard_error": error, "low": low, "high": high}
    return {name: float(value) for name, value in found.items()}


def summary(profiles: np.ndarray, times: np.ndarray) -> dict[str, Any]:
    """What is reported of [b, n] profiles: the curve and the two figures, with intervals.

    Raises:
      InputError: no step at t >= 0.9, or none in the middle.
    """
    at = times[:-1]
    if not (at >= HIGH).any() or not ((at >= MIDDLE[0]) & (at < MIDDLE[1])).any():
        raise InputError(
            f"curvature: expected steps at t >= {HIGH} and in {MIDDLE}, found {len(at)} steps; take more"
        )
    return {
        "times": at.tolist(),
        "curve": [interval(column) for column in profiles.T],
        "high_share": interval(high_share(profiles, times)),
        "high_to_middle": interval(high_to_middle(profiles, times)),
    }


def plot(path: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws curves, each over its own peak (Figure 3), by name; `reports` are those of `summary`.

    Raises:
      MissingPackage: matplotlib is not installed.
    """
    made = figure(6.4, 4.0)
    axes = made.subplots()
    for name, report in reports.items():
        curve: Sequence[Mapping[str, float]] = report["curve"]
        peak = max(point["mean"] for point in curve)
        low, mean, high = ([point[k] / peak for point in curve] for k in ("low", "mean", "high"))
        (line,) = axes.plot(report["times"], mean, marker=".", label=name)
        axes.fill_between(report["times"], low, high, alpha=0.2, color=line.get_color())
    axes.axvspan(HIGH, 1.0, alpha=0.08, color="grey")
    axes.set(
        xlabel="noise level t", ylabel="curvature C(t), over its peak", xlim=(0, 1), ylim=(0, None)
    )
    axes.legend()
    save(made, path)
