"""Kills a real training again and again, and checks that nothing is lost and nothing is different.

    python tools/kill_test.py --kills=30 --stage=teacher

A tiny network (configs/noise.py) trains once undisturbed, and once with SIGKILL at random moments,
started again each time by the same command. No checkpoint that was whole may be lost or damaged. At the end
parameters, optimisers, averages and the metrics of each iteration must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from oneforcing_jax import checkpoint, methods
from oneforcing_jax import config as configs
from oneforcing_jax.run import Run
from oneforcing_jax.training import tiny
from oneforcing_jax.training.metrics import RATES, read_rows

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "noise.py"
STAGES = ("one_forcing", "teacher")
# This share of the kills comes at any time of a start-up. The others come after one to so many iterations,
# and up to the time of two more.
EARLY, MOST = 0.2, 12


class Kill(NamedTuple):
    """One line of the report: what stood there when the process had been killed."""

    seconds: float
    phase: str
    row: int
    checkpoint: int
    unfinished: int


def make_store(folder: Path) -> None:
    """A store of noise in the shapes of the config."""
    run = Run.of(configs.load(CONFIG))
    tiny.write_noise(folder, methods.make(STAGES[0], run).fields)


def command(workdir: Path, *overrides: str) -> list[str]:
    """The command line of a run, with other values of fields."""
    main = [sys.executable, "-m", "oneforcing_jax.main", f"--config={CONFIG}"]
    return [*main, f"--workdir={workdir}", *(f"--config.{field}" for field in overrides)]


def environment(compiled: Path) -> dict[str, str]:
    """One device, and every compiled program kept, so that a start takes seconds."""
    return os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def checkpoints(folder: Path) -> tuple[list[Path], int]:
    """Whole checkpoints in order, and the number of directories that are none."""
    entries = [p for p in (folder / checkpoint.FOLDER).glob("[0-9]*") if p.is_dir()]
    whole = sorted((p for p in entries if p.name.isdigit()), key=lambda p: int(p.name))
    return whole, len(entries) - len(whole)


def read(checkpoint: Path) -> dict[str, np.ndarray]:
    """All leaves of all items of a checkpoint."""
    leaves = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in sorted(p for p in checkpoint.iterdir() if "_" in p.name and p.is_dir()):
            for path, leaf in jax.tree_util.tree_leaves_with_path(checkpointer.restore(item)):
                leaves[item.name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


@contextlib.contextmanager
def running(
    arguments: list[str], env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards."""
    with (
        log.open("ab") as out,
        subprocess.Popen(arguments, env=env, cwd=ROOT, stdout=out, stderr=out) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def kill_once(
    arguments: list[str], env: dict[str, str], folder: Path, new_rows: int, delay: float
) -> Kill | None:
    """Starts the run, waits for so many new rows of metrics, and kills it `delay` seconds later; None if
    it ended before."""
    log = folder.parent / "log.txt"
    with running(arguments, env, log) as process:
        start, least = time.perf_counter(), len(read_rows(folder))
        while new_rows and process.poll() is None:
            # A start first removes the rows that were written after the last checkpoint.
            found = len(read_rows(folder))
            least = min(least, found)
            if found >= least + new_rows:
                break
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        ended = process.wait()
        seconds = time.perf_counter() - start
    if ended >= 0:
        if ended:
            raise RuntimeError(f"a start failed: {log.read_text().strip().splitlines()[-1]}")
        return None
    whole, unfinished = checkpoints(folder)
    phase = "saving" if unfinished else "training" if new_rows else "start-up"
    row = max((r["iteration"] for r in read_rows(folder)), default=0)
    return Kill(seconds, phase, row, int(whole[-1].name) if whole else 0, unfinished)


def differences(undisturbed: Path, killed: Path) -> list[str]:
    """What the two runs do not have in common, in words."""
    found = []
    ends = [checkpoints(folder)[0][-1] for folder in (undisturbed, killed)]
    expected, state = map(read, ends)
    if ends[0].name != ends[1].name or expected.keys() != state.keys():
        found.append(f"the last checkpoints are {ends[0]} and {ends[1]}, or hold other leaves")
    else:
        found += [
            f"{name} differs" for name, x in expected.items() if not np.array_equal(x, state[name])
        ]
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(RATES)} for row in read_rows(folder)]
        for folder in (undisturbed, killed)
    ]
    if [row["iteration"] for row in rows[1]] != [row["iteration"] for row in rows[0]]:
        found.append("metrics.jsonl has other iterations, or an iteration twice")
    found += [
        f"metrics of iteration {a['iteration']} differ"
        for a, b in zip(*rows, strict=False)
        if a != b
    ]
    return found


