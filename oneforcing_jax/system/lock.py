"""One run in a place. On a disk the system keeps the lock, and gives it up when its process ends.

In a bucket it is an object that its owner writes again every few seconds. Who comes second watches it: an
object that changes has an owner, and one that does not change for the time of a lease has lost it. Every
write says what it replaces, so that of several that try at once one succeeds. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tensorstore

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import bounded, places

LOCK = "lock"
# Seconds: until an owner writes its lock again; without that, until it is lost; between two looks at it.
RENEW, LEASE, LOOK = 10.0, 60.0, 1.0


@contextlib.contextmanager
def held(workdir: Path, shares: Sequence[tuple[int, int]] = ()) -> Iterator[None]:
    """Keeps other runs out of a work directory until this one ends, however it ends.

    A run that does one share of a stage keeps out all runs but those that do the other shares.

    Args:
      workdir: a folder of a disk or a bucket.
      shares: (i, n) of each stage: the i-th of n parts of it.

    Raises:
      InputError: another run is in it.
      OSError: the server of a bucket failed.
    """
    index, count = shares[0] if len(shares) == 1 else (0, 1)
    mine = f"{LOCK}-{index}-of-{count}" if count > 1 else LOCK
    if places.is_url(workdir):
        with _lease(workdir, mine):
            yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_file(workdir, LOCK, shared=count > 1))
        if count > 1:
            stack.enter_context(_file(workdir, mine))
        yield


@contextlib.contextmanager
def _file(workdir: Path, name: str, shared: bool = False) -> Iterator[None]:
    with (workdir / name).open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            _refuse(workdir, file.read())
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _refuse(workdir: Path, owner: str) -> NoReturn:
    raise InputError(
        f"work directory {workdir}: expected no other run in it, found {owner}; wait for it to end, or use "
        "another directory"
    )


@contextlib.contextmanager
def _lease(workdir: Path, name: str) -> Iterator[None]:
    with places.failures(workdir, "could not be locked"):
        mine = _Object(workdir, name)
        mine.take()
    with mine.kept():
        # Two that look at each other must not think each other lost.
        with places.failures(workdir, "could not be locked"):
            for other in mine.others():
                if name == LOCK or other.name == LOCK:
                    other.await_lost()
        yield


class _Object:
    """A lock in a bucket.

    Attributes:
      name: of its object.
    """

    def __init__(self, workdir: Path, name: str) -> None:
        self.name, self._workdir, self._store = name, workdir, places.store(workdir)
        self._owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._id = secrets.token_hex(8)
        self._generation: Any = None  # of what was last written
        self._ended = threading.Event()

    def others(self) -> list[_Object]:
        """The other locks in the place."""
        names = self._store.list(tensorstore.KvStore.KeyRange(LOCK, f"{LOCK}.")).result()
        return [_Object(self._workdir, n.decode()) for n in names if n.decode() != self.name]

    def take(self) -> None:
        """Makes the lock this process's.

        Raises:
          InputError: it is another's.
        """
        while True:
            found = self.await_lost()
            if self._write(found, self._owner):
                return

    def await_lost(self) -> Any:
        """Waits until nobody owns the lock; returns what lies there.

        Raises:
          InputError: its owner writes.
        """
        found, since, said = self._store.read(self.name).result(), time.monotonic(), False
        while owner := _owner(found.value):
            time.sleep(LOOK)
            now, passed = self._store.read(self.name).result(), time.monotonic() - since
            if now.stamp.generation != found.stamp.generation:
                if later := _owner(now.value):
                    _refuse(self._workdir, later)
                found = now
                continue
            if passed > 2 * RENEW and not said:
                said = True
                line = f"{self._workdir}: {owner} seems lost; its lock ends within {LEASE:.0f} s"
                print(line, file=sys.stderr)
            if passed > LEASE:
                break
        return found.stamp.generation

    def _write(self, before: Any, owner: str) -> bool:
        """Replaces what lies there, if that is still `before`; returns whether it did."""
        content = json.dumps({"owner": owner, "time": time.time(), "id": self._id}).encode()
        while True:
            written = self._store.write(self.name, content, if_equal=before).result(LEASE)
            if written.generation:
                self._generation = written.generation
                return True
            found = self._store.read(self.name).result(LEASE)
            if self._id.encode() not in found.value:
                return False
            # A request that was heard, without an answer that was heard here.
            before = self._generation = found.stamp.generation
            if found.value == content:
                return True

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Writes the lock again and again, in a thread, and gives it up at the end. This process is ended, if
        another has taken it."""
        thread = threading.Thread(target=self._keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with contextlib.suppress(Exception):  # who comes next waits for the end of the lease
                self._write(self._generation, "")

    def _keep(self) -> None:
        failed = None
        while not self._ended.wait(RENEW):
            try:
                if not self._write(self._generation, self._owner):
                    self._lost("another run has taken it")
                failed = None
            except Exception as error:
                failed = failed or time.monotonic()
                if time.monotonic() - failed > LEASE:
                    self._lost(places.reason(error))

    def _lost(self, why: str) -> NoReturn:
        """Ends this process before it writes where another may be."""
        line = (
            f"lost: the lock of {self._workdir}: {why}; the same command continues when it is free"
        )
        os.write(2, f"\n{line}\n".encode())
        os._exit(1)


def _owner(content: bytes) -> str:
    """Who wrote a lock; "": nobody, or one who gave it up."""
    try:
        return str(bounded.parsed(content)["owner"])
    except (ValueError, LookupError, TypeError):
        return ""
