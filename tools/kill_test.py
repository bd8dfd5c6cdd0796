"""Kills real work again and again, and checks that nothing is lost and nothing is different.

    python tools/kill_test.py --stage=world --kills=30
    python tools/kill_test.py --stage=all --folder=build/kills    # continues with the stages that it lacks

The work of a stage (tools/kill_stages.py) is done twice undisturbed, and then with SIGKILL, SIGINT and
SIGTERM at random moments, started again each time by the same command. What is whole after a kill must be
what the undisturbed work has, and stay. After SIGINT and SIGTERM the process must end by itself, with their
exit codes and a clear last line. Work that is finished is compared bit for bit, and begun anew until all
kills are done.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kill_stages import (
    STAGES,
    Stage,
    command,
    differences,
    environment,
    half,
    lost,
    make_data,
    other_bytes,
    running,
    state,
)
from tqdm import tqdm

from oneforcing_jax.system import checkpoint
from oneforcing_jax.system.command import Help, ending

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# This share of the kills comes at any time of a start-up, once the interpreter is there. The others come
# after up to this part of the work, and up to the time of two more units of it.
EARLY, INTERPRETER, PART = 0.2, 0.5, 0.2
# Seconds that a process has to end when it is asked to, and for all its work; and between two looks at it.
PATIENCE, HANG, LOOK = 300.0, 900.0, 0.01
# A clear last line has the first words; no output has any of the others.
CLEAR = "the same command"
UNCLEAR = ("Traceback", "Exception ignored", "Fatal Python error", "terminate called")
PHASES = ("start-up", "working", "saving", "ending")
ALL, RESULT = "all", "result.json"


class Plan(NamedTuple):
    """When a kill comes: so many seconds after so many new units of the work, or after the start."""

    number: signal.Signals
    units: int
    delay: float


class Kill(NamedTuple):
    """One line of the report: what came when, what stood there then, and how long the process took to end."""

    signal: str
    seconds: float
    phase: str
    progress: int
    unfinished: int
    ended: float


def last_line(log: Path) -> str:
    """The last line that a process said; a progress bar begins lines too."""
    return re.split(r"[\r\n]+", log.read_text(errors="replace").strip())[-1].strip()


def unclear(number: signal.Signals, code: int, log: Path, finished: bool) -> list[str]:
    """What was not clear when a process had ended after a signal, in words; without work it owes no line."""
    said, last = log.read_text(errors="replace"), last_line(log)
    wrong = [f"it said {words!r}" for words in UNCLEAR if words in said]
    if number != signal.SIGKILL and not finished:
        if code == -signal.SIGKILL:
            wrong.append(f"it did not end in {PATIENCE:.0f} s")
        elif code != 128 + number:
            wrong.append(f"expected exit code {128 + number}, found {code}")
        if CLEAR not in last:
            wrong.append(f"expected a last line with {CLEAR!r}, found {last!r}")
    return [f"{number.name}: {words} ({log})" for words in wrong]


class Trial:
    """A stage that is killed in a folder.

    Attributes:
      kills: those that were.
      wrong: what was lost, differs or is unclear, in words.
      rounds: how often the killed work was finished and compared.
      other: videos of these rounds with other bytes; their frames are compared all the same.
      left: half-written files that these rounds left behind.
      seconds: of the undisturbed work: until its first unit, and in all.
    """

    def __init__(self, stage: Stage, folder: Path, compiled: Path) -> None:
        self._stage, self._env = stage, environment(compiled)
        self._given, self._logs, self._out = folder / "given", folder / "logs", folder / "work"
        self.kills, self.wrong = list[Kill](), list[str]()
        self.rounds = self.other = self.left = 0
        shutil.rmtree(folder, ignore_errors=True)
        self._logs.mkdir(parents=True)
        self._given.mkdir()
        make_data(self._given)
        if stage.before:
            self._run(command(self._given, f"run={','.join(stage.before)}"))
            (self._given / checkpoint.CONFIG).unlink()  # of the last run; the work writes its own
        self._begin()
        self._run(stage.command(self._out))
        first = state(self._out)
        self._begin()
        self.seconds = self._run(stage.command(self._out))
        self._end, self._total = state(self._out), stage.progress(self._out)
        self._note("undisturbed", differences(first, self._end))
        self._begin()

    def _note(self, where: str, words: Iterable[str]) -> None:
        self.wrong += (f"{where}: {line}" for line in words)

    def _begin(self) -> None:
        """Begins the work anew, with nothing but what it is given."""
        shutil.rmtree(self._out, ignore_errors=True)
        shutil.copytree(self._given, self._out)
        self._before: dict[str, str] = {}

    def _log(self) -> Path:
        return self._logs / f"{len(list(self._logs.iterdir())):03d}.txt"

    def _run(self, arguments: list[str]) -> tuple[float, float]:
        """Runs a command to its end; seconds until the first unit, and in all.

        Raises:
          RuntimeError, SubprocessError: it ended with an error, or not.
        """
        log, begun = self._log(), time.perf_counter()
        with running(arguments, self._env, log) as process:
            self._wait(process, 1)
            first = time.perf_counter() - begun
            if process.wait(HANG):
                raise RuntimeError(f"a start failed: {last_line(log)} ({log})")
        return first, time.perf_counter() - begun

    def _wait(self, process: subprocess.Popen[bytes], units: int, most: int = sys.maxsize) -> None:
        """Waits for so many new units, or for all; a start first takes back what was not saved."""
        least, until = most, time.perf_counter() + HANG
        while process.poll() is None and time.perf_counter() < until:
            found = self._stage.progress(self._out)
            least = min(least, found)
            if found >= min(least + units, most):
                return
            time.sleep(LOOK)

    def plan(self, rng: random.Random) -> Plan:
        """Draws when the next kill comes, and by which signal."""
        first, whole = self.seconds
        units = 0 if rng.random() < EARLY else rng.randint(1, max(int(self._total * PART), 1))
        span = (0.0, 2 * (whole - first) / self._total) if units else (INTERPRETER, first)
        return Plan(rng.choice(SIGNALS), units, rng.uniform(*span))

    def kill(self, plan: Plan) -> None:
        """Starts the work and kills it, and looks at what is there; what has all units is finished instead.

        Raises:
          RuntimeError: it ended with an error before.
        """
        present = self._stage.progress(self._out)
        if present >= self._total:
            self.finish()
            return
        log, halves, begun = self._log(), half(self._out), time.perf_counter()
        with running(self._stage.command(self._out), self._env, log) as process:
            if plan.units:
                self._wait(process, plan.units, self._total)
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(plan.delay):
                    raise RuntimeError(f"a start failed: {last_line(log)} ({log})")
            found, writing = self._stage.progress(self._out), half(self._out)
            sent = time.perf_counter()
            process.send_signal(plan.number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            code, ended = process.wait(), time.perf_counter() - sent
        if code == 0 and found >= self._total:
            self._compare()  # it was finished just before
            return
        new = len((writing | half(self._out)) - halves)
        phase = "ending" if found >= self._total else "working"
        phase = phase if plan.units or found > present else "start-up"
        phase = "saving" if new else phase
        self.kills.append(Kill(plan.number.name, sent - begun, phase, found, new, ended))
        after = state(self._out)
        words = [*lost(self._before, after), *differences(after, self._end, finished=False)]
        words += unclear(plan.number, code, log, not differences(after, self._end))
        self._note(f"kill {len(self.kills)}", words)
        self._before = after

    def _compare(self) -> None:
        found = state(self._out)
        self.rounds += 1
        words = [*lost(self._before, found), *differences(found, self._end)]
        self._note(f"end {self.rounds}", words)
        self.other += other_bytes(found, self._end)
        self.left += len(half(self._out))
        self._begin()

    def finish(self) -> None:
        """Does the rest of the work undisturbed, compares it, and begins anew."""
        self._run(self._stage.command(self._out))
        self._compare()


class Result(NamedTuple):
    """What the kills of a stage came to; see `Trial`."""

    stage: str
    seed: int
    kills: list[Kill]
    wrong: list[str]
    rounds: int
    other: int
    left: int
    minutes: float


def test(stage: str, folder: Path, kills: int, seed: int) -> Result:
    """Kills a stage, until a start fails; a result that lies in the folder is read again.

    Raises:
      RuntimeError, SubprocessError: undisturbed work failed, or hangs.
    """
    file, compiled, begun = folder / stage / RESULT, folder / "compiled", time.perf_counter()
    if file.is_file():
        result = Result(**json.loads(file.read_text()))
        result = result._replace(kills=[Kill(*kill) for kill in result.kills])
        if (len(result.kills), result.seed) == (kills, seed):
            return result
    rng, trial = random.Random(f"{seed} {stage}"), Trial(STAGES[stage], folder / stage, compiled)
    with tqdm(total=kills, desc=stage, unit="kill") as bar:
        try:
            while len(trial.kills) < kills:
                trial.kill(trial.plan(rng))
                bar.update(len(trial.kills) - bar.n)
            trial.finish()
        except (RuntimeError, subprocess.SubprocessError) as error:
            trial.wrong.append(str(error))
    minutes = (time.perf_counter() - begun) / 60
    counts = trial.rounds, trial.other, trial.left
    result = Result(stage, seed, trial.kills, trial.wrong, *counts, minutes)
    file.write_text(json.dumps(result._asdict(), indent=1))
    return result


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as text, in columns."""
    cells = [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in cells)


