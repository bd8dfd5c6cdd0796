"""Gives the commands bad input of many classes, and judges how each ends.

    python tools/fuzz.py --cases=150                    # two minutes
    python tools/fuzz.py --cases=5000 --seed=1 --out=build/fuzz

Each case is a command in a process of its own, with limits on time and memory, on a copy of a small run,
its weights, encoders and store. It may succeed, or end in one line that says what was expected. It may
not print a traceback, crash, succeed with what is known to be wrong, change a file that was there, or take
10 s of processors or 1 GiB more than the same command on good input. The table counts that by class; the
exit code is 1 if anything but the first two happened. The classes are in tools/fuzz_cases.py and
tools/fuzz_bounds.py.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from oneforcing_jax.system.command import Help, any_path

try:
    import fuzz_bounds
    import fuzz_cases
    import fuzz_fixture
except ModuleNotFoundError as missing:  # the classes, which the options name, need all of the extra
    sys.exit(f'error: expected the package {missing.name}; pip install "oneforcing_jax[test]"')

SECONDS, GIB = 600, 8
# Seconds of processors, and bytes, that bad input may take beyond the same command on good input.
MORE_SECONDS, MORE_BYTES = 10.0, 1 << 30
GOOD = ("accepted", "one line")
BAD = ("unclear", "traceback", "hang", "memory", "crash", "wrong success", "harmed")


class Ending(NamedTuple):
    """How a case ended, and the last line that it said."""

    name: str
    kind: str
    how: str
    line: str


class Cost(NamedTuple):
    """What a process took: seconds of processors, and bytes at its peak."""

    seconds: float = 0.0
    peak: int = 0

    @classmethod
    def of(cls, used: resource.struct_rusage) -> Cost:
        """What is known of a process."""
        return cls(used.ru_utime + used.ru_stime, used.ru_maxrss << 10)


class Child(NamedTuple):
    """A process that runs a case."""

    kind: str
    folder: Path
    deadline: float


def digest(folder: Path) -> dict[str, str]:
    """The files below a folder and their content. A lock holds the number of the last process."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("lock"))
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in files}


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command as the interpreter would: its exit code, with what it says on stderr."""
    try:
        command()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def in_process(work: Callable[[], int], said: Path) -> int:
    """Forks a process that does some work with limits, its output in a file; its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
        code = work()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(number: int, kind: str, seed: int, fixture: Path, folder: Path) -> tuple[Child, int]:
    """Starts a case in a copy of the fixture, and says the number of its process."""

    def work() -> int:
        shutil.copytree(fixture, folder / "given")
        rng = random.Random(f"{seed} {kind} {number}")
        case = fuzz_cases.CLASSES[kind](rng, folder / "given")
        (folder / "before").write_text(json.dumps(digest(folder / "given")))
        record = {"command": case.command, "arguments": case.arguments, "wrong": case.wrong}
        record["begun"] = Cost.of(resource.getrusage(resource.RUSAGE_SELF)).seconds
        (folder / "case").write_text(json.dumps(record, indent=1))
        os.chdir(folder)
        code = exit_code(lambda: fuzz_fixture.run(case))
        if code == 0 and case.same is not None and not case.same():
            print("other arrays were read")
            return 77
        return code

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = in_process(work, folder / "said")
    return Child(kind, folder, time.monotonic() + SECONDS), process


def judge(
    folder: Path, status: int, hung: bool, took: Cost, good: Mapping[str, Cost]
) -> tuple[str, str]:
    """How a case ended, and the last line that it said.

    Args:
      folder: of the case.
      status: of its process.
      hung: whether it was killed.
      took: what the process took.
      good: what commands take on good input.
    """
    said = (folder / "said").read_text(errors="replace").replace("\r", "\n")
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if not (folder / "case").exists():
        return "crash", f"the case could not be made: {last}"
    before, case = (json.loads((folder / name).read_text()) for name in ("before", "case"))
    most = good.get(case["command"], Cost())
    after = digest(folder / "given")
    seconds = took.seconds - case["begun"]
    if hung or seconds > most.seconds + MORE_SECONDS:
        return "hang", f"{seconds:.0f} s, {most.seconds:.0f} on good input: {last}"
    if took.peak > most.peak + MORE_BYTES:
        return "memory", f"{took.peak >> 20} MiB, {most.peak >> 20} on good input: {last}"
    if os.WIFSIGNALED(status):
        return "crash", f"signal {os.WTERMSIG(status)}: {last}"
    if any(after.get(name) != sum_ for name, sum_ in before.items()):
        return "harmed", next(n for n in before if after.get(n) != before[n])
    if "Traceback (most" in said or "this is a fault of the program" in said:
        return "traceback", last
    if os.WEXITSTATUS(status) == 0:
        return ("wrong success" if case["wrong"] else "accepted"), last
    if os.WEXITSTATUS(status) == 77:
        return "wrong success", last
    told = re.search(r"\berror: ", last) or re.search(r"^(damaged|unknown) ", said, re.MULTILINE)
    return ("one line" if told and len(last) < 1000 else "unclear"), last


