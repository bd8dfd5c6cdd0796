"""Kills one of several processes again and again, goes on with fewer on other meshes, and compares the end.

    python tools/kill_processes.py --kills=10 --folder=build/processes
    python tools/kill_processes.py --kills=10 --folder=build/processes --place=s3://BUCKET/NAME

Four processes of two virtual devices each render and encode videos, train on them, and make ODE pairs of what
they trained. One of them is killed at a random moment, by SIGKILL or SIGTERM; the others must end by
themselves, with their exit code and a line that names it. The same command goes on, in the end with three
processes and then with two. What is there then must be what one process makes alone: the same files,
iterations and samples, once each, numbers equal to round-off, and whole checkpoints. With --place the work
that is killed is done in a bucket.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kill_stages import HALF, checkpoints, environment, read, running
from kill_stages import get_config as stages
from tqdm import tqdm

from oneforcing_jax.data.store import Store
from oneforcing_jax.system import checkpoint, integrity, places, saved
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.group import AGAIN
from oneforcing_jax.training.metrics import RATES, read_rows

TRAINED, STORES = "teacher_forcing", ("world/store", "ode_pairs/store")
ITERATIONS, VIDEOS, PAIRS, BATCH, DEVICES = 12, 24, 36, 12, 2
# Processes, and the axes of their mesh, in the order in which hosts go away.
MESHES = {4: "data=4,sequence=2", 3: "data=6,sequence=1", 2: "data=2,fsdp=2,sequence=1"}
ALONE = "data=2,sequence=1"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
# Seconds: after which a process counts as lost; that the others have to end then; for all the work.
LOST_AFTER, PATIENCE, HANG, LOOK = 10.0, 300.0, 900.0, 0.02
# The command, and with a lock of a bucket that is lost sooner.
COMMAND = ("-m", "oneforcing_jax.main")
HASTY = (
    "-c",
    "from oneforcing_jax.main import main; from oneforcing_jax.system import lock; "
    "lock.RENEW, lock.LEASE = 1, 8; main()",
)
# Numbers of one process and of several: their sums have other orders.
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-5}


def get_config() -> Any:
    """The config."""
    c = stages()
    c.stages.world.count = VIDEOS
    for stage in (c.stages[TRAINED], c.stages.ode_pairs):
        stage.data, stage.batch = STORES[0], BATCH
    c.stages[TRAINED].iterations, c.stages[TRAINED].checkpoint_every = ITERATIONS, 2
    c.stages.ode_pairs.count = PAIRS
    c.run = ("world", TRAINED, "ode_pairs")
    return c


class Fleet:
    """Processes that do the work in a folder together."""

    def __init__(self, out: Path, count: int, mesh: str, compiled: Path, logs: Path) -> None:
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        env = environment(compiled)
        env["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
        env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={DEVICES}"
        main = [sys.executable, *(HASTY if places.is_url(out) else COMMAND), f"--config={__file__}"]
        axes = [f"--config.mesh.{axis}" for axis in mesh.split(",")]
        joined = [f"--coordinator=localhost:{port}", f"--process_count={count}"]
        joined += [f"--lost_after={LOST_AFTER}"]
        number = len(list(logs.iterdir()))
        self.logs = [logs / f"{number + i:03d}.txt" for i in range(count)]
        self._stack = contextlib.ExitStack()
        self.all = [
            self._stack.enter_context(
                running(
                    [*main, f"--workdir={out}", *axes, *(joined if count > 1 else [])]
                    + ([f"--process_id={i}"] if count > 1 else []),
                    env,
                    log,
                )
            )
            for i, log in enumerate(self.logs)
        ]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> list[int]:
        """Exit codes, after all have ended by themselves.

        Raises:
          TimeoutExpired: one has not.
        """
        until = time.monotonic() + seconds
        return [p.wait(max(until - time.monotonic(), 0.01)) for p in self.all]

    def said(self) -> list[str]:
        """The last line of each; a progress bar begins lines, too."""
        texts = (log.read_text(errors="replace").replace("\r", "\n") for log in self.logs)
        return [([""] + text.strip().splitlines())[-1].strip() for text in texts]


def progress(out: Path) -> int:
    """Videos, samples and iterations that are there."""
    found = len(list(out.glob("world/videos/*.mp4"))) + len(read_rows(out / TRAINED))
    for name in STORES:
        with contextlib.suppress(ValueError):  # it is being made
            found += int(Store.open(out / name).done().sum())
    return found


class Work:
    """Work that is killed.

    Args:
      folder: of all that belongs to it.
      out: where it is done.

    Attributes:
      wrong: what was not as it must be, in words.
      ended: seconds that the others took to end after each SIGKILL.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self._out, self._logs = out, folder / "logs"
        self._compiled, self._alone = folder / "compiled", folder / "alone"
        self._logs.mkdir(parents=True)
        self.wrong, self.ended = list[str](), list[float]()
        self._finish(self._alone, 1, ALONE)
        self._total = progress(self._alone)

    def _fleet(self, out: Path, count: int, mesh: str) -> Fleet:
        return Fleet(out, count, mesh, self._compiled, self._logs)

    def _finish(self, out: Path, count: int, mesh: str) -> None:
        with self._fleet(out, count, mesh) as fleet:
            codes = fleet.wait(HANG)
            if any(codes):
                raise RuntimeError(f"undisturbed work ended with {codes}: {fleet.said()}")

    def kill(self, count: int, rng: random.Random) -> None:
        """Starts the work with so many processes, kills one of them, and looks at how the others end."""
        number, victim = rng.choice(SIGNALS), rng.randrange(count)
        before = progress(self._out)
        # After so many new pieces, and a moment.
        wanted = before + rng.randint(1, max((self._total - before) // 3, 1))
        with self._fleet(self._out, count, MESHES[count]) as fleet:
            least, until = before, time.monotonic() + HANG
            while all(p.poll() is None for p in fleet.all) and time.monotonic() < until:
                found = progress(self._out)
                least = min(least, found)  # a start takes back what was not saved
                if found - least >= wanted - before:
                    break
                time.sleep(LOOK)
            time.sleep(rng.uniform(0, 0.5))
            fleet.all[victim].send_signal(number)
            sent = time.monotonic()
            try:
                codes = fleet.wait(LOST_AFTER + PATIENCE)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"{number.name} to {victim} of {count}: the others did not end")
                return
            self._look(number, victim, codes, fleet, time.monotonic() - sent)
        self._whole()

    def _look(
        self, number: int, victim: int, codes: list[int], fleet: Fleet, seconds: float
    ) -> None:
        killed = number == signal.SIGKILL
        if not any(code for i, code in enumerate(codes) if i != victim):
            # The signal came when all was done.
            if (found := progress(self._out)) < self._total:
                self.wrong.append(f"the processes ended well with {found} of {self._total} pieces")
            return
        if killed:
            self.ended.append(seconds)
        for i, (code, line) in enumerate(zip(codes, fleet.said(), strict=True)):
            expected = 128 + number if not killed else -number if i == victim else AGAIN
            clear = "the same command" in line or "it was asked to stop" in line
            named = f"process {victim} (" in line and line.startswith("lost: ")
            if code != expected or not (i == victim or named if killed else clear):
                self.wrong.append(
                    f"{signal.Signals(number).name} to process {victim} of {len(codes)}: expected {expected} "
                    f"of process {i} and a clear line, found {code} and {line!r} ({fleet.logs[i]})"
                )

    def _whole(self) -> None:
        """What is under its name after a kill can be read."""
        for path in saved.numbered(self._out / TRAINED / checkpoint.FOLDER):
            self.wrong += (f"{path}: {words}" for words in integrity.problems(path))
        for name in STORES:
            if (self._out / name / "meta.json").is_file():
                store = Store.open(self._out / name)
                for index in np.flatnonzero(store.done()).tolist():
                    store.read(index)

    def finish(self, count: int) -> None:
        """Does the rest undisturbed, and compares it with what one process made alone."""
        self._finish(self._out, count, MESHES[count])
        self._whole()
        self.wrong += differences(self._out, self._alone)


def differences(out: Path, alone: Path) -> Iterator[str]:
    """What is not as one process made it, in words."""
    found, expected = (sorted(p.name for p in at.glob("world/videos/*.mp4")) for at in (out, alone))
    if found != expected:
        yield f"expected the videos {expected}, found {found}"
    rows, others = read_rows(out / TRAINED), read_rows(alone / TRAINED)
    if [row["iteration"] for row in rows] != list(range(1, ITERATIONS + 1)):
        yield f"expected every iteration once, found {[row['iteration'] for row in rows]}"
    for row, other in zip(rows, others, strict=False):
        for name in sorted(other):
            if not name.startswith(RATES) and not np.isclose(row[name], other[name], **CLOSE):
                yield f"iteration {row['iteration']}: {name} is {row[name]}, alone {other[name]}"
    last, other_last = (read(checkpoints(at / TRAINED)[-1]) for at in (out, alone))
    for leaf, value in other_last.items():
        if not np.allclose(last[leaf], value, **CLOSE):
            yield f"checkpoint: {leaf} differs"
    for name in STORES:
        store, other_store = Store.open(out / name), Store.open(alone / name)
        if not store.done().all() or len(store) != len(other_store):
            yield f"{name}: expected {len(other_store)} samples, found {int(store.done().sum())}"
            continue
        for index in range(len(store)):
            theirs = other_store.read(index)
            for field, array in store.read(index).items():
                if not np.allclose(array, theirs[field], **CLOSE):
                    yield f"{name}: {field} of sample {index} differs"
    if left := _half(out):
        yield f"half of a checkpoint is left: {left}"


def _half(out: Path) -> list[str]:
    """What is left of checkpoints that are not whole."""
    if not places.is_url(out):
        return [str(p) for pattern in HALF for p in out.rglob(pattern) if p.is_dir()]
    folder = out / TRAINED / checkpoint.FOLDER
    whole = {path.name for path in saved.numbered(folder)}
    numbers = {name.partition("/")[0] for name in places.sizes(folder) if "/" in name}
    return [str(folder / number) for number in sorted(numbers - whole)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit code 1 when something is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="kill_processes", description=__doc__.split("\n")[0], formatter_class=Help
    )
    parser.add_argument("--kills", type=int, default=10, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of signals, victims and moments")
    parser.add_argument("--folder", type=Path, help="to work in; default: a temporary one")
    parser.add_argument("--place", type=any_path, help="of the work; default: --folder")
    known = parser.parse_args(arguments)
    with ending("begin again"), tempfile.TemporaryDirectory() as temporary:
        folder = (known.folder or Path(temporary)).absolute()
        for name in ("work", "alone", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        out = (known.place or folder) / "work"
        places.remove(out)
        work, rng = Work(folder, out), random.Random(known.seed)
        # Three and two processes have one kill each, if there are as many, and four have the others.
        counts = ([4] * known.kills + [3, 2])[-known.kills :]
        for count in tqdm(counts, unit="kill"):
            work.kill(count, rng)
        work.finish(2)
        longest = max(work.ended, default=0.0)
        print(json.dumps({"kills": known.kills, "longest_end_s": round(longest, 1)}))
    if work.wrong:
        sys.exit("\n".join(work.wrong))
    print(f"{known.kills} kills: nothing lost or doubled, equal to one process to round-off")


if __name__ == "__main__":
    main()
