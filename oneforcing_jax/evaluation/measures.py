"""Measures videos without any network: flickering, motion, drift, jumps between blocks, PSNR and SSIM.

    python -m oneforcing_jax.evaluation.measures videos --out=measures.json
    python -m oneforcing_jax.evaluation.measures bfloat16 int8 --against=float32 --out=precisions.json
    python -m oneforcing_jax.evaluation.measures long --window=48 --block=12 --first_block=9 --out=long.json
    python -m oneforcing_jax.evaluation.measures videos --features=i3d.npy --real_features=real.npy \\
        --out=frechet.json

Writes OUT, and beside it a plot of every measure over time. The same command continues an interrupted one.
docs/measures.md says what each measure is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.captions import videos_in
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation import frechet, pixels
from oneforcing_jax.evaluation.curvature import interval
from oneforcing_jax.evaluation.drawing import figure, save
from oneforcing_jax.evaluation.pixels import OF_FRAMES, OF_PAIRS, Parts
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import read_record, write_whole

TITLES = {
    "sharpness": "sharpness",
    "saturation": "saturation",
    "luminance": "luminance",
    "change": "change from frame to frame",
    "motion": "motion, pixels a frame",
    "motion_top": "motion of the fastest 5%",
}
# Seconds from one saving to the next.
SAVE_EVERY = 10.0
Rows = dict[str, dict[str, Any]]


def videos_of(folder: Path) -> dict[str, Path]:
    """The videos in a folder by their names, see `captions.videos_in`.

    Raises:
      MissingInput, InputError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise MissingInput(f"expected a folder of videos, found none at {folder}")
    return videos_in(folder)


def check_names(folder: Path, names: Mapping[str, Path], against: Mapping[str, Path]) -> None:
    """Refuses folders whose videos have other names.

    Raises:
      InputError: names a video that one of them lacks.
    """
    if differ := sorted(names.keys() ^ against.keys()):
        raise InputError(
            f"--against: expected videos of the same names as in {folder}, found {differ[0]!r}"
            + (f" and {len(differ) - 1} more" if len(differ) > 1 else "")
            + " in one of them alone; name folders of the same videos"
        )


