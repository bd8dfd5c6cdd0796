"""Several processes of one run: how they join, agree, divide work, wait for each other, and end together.

What they tell each other lies in JAX's coordination service, in process 0, and no device takes part. So it
works while devices are busy or hang. A process by itself is a group of one, and nothing here waits.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its store of keys has no public name
from jax.experimental import multihost_utils
from tqdm import tqdm

from oneforcing_jax import command
from oneforcing_jax.errors import InputError

# Exit code of a process whose fellow was lost: the same command, started again, goes on (sysexits.h).
AGAIN = 75
# Seconds: between two signs of life; without one until a process is lost; until a wait is explained; that a
# process has to end by itself when another has failed, and process 0 waits for the others to end.
# And until all must have come.
BEAT, LOST_AFTER, PATIENCE, GRACE, JOIN = 1.0, 60.0, 20.0, 3.0, 300
CONTINUES = "the same command continues with the hosts that there are"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options by which a process finds the others."""
    add = parser.add_argument
    add("--distributed", action="store_true", help="one of several processes, found by the cluster")
    add("--coordinator", help="ADDRESS:PORT of process 0, where it must be said")
    add("--process_id", type=int, help="with --coordinator: this process, from 0")
    add("--process_count", type=int, help="with --coordinator: how many there are")
    words = (
        f"seconds without a sign of life of a process after which all end; default {LOST_AFTER:g}"
    )
    add("--lost_after", type=float, default=LOST_AFTER, metavar="SECONDS", help=words)


