"""One GPU at its limit, in less than eight minutes: what it does at best, streaming, the VAE, both updates,
and the recorded vectors of the tests.

    python tools/bench.py gpu --out=gpu                       # writes gpu/gpu.json
    python tools/bench.py gpu --out=gpu --parts=updates       # again, one part; the others stay
    python tools/bench.py gpu --out=gpu --page=docs/gpu.md    # nothing runs; a page of gpu/gpu.json

Each part is a process with a limit of seconds, and is written as it grows: what fails costs itself alone.
Beside the measured times the page has the predicted ones of plans that lie in the same folder:

    python tools/plan.py train --config=configs/framewise.py --target=gpu:h200:1 \\
        --config.stages.one_forcing.batch=1 --out=gpu/plan_train.json
    python tools/plan.py generate --config=configs/framewise.py --target=gpu:h200:1 \\
        --out=gpu/plan_generate.json

A machine without a network takes what it lacks from a folder of wheels that was filled elsewhere. Needed are
JAX for its CUDA, flax, optax, orbax-checkpoint, tensorstore, einops, tqdm, tokenizers, pillow, grain with
array_record, ml_collections, tensorboardX; for the vectors pytest, pytest-xdist, hypothesis. PyAV is not.

    pip download --no-deps --only-binary=:all: --python-version=3.12 --platform=manylinux_2_28_x86_64 \\
        --dest=wheels grain array_record ml_collections tensorboardX
    pip install --no-index --no-deps --target=site wheels/*.whl; export PYTHONPATH=site:.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.bench import gpu_page
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import places
from oneforcing_jax.system.command import any_path, commit, printed
from oneforcing_jax.system.files import read_record, write_whole

ROOT = Path(__file__).parents[2]
FILE = "gpu.json"
# Parts in the order of their worth, and the most seconds that each may take.
PARTS = dict(zip(gpu_page.PARTS, (90, 130, 90, 300, 180), strict=True))
# Seconds of all, and how many must be left for a part to begin.
WHOLE, LEAST = 470, 20
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13",
            "nvidia-cudnn-cu12", "nvidia-cublas", "flax", "numpy")  # fmt: skip
# What nvidia-smi is asked about the card.
CARD = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
# Says the commit where the code lies without its repository.
COMMIT = "ONEFORCING_COMMIT"


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    add = parser.add_argument
    add(
        "--config",
        default="framewise",
        help="a Python file with get_config(), or the name of one of ours: toy",
    )
    add("--parts", type=_parts, default=tuple(PARTS), help="of these, in this order")
    add("--page", type=any_path, help="write the page of what the folder holds, and run nothing")


def _parts(text: str) -> tuple[str, ...]:
    asked = text.split(",")
    if unknown := set(asked) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"expected some of {','.join(PARTS)}, found {sorted(unknown)[0]!r}"
        )
    return tuple(part for part in PARTS if part in asked)


def run(given: argparse.Namespace, overrides: Sequence[str]) -> None:
    """One GPU: its ceilings, streaming, the VAE, both updates, recorded vectors; --out names a folder

    Raises:
      InputError, MissingInput: no folder, or nothing in it to make a page of.
    """
    if given.out is None or places.is_url(given.out):
        raise InputError(f"out: expected a folder of this machine, found {given.out}; give --out")
    file = given.out / FILE
    if given.page:
        if not file.is_file():
            raise MissingInput(f"{file}: expected a measurement, found none; run it without --page")
        write_whole(given.page, gpu_page.page(read_record(file), plans(given.out)).encode())
        return
    places.make(given.out)
    made = facts(given.config)
    before = read_record(file) if file.is_file() else {}
    same = all(before.get(name) == made[name] for name in made if name != "when")
    made["parts"] = before["parts"] if same else {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for part in given.parts:
            left = WHOLE - (time.monotonic() - began)
            if left < LEAST:
                found: dict[str, Any] = {"error": f"not begun: {left:.0f} of {WHOLE} s were left"}
            else:
                found = _run(part, given.config, overrides, Path(scratch), min(left, PARTS[part]))
            print(f"{part}: {found.get('seconds', 0):.0f} s {found.get('error', '')}", flush=True)
            made["parts"][part] = found
            write_whole(file, (json.dumps(made, indent=1) + "\n").encode())
    print(gpu_page.page(made, plans(given.out)))


def plans(folder: Path) -> list[dict[str, Any]]:
    """What tools/plan.py wrote in a folder."""
    return [read_record(file) for file in sorted(folder.glob("plan*.json"))]


def facts(config: str) -> dict[str, Any]:
    """When, what, and on which machine."""
    asked = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    card = printed(asked).partition("\n")[0].split(", ")
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get(COMMIT) or commit(),
        "card": dict(zip(CARD, card, strict=True)) if len(card) == len(CARD) else {},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions,
        "config": config,
    }  # fmt: skip


def _run(
    part: str, config: str, overrides: Sequence[str], scratch: Path, limit: float
) -> dict[str, Any]:
    """What a part found in a process of its own, its "seconds", and an "error" if it did not end well."""
    file, errors = scratch / f"{part}.json", scratch / f"{part}.txt"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    cache = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "xla")}
    module = [sys.executable, "-m", "oneforcing_jax.bench.gpu_parts"]
    start, reason = time.monotonic(), ""
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            [*module, part, config, str(file), *overrides],
            env=cache | os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stderr=stderr,
            start_new_session=True,  # so that its own children end with it
        )
        try:
            code = child.wait(limit)
            reason = f"ended with {code}: {_last(errors)}" if code else ""
        except subprocess.TimeoutExpired:
            reason = f"took longer than {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    found = json.loads(file.read_bytes()) if file.is_file() else {}
    if reason:
        print(errors.read_text(errors="replace")[-3000:], file=sys.stderr)
        found.setdefault("error", reason)
    return found | {"seconds": time.monotonic() - start}


def _last(file: Path) -> str:
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