def _stamp(*files: Path) -> list[list[int]]:
    """What changes with a file."""
    return [[stat.st_size, stat.st_mtime_ns] for stat in (file.stat() for file in files)]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def measure(files: Sequence[Path], before: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a video, and of the one it is compared with; that of before where files are the same."""
    stamp = _stamp(*files)
    if before.get("files") == stamp:
        return dict(before)
    found = {name: _rounded(row) for name, row in pixels.series(files[0]).items()}
    row: dict[str, Any] = {"files": stamp, "series": found}
    if len(files) == 2:
        row["likeness"] = pixels.likeness(*files)
    return row


def summarised(values: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Each measure over videos: mean, standard error, interval of 95%, and how many have it."""
    found = {}
    for name in values[0]:
        known = np.array([value for row in values if (value := row[name]) is not None])
        stats = interval(known) if len(known) else {}
        finite = {k: v for k, v in stats.items() if math.isfinite(v)}
        found[name] = {"mean": None, "standard_error": None, **finite, "videos": len(known)}
    return found


def report(args: argparse.Namespace) -> None:
    """Measures what is missing, writes the report, and draws the plot."""
    parts = options(Parts, vars(args))
    folders = {str(folder): videos_of(folder) for folder in args.folders}
    others = videos_of(args.against) if args.against else None
    for folder, videos in folders.items() if others is not None else ():
        check_names(Path(folder), videos, others or {})
    distances = _distances(args)
    # Now, because packages that are missing are to be known before hours of work.
    made = figure(11, 6)
    rows = _known(args.out, str(args.against))
    rows = {folder: dict(rows.get(folder, {})) for folder in folders}
    _measure_all(args, folders, others, rows)
    content: dict[str, Any] = {"parts": dataclasses.asdict(parts), "folders": {}}
    for folder, videos in folders.items():
        values = {
            name: pixels.summary(file, rows[folder][name]["series"], parts)
            | rows[folder][name].get("likeness", {})
            for name, file in videos.items()
        }
        means = summarised(list(values.values()))
        content["folders"][folder] = {"means": means, "videos": values}
        if folder in distances:
            content["folders"][folder]["frechet"] = distances[folder]
    _save(args, rows, content)
    show(content)
    _plot(made, {folder: [rows[folder][n]["series"] for n in v] for folder, v in folders.items()})
    save(made, args.out.with_suffix(".png"))


def _known(out: Path, against: str) -> dict[str, Rows]:
    """Rows of an earlier report, where it compared with the same folder."""
    before = read_record(out) if out.exists() else {}
    if before and not isinstance(before.get("rows"), dict):
        raise InputError(f"{out}: expected nothing or a report of measures; choose another --out")
    return before["rows"] if before.get("against") == against else {}


def _measure_all(
    args: argparse.Namespace,
    folders: Mapping[str, Mapping[str, Path]],
    others: Mapping[str, Path] | None,
    rows: dict[str, Rows],
) -> None:
    """Fills in the rows of all videos; what is done is saved from time to time, and on an error."""
    work = [(folder, name, file) for folder, v in folders.items() for name, file in v.items()]
    _save(args, rows, {})  # a place that cannot be written is to be known now
    saved = time.monotonic()
    try:
        for folder, name, file in tqdm(work, desc="measures", unit="video"):
            files = [file, *([others[name]] if others is not None else [])]
            rows[folder][name] = measure(files, rows[folder].get(name, {}))
            if time.monotonic() - saved > SAVE_EVERY:
                _save(args, rows, {})
                saved = time.monotonic()
    except BaseException:
        _save(args, rows, {})
        raise


def _save(args: argparse.Namespace, rows: dict[str, Rows], content: Mapping[str, Any]) -> None:
    whole = {**content, "against": str(args.against), "rows": rows}
    write_whole(args.out, (json.dumps(whole) + "\n").encode())


def _distances(args: argparse.Namespace) -> dict[str, dict[str, float | int]]:
    """Fréchet distances of the folders' features to the real ones.

    Raises:
      MissingInput, InputError: features that cannot be used, or one kind without the other.
    """
    if bool(args.features) != bool(args.real_features) or (
        args.features and len(args.features) != len(args.folders)
    ):
        raise InputError(
            f"--features, --real_features: expected one file for each of {len(args.folders)} folders and "
            f"one of real videos, or neither, found {len(args.features)} and {bool(args.real_features):d}"
        )
    if not args.features:
        return {}
    real, made = frechet.read_features(args.real_features), {}
    for folder, file in zip(args.folders, args.features, strict=True):
        found = frechet.read_features(file)
        made[str(folder)] = {
            "distance": frechet.distance(found, real), "videos": len(found), "real_videos": len(real),
        }  # fmt: skip
    return made


def show(content: Mapping[str, Any]) -> None:
    """Prints the means of every folder."""
    for folder, found in content["folders"].items():
        print(f"{folder}: {len(found['videos'])} videos")
        for name, means in found["means"].items():
            mean, error = means["mean"], means["standard_error"]
            told = "none" if mean is None else f"{mean:.5g}"
            print(f"  {name:<20} {told}" + ("" if error is None else f" ± {error:.2g}"))
        if "frechet" in found:
            print(f"  {'frechet':<20} {found['frechet']['distance']:.5g}")


def _plot(made: Any, folders: Mapping[str, Sequence[pixels.Series]]) -> None:
    """Draws every measure over time, the mean over the videos of each folder, as far as all of them go."""
    for axes, name in zip(made.subplots(2, 3).flat, OF_FRAMES + OF_PAIRS, strict=True):
        for folder, videos in folders.items():
            shortest = min(len(video[name]) for video in videos)
            axes.plot(np.mean([video[name][:shortest] for video in videos], 0), label=folder)
        axes.set(title=TITLES[name], xlabel="frame", ylim=(0, 1.1 * axes.dataLim.y1 or 1))
    made.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.measures"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=any_path, help="of videos")
    add("--against", type=any_path, help="folder of the same videos, for PSNR and SSIM")
    add("--window", type=int, help="frames at either end, for drift; default a quarter of a video")
    add("--block", type=int, help="frames of a block, for jumps between blocks")
    add("--first_block", type=int, help="frames of the first block; default as the others")
    feature_files = ".npy [videos, d] of a network of yours, one file for each folder"
    add("--features", type=any_path, nargs="+", default=[], help=feature_files)
    add("--real_features", type=any_path, help=".npy [videos, d] of real videos")
    add("--out", required=True, type=any_path, help=".json; the plot is a .png beside it")
    args = parser.parse_args(arguments)
    with ending("the same command continues after the finished videos"):
        report(args)


if __name__ == "__main__":
    main()
