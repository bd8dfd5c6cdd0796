"""Time and memory of a compiled program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from oneforcing_jax.bench import trace


def timed(
    program: Any, arguments: tuple[Any, ...], repeats: int, profile: bool = False
) -> dict[str, Any]:
    """Compiles and runs a jitted function that donates nothing: see `compiled`, `summary`; with `profile` one
    more run gives "kernels", see `trace.table`."""
    made, compile_s = compiled(program, arguments)
    seconds = [clocked(made, *arguments)[0] for _ in range(repeats + 1)]
    row = summary(made, compile_s, seconds)
    if profile:
        row["kernels"] = trace.profiled(lambda: made(*arguments))[0]
    return row


def compiled(program: Any, arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """A program, and the seconds that it took to trace and compile."""
    start = time.perf_counter()
    made = program.lower(*arguments).compile()
    return made, time.perf_counter() - start


def clocked(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds until a call's results are there, and the results."""
    start = time.perf_counter()
    found = jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start, found


def waited(
    values: Iterable[Any], each: Callable[[Any], Any] = lambda x: x
) -> tuple[list[float], list[Any]]:
    """Seconds that each value takes until it is there, and the values."""
    seconds, made, start = [], [], time.perf_counter()
    for value in values:
        made.append(jax.block_until_ready(each(value)))
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return seconds, made


def queued(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until the host has queued a call, and until its results are there."""
    start = time.perf_counter()
    found = call()
    host = time.perf_counter() - start
    jax.block_until_ready(found)
    return host, time.perf_counter() - start


def peak_memory() -> int | None:
    """Bytes that the first device held at most since the start; None: it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def summary(made: Any, compile_s: float, seconds: Sequence[float]) -> dict[str, Any]:
    """One row: the first run apart from the median of the others, and memory.

    Memory is the device's peak since the start, or what the program asks for where the device tells no peak.
    """
    plan = made.memory_analysis()
    planned = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
    return {
        "compile_s": compile_s,
        "first_s": seconds[0],
        "step_s": statistics.median(seconds[1:]),
        "slowest_s": max(seconds[1:]),
        "memory_bytes": peak_memory() or planned,
    }