def test(
    folder: Path, stage: str, kills: int, seed: int, iterations: int
) -> tuple[list[Kill], list[str], dict[str, float]]:
    """Both runs: the kills, what went wrong, and times in seconds."""
    rng, env = random.Random(seed), environment(folder / "compiled")
    make_store(folder / "noise")

    def arguments(name: str, count: int) -> list[str]:
        (folder / name).mkdir(exist_ok=True)
        fields = {"iterations": count, "data": folder / "noise"}
        return command(
            folder / name, f"run={stage}", *(f"stages.{stage}.{k}={v}" for k, v in fields.items())
        )

    def finish(name: str, count: int) -> None:
        begun, log = time.perf_counter(), folder / name / "log.txt"
        with running(arguments(name, count), env, log) as process:
            if process.wait():
                raise RuntimeError(f"{name}: a run failed: {log.read_text().strip()[-300:]}")
        times[name] = time.perf_counter() - begun

    times: dict[str, float] = {}
    for name, count in (("first start", 1), ("start", 1), ("undisturbed", iterations)):
        finish(name, count)
    pace = max(times["undisturbed"] - times["start"], 1.0) / iterations
    report: list[Kill] = []
    wrong: list[str] = []
    killed = folder / "killed" / stage
    for number in tqdm(range(1, kills + 1), desc="kill", unit="kill"):
        new_rows = 0 if rng.random() < EARLY else rng.randint(1, MOST)
        delay = rng.uniform(0, 2 * pace if new_rows else times["start"])
        last = report[-1].checkpoint if report else 0
        kill = kill_once(arguments("killed", iterations), env, killed, new_rows, delay)
        if kill is None:
            wrong.append(f"the run ended after {len(report)} kills; give it more --iterations")
            break
        report.append(kill)
        if kill.checkpoint < last:
            wrong.append(f"kill {number}: checkpoint {last} was whole and is lost")
        for path in checkpoints(killed)[0]:
            try:
                read(path)
            except Exception as error:
                wrong.append(f"kill {number}: {path} cannot be read: {error}")
    finish("killed", iterations)
    return report, wrong + differences(folder / "undisturbed" / stage, killed), times


def table(report: Sequence[Kill]) -> str:
    """The kills as text."""
    head = ("kill", "after s", "in", "last row", "checkpoint", "unfinished")
    rows: list[tuple[str, ...]] = [head]
    for i, k in enumerate(report, 1):
        rows.append((str(i), f"{k.seconds:.2f}", k.phase, *map(str, k[2:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit code 1 when something was lost or differs."""
    parser = argparse.ArgumentParser(prog="kill_test", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stage", choices=STAGES, default=STAGES[0])
    parser.add_argument("--iterations", type=int, help="of the training; default: 6 a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--folder", type=Path, help="an empty one to work in; default: a temporary one"
    )
    known = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (known.folder or Path(temporary)).absolute()
        iterations = known.iterations or 6 * known.kills + 6
        try:
            report, wrong, times = test(folder, known.stage, known.kills, known.seed, iterations)
        except (RuntimeError, OSError) as error:
            sys.exit(f"error: {error}")
    print(table(report))
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(report)} kills: no checkpoint lost, {iterations} iterations equal bit for bit")


if __name__ == "__main__":
    main()
