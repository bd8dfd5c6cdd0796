"""Several processes of one run: how they join, agree, divide work, wait for each other, and end together.

What they tell each other lies in JAX's coordination service, in process 0, and no device takes part. So it
works while devices are busy or hang. A process by itself is a group of one, and nothing here waits.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import command
from oneforcing_jax.system.group import BEAT, JOIN, Group, explain_abort

# Seconds without a sign of life until a process is lost.
LOST_AFTER = 60.0


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
    explain_abort(lambda: f"lost: not all processes came within {JOIN} s; start all of them again")
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
        _group.end(1 if wrong else int(end.code or 0), str(end.code) if wrong else "")
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
        _group.agree_to_leave()
    return found


def names() -> list[str]:
    """Names of the processes, with their hosts."""
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