class Group:
    """The processes of a run, as one of them sees them.

    A thread says each second that this process lives, and looks at the others. It ends this process when one
    of them is lost or has failed, whatever the main thread is waiting for. A thread may be kept from its turn
    for long, while a large program is compiled or stored; so each process also has an open port, which the
    system answers as long as the process is there.

    Attributes:
      index: of this process.
      names: of all processes, with their hosts.
    """

    def __init__(self, lost_after: float) -> None:
        state = distributed.global_state
        self._client: Any = state.client
        self.index, self._count = state.process_id, state.num_processes
        host, _, port = str(state.coordinator_address).rpartition(":")
        self._coordinator: tuple[str, Any] = (host.strip("[]"), port)
        self._lost_after, self._turn, self._asked = lost_after, 0, False
        self._closed, self._leaving, self._gone = threading.Event(), threading.Lock(), set[int]()
        self.names = [str(i) for i in range(self._count)]
        with socket.create_connection(self._coordinator, timeout=JOIN) as way:
            self._door = socket.create_server((way.getsockname()[0], 0), family=way.family)
        found = self.exchange([socket.gethostname(), *self._door.getsockname()[:2]], "start")
        self.names = [f"process {i} ({host})" for i, (host, *_) in enumerate(found)]
        self._doors = [(address, port) for _, address, port in found]
        # The number that each process said last, and when that was new.
        self._seen = {i: ("", time.monotonic()) for i in range(self._count) if i != self.index}
        _explain_abort(self._why_aborted)
        threading.Thread(target=self._watch, daemon=True).start()

    def exchange(self, value: Any, reason: str) -> list[Any]:
        """See `exchange`."""
        turn, self._turn = f"turn/{self._turn}", self._turn + 1
        self._client.key_value_set(f"{turn}/{self.index}", json.dumps(value))
        if self.index == 0:
            found = [self._get(f"{turn}/{i}", i, reason) for i in range(self._count)]
            self._client.key_value_set(f"{turn}/all", f"[{', '.join(found)}]")
            # All have read the turn before, or they had not come to this one.
            self._client.key_value_delete(f"turn/{self._turn - 2}")
        found_all: list[Any] = json.loads(self._get(f"{turn}/all", 0, reason))
        return found_all

    def _get(self, key: str, process: int, reason: str) -> str:
        until: float | None = time.monotonic() + PATIENCE
        while True:
            try:
                # Signals are handled in between.
                value: str = self._client.blocking_key_value_get(key, 500)
                return value
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if until and time.monotonic() > until:
                until = None
                tqdm.write(f"{self.names[self.index]} waits for {self.names[process]}: {reason}")

    def asked(self) -> None:
        """Notes that all processes know that they are to leave."""
        self._asked = True

    def wait(self) -> None:
        """Waits as long as it takes to see whether another process was lost, which then ends this one."""
        time.sleep(self._lost_after + 3 * BEAT)

    def close(self) -> None:
        """Ends with the others, all well."""
        self.exchange(None, "its end")
        self._closed.set()

    def leave(self, code: int, line: str) -> NoReturn:
        """Ends this process and, through their watches, the others.

        Python's usual end would wait minutes for processes that are gone.
        """
        self._leaving.acquire()  # and never released: whoever comes second waits for the end
        sys.stdout.flush()
        os.write(2, f"{line}\n".encode() if line else b"")
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"end/{self.index}", json.dumps([code, line]))
            # The service ends with process 0, and JAX then aborts whoever still uses it.
            until = time.monotonic() + (GRACE + 3 * BEAT if self.index == 0 else 0)
            while time.monotonic() < until and len(self._ends().keys() | self._gone) < self._count:
                time.sleep(0.1)
        os._exit(code)

    def _ends(self) -> dict[int, tuple[int, str]]:
        found = self._client.key_value_dir_get("end/")
        return {int(key.rpartition("/")[2]): tuple(json.loads(end)) for key, end in found}

    def _watch(self) -> None:
        number, ended = 0, dict[int, float]()
        while not self._closed.wait(BEAT):
            number += 1
            try:
                self._client.key_value_set(f"beat/{self.index}", str(number), allow_overwrite=True)
                beats, ends = self._client.key_value_dir_get("beat/"), self._ends()
            except jax.errors.JaxRuntimeError:
                continue  # process 0 is gone, of which JAX's own thread knows
            now = time.monotonic()
            for key, beat in beats:
                i = int(key.rpartition("/")[2])
                if i in self._seen and self._seen[i][0] != beat:
                    self._seen[i] = (beat, now)
            for i in ends.keys() & self._seen.keys():
                self._follow(i, *ends[i], now - ended.setdefault(i, now))
            if self.index == 0:
                silent = self._silent(self._lost_after) - ends.keys()
                self._gone = {i for i in silent if not _answers(self._doors[i])}
            if self._gone:
                self.leave(AGAIN, self._lost(self._gone))

    def _silent(self, seconds: float) -> set[int]:
        """Processes without a sign of life for so long."""
        now = time.monotonic()
        return {i for i, (_, last) in self._seen.items() if now - last > seconds}

    def _lost(self, gone: set[int]) -> str:
        named = ", ".join(self.names[i] for i in sorted(gone))
        return f"lost: {named} gave no sign of life; {CONTINUES}"

    def _follow(self, process: int, code: int, line: str, since: float) -> None:
        """Ends after another process: at once where one was lost, or as soon as this one is done with what it
        was asked to do."""
        if code == AGAIN:
            self.leave(code, line)
        asked = code > 128
        if asked and not self._asked:
            self._asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        if code and since > (self._lost_after if asked else GRACE):
            self.leave(code, f"{self.names[process]} ended; {line or 'it was asked to stop'}")

    def _why_aborted(self) -> str:
        if silent := self._silent(self._lost_after / 2):
            return self._lost(silent)
        if self.index and not _answers(self._coordinator):
            return f"lost: {self.names[0]} does not answer; {CONTINUES}"
        return ""


def _answers(door: tuple[str, Any]) -> bool:
    try:
        socket.create_connection(door, timeout=2).close()
    except OSError:
        return False
    return True


def _explain_abort(why: Callable[[], str]) -> None:
    """Says in a line why JAX aborts this process, where `why` knows it, and ends it with `AGAIN`.

    JAX leaves no other choice: where its service is gone, or not all processes come, a thread of its own
    aborts, after lines of its own.
    """
    libc = ctypes.CDLL(None)

    def aborted(number: int) -> None:
        if line := why():
            os.write(2, f"{line}\n".encode())
            os._exit(AGAIN)
        libc.signal(number, None)  # the default, to which `abort` returns

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    libc.signal(signal.SIGABRT, _kept[-1])


# Handlers must outlive their setting.
_kept: list[Any] = []
_group: Group | None = None


