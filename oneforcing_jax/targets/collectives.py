"""Collectives in HLO: of which kind, between which devices, and how many bytes each of them sends."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from oneforcing_jax.targets.hlo import Computation, Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))?\s*\{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Sent:
    """A collective.

    Attributes:
      kind: one of `KINDS`.
      dtype: of what is sent.
      bytes: that a device sends in one run.
      group: devices that take part together, by their number in the mesh.
    """

    kind: str
    dtype: str
    bytes: float
    group: tuple[int, ...]


def kind(i: Instruction) -> str:
    """The kind of a collective; "" for another instruction."""
    opcode = i.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else ""


def sent(inside: Computation, i: Instruction, devices: int, scattered: bool) -> Sent:
    """What a collective sends.

    Args:
      inside: the computation that holds it.
      i: the collective.
      devices: of the program.
      scattered: each device keeps a part of the sum of an all-reduce, which makes it a reduce-scatter.
    """
    found = kind(i)
    found = "reduce-scatter" if found == "all-reduce" and scattered else found
    operands = [a for name in i.operands for a in inside.instructions[name].arrays]
    size, members = sum(a.unpadded for a in operands), group(i, devices)
    n = len(members)
    share = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
    part = share.get(found, (n - 1) / n) if n > 1 else 0.0
    return Sent(found, operands[0].dtype if operands else "", size * part, members)


def group(i: Instruction, devices: int) -> tuple[int, ...]:
    """Devices that take part in a collective together: the first of its groups."""
    if i.opcode.startswith("collective-permute"):
        pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", i.rest)
        return (int(pair.group(1)), int(pair.group(2))) if pair else (0,)
    if mesh := _MESH.search(i.rest):
        return _of_mesh(*mesh.groups())
    _, found, rest = i.rest.partition("replica_groups=")
    if found and (iota := _IOTA.match(rest)):
        sizes = _numbers(iota.group(1))
        return tuple(int(n) for n in _iota(iota.group(2), iota.group(3)).reshape(sizes)[0].ravel())
    if listed := re.match(r"\{\{([\d,]+)\}", rest):
        return tuple(_numbers(listed.group(1)))
    return tuple(range(devices))


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return numbers.transpose(_numbers(order)) if order else numbers


def _of_mesh(axes: str, ids: str | None, used: str) -> tuple[int, ...]:
    """A group along axes of a mesh, or along parts of them: 'x':(2)4 are the 4 after the first 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids or "")
    listed = _numbers(ids) or range(math.prod(sizes.values()))
    numbers = _iota(*order.groups()) if order else np.array(listed)
    parts: list[int] = []
    along: list[int | slice] = []
    taken = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", used)
    for name, size in sizes.items():
        before, kept = next(
            ((int(b or 1), int(k or size)) for a, b, k in taken if a == name), (1, 1)
        )
        parts += [before, kept, size // before // kept]
        along += [0, slice(None), 0]
    return tuple(int(n) for n in numbers.reshape(parts)[tuple(along)].ravel())
