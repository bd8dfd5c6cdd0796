"""What a program does on each device: its kernels, how often they run, and what they read, write and send.

A kernel is an instruction that runs by itself: a fusion, a product, a copy, a collective. Its bytes are
those of the device's main memory. An operand that it slices counts as the slice, and a result that it updates
in place as the update. What lies in a TPU's vector memory does not count.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from oneforcing_jax.targets import arithmetic, collectives, hlo
from oneforcing_jax.targets.arithmetic import Attention
from oneforcing_jax.targets.collectives import Sent
from oneforcing_jax.targets.hlo import Array, Computation, Instruction, Module

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain", "async-update"),
}
_SLICES = ("dynamic-slice", "slice", "gather")
_FREE_CALLS = ("AllocateBuffer", "Sharding", "LayoutConstraint", "AssumeGatherIndicesInBound")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a device.

    Attributes:
      name, opcode, source: of its instruction; of a fusion that holds a collective, the collective's source.
      times: how often it runs.
      flops: operations of a run.
      slowness: how many times longer they take than in bf16.
      read, written: bytes of the device's main memory in a run.
      host: bytes from or to the host's memory in a run.
      sent: of a collective.
      overlaps: it runs beside others.
      attention: of a GPU's attention kernel, with the keys that it reads.
    """

    name: str
    opcode: str
    source: str
    times: float
    flops: float
    slowness: float
    read: float
    written: float
    host: float = 0.0
    sent: Sent | None = None
    overlaps: bool = False
    attention: Attention | None = None


