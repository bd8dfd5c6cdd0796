"""Figures 3 to 6 of the paper, of one's own runs.

    python -m oneforcing_jax.evaluation.figures --out=figures \\
        --curvature Wan=curvature.json toy=teacher.json \\
        --runs One-Forcing=runs/a/one_forcing ASD=runs/b/one_forcing ASD=runs/c/one_forcing \\
        --scores=score.json --videos One-Forcing=videos/a ASD=videos/b

Writes what there is something for: 3 the curvature of trajectories (reports of tools/curvature.py), 4 the
logit gap and 5 the losses over iterations (folders of stages; of equal names the mean and the span are
drawn), 6 the dimensions of VBench (score.json of `evaluation.vbench score`), VBench's scores over iterations
(of models that are named NAME@ITERATION in score.json), and strips of videos of the same names. Each is a PNG
and an SVG.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation import curvature, curves
from oneforcing_jax.evaluation.drawing import figure, save
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.system.command import Help, any_path, ending, named
from oneforcing_jax.system.files import read_record
from oneforcing_jax.system.textfiles import form

# Frames shown of a video.
SHOWN = 4


def gathered(pairs: Sequence[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Paths by name, in order."""
    found: dict[str, list[Path]] = {}
    for name, path in pairs:
        found.setdefault(name, []).append(path)
    return found


def radar(path: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws the normalised dimensions of VBench (Figure 6); `models` are those of score.json.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: a model that lacks a dimension.
    """
    made = figure(7.5, 6.5)
    axes = made.subplots(subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(DIMENSIONS), endpoint=False)
    for name, model in models.items():
        try:
            values = [model["rows"][dimension]["score"] for dimension in DIMENSIONS]
        except (KeyError, TypeError):
            raise InputError(
                f"--scores: expected all {len(DIMENSIONS)} dimensions of {name!r}, found some missing; "
                "evaluate them, or score with --leaderboard_zero"
            ) from None
        (line,) = axes.plot([*angles, 0.0], [*values, values[0]], marker=".", label=name)
        axes.fill([*angles, 0.0], [*values, values[0]], alpha=0.08, color=line.get_color())
    axes.set_xticks(angles, [name.replace("_", "\n") for name in DIMENSIONS], fontsize=8)
    axes.set(ylim=(0, 1), yticks=[0.25, 0.5, 0.75, 1.0])
    made.legend(loc="outside lower center", ncols=3)
    save(made, path)


def trained(models: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """Models that are named NAME@ITERATION, by name and iteration."""
    found: dict[str, dict[int, Any]] = {}
    for whole, model in models.items():
        name, _, iteration = whole.rpartition("@")
        if name and iteration.isdecimal():
            found.setdefault(name, {})[int(iteration)] = model
    return found


def progress(path: Path, models: Mapping[str, Mapping[int, Any]]) -> None:
    """Draws VBench's three scores over iterations, by name and iteration; incomplete ones are left out.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: entries that are no scores.
    """
    made = figure(11.0, 3.6)
    for axes, score in zip(made.subplots(1, 3), ("total", "quality", "semantic"), strict=True):
        for name, scored in models.items():
            try:
                points = [(i, m[score]) for i, m in sorted(scored.items()) if m[score] is not None]
                axes.plot(*np.array(points, float).reshape(-1, 2).T, marker=".", label=name)
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"--scores: expected what `vbench score` writes of {name!r}, found no {score!r} of it"
                ) from None
        axes.set(title=f"VBench, {score}", xlabel="iteration")
    made.legend(*made.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(made, path)


def strips(path: Path, folders: Mapping[str, Path]) -> None:
    """Draws videos of the same names, a row a folder, a few frames of each from first to last.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: no mp4 file of one name lies in all folders, or one cannot be read.
    """
    files = [
        {form(file.name): file for file in sorted(folder.glob("*.mp4"))}
        for folder in folders.values()
    ]
    shared = sorted(set.intersection(*map(set, files))) if files else []
    if not shared:
        raise InputError(
            f"expected mp4 files of the same names in {list(map(str, folders.values()))}, found none"
        )
    columns = SHOWN * len(shared)
    made = figure(0.75 * columns + 1.8, 0.8 * len(folders) + 0.5)
    grid = made.subplots(len(folders), columns, squeeze=False)
    for row, title, there in zip(grid, folders, files, strict=True):
        row[0].set_ylabel(textwrap.fill(title, 22), rotation=0, ha="right", va="center", fontsize=8)
        for n, name in enumerate(shared):
            frames, _ = read_video(there[name])
            for i in range(SHOWN):
                axes = row[SHOWN * n + i]
                axes.imshow(frames[i * (len(frames) - 1) // (SHOWN - 1)], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
    for n, name in enumerate(shared):
        words = Path(name).stem.replace("_", " ")
        grid[0][SHOWN * n].set_title(words, fontsize=8, loc="left")
    save(made, path)


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.figures"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--out", required=True, type=any_path, help="folder")
    add("--curvature", type=named, nargs="+", default=(), metavar="NAME=FILE", help="reports")
    add(
        "--runs", type=named, nargs="+", default=(), metavar="NAME=FOLDER", help="folders of stages"
    )
    add("--scores", type=any_path, help="score.json")
    add(
        "--videos",
        type=named,
        nargs="+",
        default=(),
        metavar="NAME=FOLDER",
        help="folders of mp4 files",
    )
    args = parser.parse_args(arguments)
    with ending("figures that are written stay"):
        if not (args.curvature or args.runs or args.scores or args.videos):
            parser.error("expected something to draw: --curvature, --runs, --scores or --videos")
        draw(args)


def draw(args: argparse.Namespace) -> None:
    """Draws what the options name.

    Raises:
      InputError: files that are missing or hold something else.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    if args.curvature:
        reports = {name: read_record(path, "latents") for name, path in args.curvature}
        curvature.plot(args.out / "figure3_curvature.png", reports)
    if args.runs:
        runs = gathered(args.runs)
        curves.plot(args.out / "figure4_logit_gap.png", runs, curves.GAP)
        curves.plot(args.out / "figure5_losses.png", runs)
    if args.scores:
        scores = read_record(args.scores)
        over = trained(scores)
        last = {name: f"{name}@{max(scored)}" for name, scored in over.items()}
        shown = [name for name in scores if "@" not in name or name in last.values()]
        radar(args.out / "figure6_vbench.png", {name: scores[name] for name in shown})
        if over:
            progress(args.out / "vbench_over_iterations.png", over)
    if args.videos:
        strips(args.out / "strips.png", dict(args.videos))
    for file in sorted(args.out.glob("*.png")):
        print(file)


if __name__ == "__main__":
    main()
