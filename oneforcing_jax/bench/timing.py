"""Time and memory of a compiled program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def timed(program: Any, arguments: tuple[Any, ...], repeats: int) -> dict[str, Any]:
    """Compiles and runs a jitted function that donates nothing: see `compiled`, `summary`."""
    made, compile_s = compiled(program, arguments)
    seconds = [clocked(made, *arguments)[0] for _ in range(repeats + 1)]
    return summary(made, compile_s, seconds)


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


def summary(made: Any, compile_s: float, seconds: Sequence[float]) -> dict[str, Any]:
    """One row: the first run apart from the median of the others, and memory.

    Memory is the device's peak since the start, or what the program asks for where the device tells no peak.
    """
    plan, stats = made.memory_analysis(), jax.local_devices()[0].memory_stats() or {}
    planned = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
    return {
        "compile_s": compile_s,
        "first_s": seconds[0],
        "step_s": statistics.median(seconds[1:]),
        "slowest_s": max(seconds[1:]),
        "memory_bytes": stats.get("peak_bytes_in_use") or planned,
    }