def all_cases(
    kinds: Sequence[str],
    count: int,
    seed: int,
    fixture: Path,
    out: Path,
    jobs: int,
    good: Mapping[str, Cost],
) -> list[Ending]:
    """Runs the cases that `out` has no record of, some at once. What ended badly stays in `out`."""
    record = out / "cases.jsonl"
    known = [Ending(*json.loads(line)) for line in _lines(record)]
    done = {ending.name for ending in known}
    running: dict[int, Child] = {}
    names = [(i, kinds[i % len(kinds)]) for i in range(count)]
    todo = iter([(i, kind) for i, kind in names if f"{i:05}-{kind}" not in done])
    bar = tqdm(total=count, initial=len(done), unit="case", disable=None)
    with bar, record.open("a") as file:
        while True:
            while len(running) < jobs and (following := next(todo, None)):
                number, kind = following
                child, process = start(number, kind, seed, fixture, out / f"{number:05}-{kind}")
                running[process] = child
            if not running:
                return known
            for process, ending in _ended(running, good):
                known.append(ending)
                print(json.dumps(ending), file=file, flush=True)
                if ending.how in GOOD:
                    shutil.rmtree(running[process].folder)
                else:
                    tqdm.write(f"{ending.name}: {ending.how}: {ending.line[:300]}")
                del running[process]
                bar.update()
            time.sleep(0.01)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _ended(running: dict[int, Child], good: Mapping[str, Cost]) -> Iterator[tuple[int, Ending]]:
    for process, child in list(running.items()):
        ended, status, used = os.wait4(process, os.WNOHANG)
        hung = not ended and time.monotonic() > child.deadline
        if hung:
            os.kill(process, signal.SIGKILL)
            _, status, used = os.wait4(process, 0)
        if ended or hung:
            how = judge(child.folder, status, hung, Cost.of(used), good)
            yield process, Ending(child.folder.name, child.kind, *how)


def _more(one: Cost, other: Cost) -> Cost:
    return Cost(max(one.seconds, other.seconds), max(one.peak, other.peak))


def on_good_input(fixture: Path, out: Path) -> dict[str, Cost]:
    """What each command takes at most where nothing is wrong, in a copy of the fixture, with nothing
    compiled: a case may be the first to use a program.

    Raises:
      SystemExit: one of them fails.
    """
    file, most = out / "good.json", dict[str, Cost]()
    if file.exists():
        return {name: Cost(*cost) for name, cost in json.loads(file.read_text()).items()}
    given, said = out / "good", out / "good.txt"
    for case in fuzz_bounds.good(given):

        def work(case: fuzz_fixture.Case = case) -> int:
            shutil.rmtree(given, ignore_errors=True)
            shutil.copytree(fixture, given)
            fuzz_bounds.captions(given)
            fuzz_fixture.keep_programs(given / "compiled")
            return exit_code(lambda: fuzz_fixture.run(case))

        _, status, used = os.wait4(in_process(work, said), 0)
        if status:
            command = f"{case.command} {' '.join(case.arguments)}"
            sys.exit(f"error: {command} failed on good input; {said} says why")
        most[case.command] = _more(most.get(case.command, Cost()), Cost.of(used))
    shutil.rmtree(given)
    file.write_text(json.dumps(most))
    return most


def show(endings: Sequence[Ending]) -> str:
    """A Markdown table: a line for each class."""
    columns = (*GOOD, *BAD)
    lines = [f"| Class | Cases | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for kind in [*dict.fromkeys(ending.kind for ending in endings), "all"]:
        counts = collections.Counter(e.how for e in endings if kind in (e.kind, "all"))
        cells = [counts.total(), *(counts[c] for c in columns)]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, formatter_class=Help)
    kinds = list(fuzz_cases.CLASSES)
    parser.add_argument("--cases", type=int, default=150, help="over all classes")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    parser.add_argument("--only", default=",".join(kinds), help="classes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--out", type=any_path, help="where cases that ended badly stay")
    given = parser.parse_args(arguments)
    chosen = given.only.split(",")
    if not set(chosen) <= set(kinds):
        sys.exit(f"error: --only: expected classes among {', '.join(kinds)}, found {given.only}")
    out = (given.out or Path(tempfile.mkdtemp())).absolute()
    fixture = out / "fixture"
    fuzz_fixture.keep_programs(out / "compiled")
    if not fixture.exists():
        out.mkdir(parents=True, exist_ok=True)
        process = in_process(lambda: exit_code(lambda: fuzz_fixture.make(fixture)), out / "said")
        if os.waitpid(process, 0)[1]:
            shutil.rmtree(fixture, ignore_errors=True)
            sys.exit(f"error: the fixture could not be made; {out / 'said'} says why")
    good = on_good_input(fixture, out)
    endings = all_cases(chosen, given.cases, given.seed, fixture, out, given.jobs, good)
    print(show(endings))
    if any(ending.how in BAD for ending in endings):
        sys.exit(f"error: expected no case to end badly; those that did are in {out}")
    if not given.out:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
