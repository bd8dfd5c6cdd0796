"""Figures of the reports, by matplotlib without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError, MissingPackage

# Frames shown of a video.
SHOWN = 4


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure; sizes in inches.

    Raises:
      MissingPackage: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage(
            'a plot needs the package matplotlib: pip install "oneforcing_jax[plots]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def strips(path: Path, folders: Mapping[str, Path]) -> None:
    """Draws videos of the same names, a row a folder, a few frames of each from first to last.

    Raises:
      MissingPackage: matplotlib is not installed.
      InputError: no mp4 file of one name lies in all folders, or one cannot be read.
    """
    names = [{file.name for file in folder.glob("*.mp4")} for folder in folders.values()]
    shared = sorted(set.intersection(*names)) if names else []
    if not shared:
        raise InputError(
            f"expected mp4 files of the same names in {list(map(str, folders.values()))}, found none"
        )
    columns = SHOWN * len(shared)
    made = figure(0.75 * columns + 1.8, 0.8 * len(folders) + 0.5)
    grid = made.subplots(len(folders), columns, squeeze=False)
    for row, (title, folder) in zip(grid, folders.items(), strict=True):
        row[0].set_ylabel(textwrap.fill(title, 22), rotation=0, ha="right", va="center", fontsize=8)
        for n, name in enumerate(shared):
            frames, _ = read_video(folder / name)
            for i in range(SHOWN):
                axes = row[SHOWN * n + i]
                axes.imshow(frames[i * (len(frames) - 1) // (SHOWN - 1)], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
    for n, name in enumerate(shared):
        words = Path(name).stem.replace("_", " ")
        grid[0][SHOWN * n].set_title(words, fontsize=8, loc="left")
    made.savefig(path, dpi=130)