def report(result: Result) -> str:
    """The kills of a stage, and what was wrong."""
    head = ("kill", "signal", "after s", "in", "progress", "unfinished", "ended in s")
    rows = ((i, *kill) for i, kill in enumerate(result.kills, 1))
    return "\n".join([table([head, *rows]), *result.wrong])


def summary(results: Sequence[Result]) -> str:
    """A line a stage."""
    counts = (*(number.name for number in dict.fromkeys(SIGNALS)), *PHASES)
    more = ("ended in s", "rounds", "other bytes", "left", "minutes", "verdict")
    rows: list[tuple[Any, ...]] = [("stage", "kills", *counts, *more)]
    for r in results:
        found = collections.Counter(x for kill in r.kills for x in (kill.signal, kill.phase))
        longest = max((kill.ended for kill in r.kills), default=0.0)
        verdict = f"{len(r.wrong)} wrong" if r.wrong else "nothing lost, equal"
        others = (longest, r.rounds, r.other, r.left, r.minutes, verdict)
        rows.append((r.stage, len(r.kills), *(found[name] for name in counts), *others))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit code 1 when something was lost, differs or is unclear."""
    parser = argparse.ArgumentParser(
        prog="kill_test", description=__doc__.split("\n")[0], formatter_class=Help
    )
    parser.add_argument("--kills", type=int, default=30, help="of a stage")
    parser.add_argument(
        "--stage", choices=(*STAGES, ALL), default="one_forcing", help="that is killed"
    )
    parser.add_argument("--all", dest="stage", action="store_const", const=ALL, help="every stage")
    parser.add_argument("--seed", type=int, default=0, help="of signals and moments")
    parser.add_argument(
        "--folder", type=Path, help="to work in, and to continue; default: a temporary one"
    )
    known = parser.parse_args(arguments)
    # A process that a shell put into the background ignores SIGINT, and so would those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stages, results = list(STAGES) if known.stage == ALL else [known.stage], list[Result]()
    again = "in a --folder the same command continues after the stages that are done"
    with ending(again), tempfile.TemporaryDirectory() as temporary:
        folder = (known.folder or Path(temporary)).absolute()
        for stage in stages:
            try:
                results.append(test(stage, folder, known.kills, known.seed))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                sys.exit(f"error: {stage}: {error}")
            print(report(results[-1]), flush=True)
    print(summary(results))
    if any(result.wrong for result in results):
        sys.exit(1)
    print(f"{sum(len(r.kills) for r in results)} kills: nothing lost, all equal bit for bit")


if __name__ == "__main__":
    main()