def join(given: argparse.Namespace) -> None:
    """Joins the other processes, if the options say that there are any.

    Raises:
      InputError: an option without the others that it needs, or processes that do not find each other.
    """
    global _group
    said = (given.coordinator, given.process_id, given.process_count)
    if not given.distributed and said == (None, None, None):
        return
    if said.count(None) not in (0, 3):
        raise InputError(
            "command line: expected --coordinator, --process_id and --process_count together, found "
            f"{said}; give all, or --distributed alone"
        )
    if not given.lost_after >= 5 * BEAT:
        raise InputError(f"--lost_after: expected {5 * BEAT:g} or more, found {given.lost_after}")
    # It would take SIGTERM from us, of which stages that do not train know nothing then.
    jax.config.update("jax_enable_preemption_service", False)
    _explain_abort(lambda: f"lost: not all processes came within {JOIN} s; start all of them again")
    try:
        jax.distributed.initialize(
            *said[:1],
            num_processes=said[2],
            process_id=said[1],
            initialization_timeout=JOIN,
            # Our own watch comes first, and says more.
            heartbeat_timeout_seconds=int(given.lost_after) + 30,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"distributed: {str(error).splitlines()[0]}") from None
    _group = Group(given.lost_after)


@contextlib.contextmanager
def ending(interrupted: str, folder: Path | None = None) -> Iterator[None]:
    """As `command.ending`, for a command that may have joined others: they end together."""
    try:
        with command.ending(interrupted, folder):
            try:
                yield
            except (InputError, command.Stopped):
                raise
            except Exception:
                # What fails because another process is gone fails before anybody knows that.
                if _group:
                    _group.wait()
                raise
    except SystemExit as end:
        if not _group:
            raise
        wrong = isinstance(end.code, str)
        _group.leave(1 if wrong else int(end.code or 0), str(end.code) if wrong else "")
    if _group:
        _group.close()


def is_first() -> bool:
    """Whether this is the process that writes what all share, and says what all did."""
    return jax.process_index() == 0


def exchange(value: Any, reason: str) -> list[Any]:
    """What every process gives, in order; all must call this, and each waits for the others.

    Args:
      value: as JSON can hold it.
      reason: what is waited for, which a long wait says.
    """
    return _group.exchange(value, reason) if _group else [value]


def same(what: str, value: Any) -> None:
    """Waits for all processes, and compares what they have.

    Raises:
      InputError: they differ.
    """
    found = exchange(value, what)
    for i, other in enumerate(found):
        if other != found[0]:
            raise InputError(
                f"processes: expected the same {what} in all, found {found[0]!r} in process 0 and {other!r} "
                f"in process {i}; start them by one command, on a disk that all of them see"
            )


@contextlib.contextmanager
def first(what: str) -> Iterator[bool]:
    """A context for what one process does for all, and the others wait for; it gives whether this is the one.

    Args:
      what: says what the others wait for.
    """
    yield is_first()
    exchange(None, what)


def part(share: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """(i, n): this process does every n-th from the i-th on, of the share of its command."""
    index, count = share
    return index + count * jax.process_index(), count * jax.process_count()


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, process by process; each has as many."""
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True)) if _group else rows


def asked(number: int, where: str) -> int:
    """The signal that asks one of the processes to leave, for all of them; 0: none does."""
    found: int = max(exchange(number, where))
    if found and _group:
        _group.asked()
    return found


def names() -> list[str]:
    """Of the processes, with their hosts."""
    return _group.names if _group else [f"process 0 ({socket.gethostname()})"]


def say_rates(what: str, count: int, seconds: float, unit: str) -> None:
    """Waits for all processes, and says in one line what they did, how fast, and which was the slowest."""
    found = exchange([count, seconds], what)
    counts, times = zip(*found, strict=True)
    if len(found) == 1 or not any(counts) or not is_first():
        return
    rates = [n / max(s, 1e-9) for n, s in found]
    slowest = int(np.argmin(rates))
    tqdm.write(
        f"{what}: {sum(counts)} {unit}s in {max(times):.3g} s, {sum(rates):.3g} a second; the slowest was "
        f"{names()[slowest]} with {rates[slowest]:.3g}"
    )
