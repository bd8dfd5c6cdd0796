"""Kernels that a GPU ran, from a profile: time by kind, copies, gaps, and the longest.

A profile of another device holds no kernels, and its table is empty.
"""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData, ProfileOptions

# Kinds by what the lower-case name of a kernel holds; the first that fits counts. XLA names a fusion after
# what is in it ("input_concatenate_fusion"), libraries their kernels after what they compute.
_ATTENTION = r"flash|sdpa|fmha|attention|mosaic"
KINDS = {
    "attention backward": rf"({_ATTENTION}).*(bprop|bwd|backward|_dq|_dkv)|dot_do_o|convert_dq",
    "attention forward": _ATTENTION,
    "concatenations and slices": r"concat|slice|gather|scatter|(^|_)pad(_|$)",
    "copies": r"copy|memcpy|memset|transpose|nchwtonhwc|nhwctonchw",
    "convolutions": r"conv(?!ert)|fprop|dgrad|wgrad|implicit|winograd|nhwc|cudnn",
    "products": r"nvjet|gemm|gemv|cublas|cutlass|splitk|_dot",
    "reductions": r"reduce",
    "conversions": r"convert",
    "other fusions": r"fusion|loop|input|wrapped|triton",
}
OTHER, LONGEST = "other", 10
HELP = "one more run with a profile: the time of a GPU by kind of kernel"


class Event(NamedTuple):
    """One kernel or copy: its name, the operation of the program that it is of, and when it ran, in ns."""

    name: str
    op: str
    start: float
    duration: float


def profiled(call: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """The `table` of a call, and its result. A profile that cannot be read costs the table alone, which then
    says why."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            result = jax.block_until_ready(call())
        try:
            return table(list(_events(Path(folder)))), result
        except Exception as error:  # whatever the reader of a format of others raises
            return {"error": f"{type(error).__name__}: {error}"[:300]}, result


def _events(folder: Path) -> Iterator[Event]:
    """What ran on the GPU's streams."""
    for file in sorted(folder.rglob("*.xplane.pb")):
        for plane in ProfileData.from_file(str(file)).planes:
            if "GPU" not in plane.name or "CUPTI" in plane.name:
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    op = dict(event.stats).get("hlo_op") or ""
                    yield Event(event.name, str(op), event.start_ns, event.duration_ns)


def table(events: Sequence[Event]) -> dict[str, Any]:
    """Sums of a profile.

    Returns:
      "kernels" and "device_copies": how many; "busy_s": seconds in which any ran, "whole_s": from first to
      last; "kinds": {kind: [seconds, number]}, the longest first; "longest": the names (without their
      numbers) with the most seconds, each with one operation of it.
    """
    kinds, names = _Sums(), _Sums()
    ops: dict[str, str] = {}
    for event in events:
        kinds.add(kind(event.name), event.duration)
        name = re.sub(r"[._]?\d+$", "", event.name)[:110]
        names.add(name, event.duration)
        ops.setdefault(name, event.op[:70])
    ends = [event.start + event.duration for event in events]
    start = min((event.start for event in events), default=0)
    longest = list(names.largest())[:LONGEST]
    return {
        "kernels": len(events),
        "device_copies": sum("memcpyd2d" in event.name.lower() for event in events),
        "busy_s": _busy(events) / 1e9,
        "whole_s": (max(ends, default=0) - start) / 1e9,
        "kinds": {name: [seconds, number] for name, seconds, number in kinds.largest()},
        "longest": [
            {"name": name, "op": ops[name], "seconds": seconds, "number": number}
            for name, seconds, number in longest
        ],
    }


def kind(name: str) -> str:
    """The kind of a kernel, one of `KINDS` or `OTHER`."""
    lower = name.lower()
    return next((kind for kind, holds in KINDS.items() if re.search(holds, lower)), OTHER)


class _Sums:
    """Time and number of what has a name."""

    def __init__(self) -> None:
        self._time = collections.Counter[str]()
        self._number = collections.Counter[str]()

    def add(self, name: str, duration: float) -> None:
        self._time[name] += duration  # type: ignore[assignment]
        self._number[name] += 1

    def largest(self) -> Iterator[tuple[str, float, int]]:
        """Name, seconds and number, the longest first."""
        for name, time in self._time.most_common():
            yield name, time / 1e9, self._number[name]


def _busy(events: Iterable[Event]) -> float:
    """Time in which any of them ran, in ns."""
    busy = end = 0.0
    for event in sorted(events, key=lambda event: event.start):
        stop = event.start + event.duration
        busy += max(0.0, stop - max(event.start, end))
        end = max(end, stop)
    return busy


def lines(found: dict[str, Any]) -> list[str]:
    """A table as text."""
    if "error" in found:
        return [f"the profile could not be read: {found['error']}"]
    if not found["kernels"]:
        return ["the profile holds no kernels; a GPU's does"]
    text = [
        f"{found['kernels']} kernels, {found['device_copies']} of them copies on the device; busy "
        f"{1e3 * found['busy_s']:.1f} of {1e3 * found['whole_s']:.1f} ms"
    ]
    text += [f"  {name:<27}{1e3 * seconds:>10.2f} ms {number:>7}"
             for name, (seconds, number) in found["kinds"].items()]  # fmt: skip
    text += [f"    {1e3 * row['seconds']:>10.3f} ms {row['number']:>7} x {row['name']} [{row['op']}]"
             for row in found["longest"]]  # fmt: skip
    return text


def lines_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The tables of rows that have one in "kernels"."""
    text = []
    for row in rows:
        if "kernels" in row:
            text += [*([row["work"]] if "work" in row else []), *lines(row["kernels"])]
    return text