@dataclasses.dataclass(frozen=True)
class Kernels:
    """All kernels of a program.

    Attributes:
      kernels: of one run of the program on one device.
      unknown: loops whose count the text does not tell; they count once.
    """

    kernels: tuple[Kernel, ...]
    unknown: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations."""
        return sum(k.times * k.flops for k in self.kernels)

    @property
    def hbm_bytes(self) -> float:
        """Bytes read and written."""
        return sum(k.times * (k.read + k.written) for k in self.kernels)

    @property
    def sent(self) -> dict[str, float]:
        """Bytes sent, by kind of collective and dtype."""
        total: dict[str, float] = {}
        for k in self.kernels:
            if k.sent:
                name = f"{k.sent.kind} {k.sent.dtype}"
                total[name] = total.get(name, 0.0) + k.times * k.sent.bytes
        return total

    @property
    def copied(self) -> float:
        """Bytes that copies and transposes read and write."""
        copies = re.compile(r"(wrapped_)?(copy|transpose)")
        moves = [
            k
            for k in self.kernels
            if k.opcode in ("copy", "transpose") or (k.opcode == "fusion" and copies.match(k.name))
        ]
        return sum(k.times * (k.read + k.written) for k in moves)


def read(
    text: str, devices: int = 1, shares: Mapping[str, float] | None = None, keys: float = 1.0
) -> Kernels:
    """The work of a compiled program.

    Args:
      text: of `compiled.as_text()`.
      devices: that run it.
      shares: how often a conditional takes its dearest branch, by a part of its name in the traced
        program; one that none fits takes it always.
      keys: share of the keys that attention reads where it is told their number at run time.
    """
    walk = _Walk(hlo.parse(text), devices, shares or {}, keys)
    found = walk.visit(walk.module.entry, 1.0)
    return Kernels(tuple(found), tuple(walk.unknown))


class _Walk:
    """One walk over the executed instructions of a program."""

    def __init__(
        self, module: Module, devices: int, shares: Mapping[str, float], keys: float
    ) -> None:
        self.module, self.devices, self.shares, self.keys = module, devices, shares, keys
        self.unknown: list[str] = []
        self.carriers: dict[tuple[str, str], str] = {}

    def visit(self, inside: Computation, times: float) -> list[Kernel]:
        """Kernels of a computation that runs `times` times."""
        found: list[Kernel] = []
        for instruction in inside.instructions.values():
            found += self._run(inside, instruction, times)
        return found

    def _run(self, inside: Computation, i: Instruction, times: float) -> list[Kernel]:
        if i.opcode in _FREE or i.opcode.endswith("-done") or _is_free_call(i):
            return []
        if i.opcode == "while":
            trips = self.module.trips(inside, i)
            if trips is None:
                self.unknown.append(i.source or i.name)
            body = self.module.computations[i.attribute("body")]
            return self.visit(body, times * (1 if trips is None else trips))
        if i.opcode == "conditional":
            return self._branches(i, times)
        if i.opcode == "call" or (i.opcode == "async-start" and not self._collective(i)):
            return self.visit(self.module.computations[i.called[0]], times)
        return [self._kernel(inside, i, times)]

    def _branches(self, i: Instruction, times: float) -> list[Kernel]:
        """The dearest branch as often as `shares` says, the cheapest otherwise."""

        def cost(kernels: list[Kernel]) -> float:
            return sum(k.times * (k.flops + 100 * (k.read + k.written)) for k in kernels)

        branches = sorted(
            (self.visit(self.module.computations[c], 1.0) for c in i.called), key=cost
        )
        share = next((s for name, s in self.shares.items() if name in i.source), 1.0)
        weighed = [(branches[-1], share)] + ([(branches[0], 1 - share)] if share < 1 else [])
        return [
            dataclasses.replace(k, times=k.times * times * part) for ks, part in weighed for k in ks
        ]

    def _kernel(self, inside: Computation, i: Instruction, times: float) -> Kernel:
        held = self._collective(i)
        sent = self._sent(inside, i, held)
        source = (held[1].source if held else "") or i.source
        flops, slow = self._flops(inside, i)
        attention = arithmetic.attention(inside, i)
        reads = [self._read(inside, i, n) for n in range(len(i.operands))]
        if self.keys < 1 and arithmetic.run_time_keys(inside, i):
            flops *= self.keys
            if attention:
                attention = dataclasses.replace(attention, keys=self.keys * attention.keys)
            largest = sorted(range(len(reads)), key=lambda n: -reads[n])[:2]  # keys and values
            reads = [r * self.keys if n in largest else r for n, r in enumerate(reads)]
        read = sum(reads)
        written = self._written(inside, i)
        if i.opcode.endswith("-start") and i.opcode != "fusion-start":
            written = sum(_hbm(array) for array in _results(i))
        moved = (*i.arrays, *(a for name in i.operands for a in inside.instructions[name].arrays))
        host = sum(a.bytes for a in moved[:2] if a.space == hlo.HOST)
        overlaps = i.opcode.endswith("-start") and '"is_sync":true' not in i.rest
        return Kernel(
            i.name, i.opcode, source, times, flops, slow, read, written, host, sent, overlaps,
            attention,
        )  # fmt: skip

    def _flops(self, inside: Computation, i: Instruction) -> tuple[float, float]:
        """Operations, and their mean slowness."""
        if i.opcode not in ("fusion", "async-start"):
            one = arithmetic.of(inside, i)
            return one, arithmetic.slowness(inside, i) if one else 1.0
        total, slow = 0.0, 0.0
        for name in i.called:
            computation = self.module.computations[name]
            for inner in computation.instructions.values():
                if inner.opcode in ("fusion", "dot", "convolution", "custom-call"):
                    flops, slowness = self._flops(computation, inner)
                    total, slow = total + flops, slow + flops * slowness
        return total, slow / total if total else 1.0

    # Bytes.

    def _read(self, inside: Computation, i: Instruction, number: int) -> float:
        operand = inside.operand(i, number)
        whole = float(sum(_hbm(array) for array in operand.arrays))
        if not whole or i.opcode == "async-start":
            return whole
        if i.opcode.removesuffix("-start") in _SLICES and number == 0:
            return min(whole, float(sum(array.bytes for array in _results(i))))
        if _updates(i) and number == 0:
            return 0.0
        if i.opcode in ("fusion", "fusion-start") and len(operand.arrays) == 1:
            called = self.module.computations[i.called[0]]
            if number in called.parameters:
                return min(whole, self._used(called, called.parameters[number], whole))
        return whole

    def _used(self, inside: Computation, value: Instruction, whole: float) -> float:
        """Bytes of `value` that the fusion around it reads."""
        total = 0.0
        for user in inside.users[value.name]:
            first = user.operands[0] == value.name
            if user.opcode in _SLICES and first:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == "bitcast":
                total += self._used(inside, user, whole)
            elif user.opcode == "fusion":
                called = self.module.computations[user.called[0]]
                inner = [
                    called.parameters[n] for n, o in enumerate(user.operands) if o == value.name
                ]
                total += sum(self._used(called, p, whole) for p in inner)
                if _behind(called, called.instructions[called.root]) in inner:
                    total += self._used(inside, user, whole)
            elif not (_updates(user) and first):
                return whole
        return total

    def _written(self, inside: Computation, i: Instruction) -> float:
        if _updates(i):
            return min(_update_bytes(inside, i), sum(_hbm(array) for array in i.arrays))
        if i.opcode not in ("fusion", "fusion-start"):
            return float(sum(_hbm(array) for array in i.arrays))
        arrays = _results(i)
        called = self.module.computations[i.called[0]]
        root = called.instructions[called.root]
        roots = (
            [called.instructions[o] for o in root.operands] if root.opcode == "tuple" else [root]
        )
        if len(roots) != len(arrays):
            return float(sum(_hbm(array) for array in arrays))
        pairs = zip(arrays, roots, strict=True)
        return sum(min(_hbm(a), self._made(called, r)) for a, r in pairs)

    def _made(self, inside: Computation, root: Instruction) -> float:
        """Bytes that a fusion writes of its result `root`."""
        at = root
        while at.opcode in ("bitcast", "convert", "copy") and at.operands:
            at = inside.operand(at, 0)
        if _updates(at):
            return _update_bytes(inside, at)
        if at.opcode == "fusion" and len(at.arrays) == 1:
            return self._written(inside, at)
        return math.inf

    # Collectives.

    def _collective(self, i: Instruction) -> tuple[Computation, Instruction] | None:
        """The collective that a fusion or an asynchronous call holds."""
        if i.opcode not in ("fusion", "async-start") or not i.called:
            return None
        called = self.module.computations.get(i.called[0])
        inner = called.instructions.values() if called else ()
        return next(((called, x) for x in inner if called and collectives.kind(x)), None)

    def _sent(
        self, around: Computation, i: Instruction, held: tuple[Computation, Instruction] | None
    ) -> Sent | None:
        """What a collective sends, or the one that a fusion holds."""
        inside, inner = held or (around, i)
        if not collectives.kind(inner):
            return None
        # On TPUs one collective can go on beside several fusions, each of which holds it.
        channel = re.search(r"channel_id=(\d+)", inner.rest)
        if held and channel:
            first = self.carriers.setdefault((around.name, channel[1]), i.name)
            if first != i.name:
                return None
        # TPUs run a reduce-scatter as an all-reduce and a slice in one fusion.
        slices = any(x.opcode == "dynamic-slice" for x in inside.instructions.values())
        return collectives.sent(inside, inner, self.devices, held is not None and slices)


def _hbm(array: Array) -> float:
    return float(array.bytes) if array.space == 0 else 0.0


def _results(i: Instruction) -> tuple[Array, ...]:
    """What an instruction makes; the result of one that begins something holds its operands too."""
    if not i.opcode.endswith("-start"):
        return i.arrays
    if i.opcode == "fusion-start":  # operands, results and a state
        return i.arrays[len(i.operands) : -1]
    arrays = tuple(array for array in i.arrays if array.space != hlo.FLAGS)
    return arrays[:1] if i.opcode == "copy-start" else arrays[len(arrays) // 2 :]


def _behind(inside: Computation, value: Instruction) -> Instruction:
    """The instruction whose result `value` only gives another shape."""
    while value.opcode == "bitcast":
        value = inside.operand(value, 0)
    return value


def _updates(i: Instruction) -> bool:
    return i.opcode in ("dynamic-update-slice", "scatter")


def _update_bytes(inside: Computation, i: Instruction) -> float:
    update = inside.operand(i, 1 if i.opcode == "dynamic-update-slice" else 2)
    return float(sum(array.bytes for array in update.arrays))


def _is_free_call(i: Instruction) -> bool:
    return i.opcode == "custom-call" and any(
        f'custom_call_target="{name}' in i.rest for name in _FREE_CALLS
    )
