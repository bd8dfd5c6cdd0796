"""The processes of a run as one of them sees them: what they tell each other, and the watch over them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its store of keys has no public name
from tqdm import tqdm

# Exit code of a process whose fellow was lost: the same command, started again, goes on (sysexits.h).
AGAIN = 75
# Seconds: between two signs of life; until a wait is explained; that a process has to end by itself when
# another has failed, and process 0 waits for the others to end; until all must have come.
BEAT, PATIENCE, GRACE, JOIN = 1.0, 20.0, 3.0, 300
CONTINUES = "the same command continues with the hosts that there are"


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
        self._lost_after, self._turn, self._asked, self._agreed = lost_after, 0, False, False
        self._closed, self._leaving, self._gone = threading.Event(), threading.Lock(), set[int]()
        self.names = [str(i) for i in range(self._count)]
        with socket.create_connection(self._coordinator, timeout=JOIN) as way:
            self._door = socket.create_server((way.getsockname()[0], 0), family=way.family)
        found = self.exchange([socket.gethostname(), *self._door.getsockname()[:2]], "start")
        self.names = [f"process {i} ({host})" for i, (host, *_) in enumerate(found)]
        self._doors = [(address, port) for _, address, port in found]
        # The number that each process said last, and when that was new.
        self._seen = {i: ("", time.monotonic()) for i in range(self._count) if i != self.index}
        explain_abort(self._why_aborted)
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

    def agree_to_leave(self) -> None:
        """Notes that all processes know that they are to leave, and where."""
        self._asked = self._agreed = True

    def wait(self) -> None:
        """Waits as long as it takes to see whether another process was lost, which then ends this one."""
        time.sleep(self._lost_after + 10 * BEAT)

    def close(self) -> None:
        """Ends with the others, all well."""
        self.exchange(None, "its end")
        self._closed.set()

    def end(self, code: int, line: str) -> NoReturn:
        """Ends this process; where all agreed to leave, after all have saved."""
        if self._agreed and code > 128:
            self.exchange(None, "what it saves")
        self.leave(code, line)

    def leave(self, code: int, line: str) -> NoReturn:
        """Ends this process and, through their watches, the others.

        Python's usual end would wait minutes for processes that are gone.
        """
        self._leaving.acquire()  # and never released: whoever comes second waits for the end
        sys.stdout.flush()
        # A progress bar may be on the line.
        os.write(2, f"\n{line}\n".encode() if line else b"")
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
        if silent := self._silent(self._lost_after):
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


def explain_abort(why: Callable[[], str]) -> None:
    """Says in a line why JAX aborts this process, where `why` knows it, and ends it with `AGAIN`.

    JAX leaves no other choice: where its service is gone, or not all processes come, a thread of its own
    aborts, after lines of its own.
    """
    libc = ctypes.CDLL(None)

    def aborted(number: int) -> None:
        if line := why():
            os.write(2, f"\n{line}\n".encode())  # a progress bar may be on the line
            os._exit(AGAIN)
        libc.signal(number, None)  # the default, to which `abort` returns

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
    libc.signal(signal.SIGABRT, _kept[-1])


# Handlers must outlive their setting.
_kept: list[Any] = []
