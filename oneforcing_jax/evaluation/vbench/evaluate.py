"""VBench's own evaluator, one dimension after the other.

It pins packages that ours do not work with, so it runs in an environment of its own, by that one's Python.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.evaluation.vbench import results
from oneforcing_jax.evaluation.vbench.check import listed, rename, respelt
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.evaluation.vbench.suite import Suite, names
from oneforcing_jax.system import bounded
from oneforcing_jax.system.files import read_record

# What that Python runs: the call of VBench's guide, for one dimension.
PROGRAM = """
import sys, torch, vbench
device, info, out, videos, dimension = sys.argv[1:]
evaluator = vbench.VBench(torch.device(device), info, out)
evaluator.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension])
"""
HAS_VBENCH = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('vbench'))"


def run(
    suite: Suite, dimensions: Sequence[str], videos: Path, out: Path, *, samples: int,
    python: str, device: str, partial: bool,
) -> None:  # fmt: skip
    """Evaluates the dimensions that have no result yet.

    Args:
      suite: VBench's JSON list.
      dimensions: of its 16; empty: all.
      videos: their folder.
      out: folder of the results, DIMENSION_eval_results.json.
      samples: expected of each prompt.
      python: of the environment in which VBench is installed.
      device: for VBench, as PyTorch names it.
      partial: accept that videos are missing; VBench skips them.

    Raises:
      MissingInput, InputError: missing videos, results of other videos, or a VBench that failed.
      MissingPackage: no VBench in that environment.
    """
    if suite.dimensions is None:
        raise InputError(f"--vbench: expected VBench's JSON list or a checkout, found {suite.path}")
    wanted, videos = dimensions or list(DIMENSIONS), videos.resolve()
    todo = [name for name in wanted if not _is_done(_result(out, name), name, videos)]
    present = listed(videos)
    if others := sorted(file for file in present if not file.endswith(".mp4")):
        raise InputError(
            f"{videos}: expected nothing but .mp4 files, found {others[0]!r}: VBench takes the ending of all "
            "videos from the first file of their folder; move it elsewhere"
        )
    for name in todo:
        expected = names(suite.prompts([name]), samples)
        for file, found in respelt(expected, present).items():
            raise InputError(f"{videos}: expected {file!r}, {rename(file, found)}")
        missing = [file for file in expected if file not in present]
        if len(missing) == len(expected) or (missing and not partial):
            raise InputError(
                f"{name}: expected {len(expected):,} videos in {videos}, found {len(missing):,} missing, "
                f"such as {missing[0]!r}; `make` makes them, and --partial evaluates the others"
            )
    if todo:
        _find(python)
    for name in tqdm(todo, unit="dimension", disable=None):
        _evaluate(suite, name, videos, _result(out, name), python, device)
    print(f"results in {out}: {', '.join(wanted)}")


def _result(out: Path, dimension: str) -> Path:
    return out / f"{dimension}_eval_results.json"


def _is_done(file: Path, dimension: str, videos: Path) -> bool:
    """Whether there is a result, of these videos."""
    if not file.exists():
        return False
    if dimension not in results.scores(str(file), bounded.content(file)):
        raise InputError(f"{file}: expected a score of {dimension}, found none; remove it")
    parts = [part for part in read_record(file)[dimension] if isinstance(part, list)]
    for row in (row for part in parts for row in part if isinstance(row, dict)):
        if "video_path" in row and Path(row["video_path"]).parent != videos:
            raise InputError(
                f"{file}: expected results of {videos}, found one of {row['video_path']}; choose "
                "another --out"
            )
    return True


def _find(python: str) -> None:
    """Refuses a Python that has no VBench."""
    try:
        found = subprocess.run([python, "-c", HAS_VBENCH], check=False).returncode == 0
    except OSError as error:
        raise InputError(f"--python: cannot run {python}: {error.strerror}; name another") from None
    if not found:
        raise MissingPackage(
            f"{python}: expected the package vbench, found none; install it in an environment of its own, by "
            "its guide, and name that one's --python"
        )


def _evaluate(
    suite: Suite, dimension: str, videos: Path, result: Path, python: str, device: str
) -> None:
    result.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, so that a result takes its name when it is whole.
    with tempfile.TemporaryDirectory(prefix=".", dir=result.parent) as folder:
        given = [device, suite.path.resolve(), Path(folder).resolve(), videos, dimension]
        ended = subprocess.run([python, "-c", PROGRAM, *map(str, given)], check=False)
        if ended.returncode:
            raise InputError(
                f"{dimension}: VBench ended with exit code {ended.returncode}, for the reason above; the "
                "same command continues"
            )
        written = Path(folder) / result.name
        if dimension not in results.scores(str(written), bounded.content(written)):
            raise InputError(f"{written}: expected a score of {dimension}, found none")
        os.replace(written, result)
