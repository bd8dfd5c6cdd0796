"""The text of a compiled program (`compiled.as_text()`) as computations and instructions.

One pass over the lines, so that the time is linear in the text; attributes are looked up when asked for.
TPU, GPU and CPU programs are read alike. Where a loop's count is not written down, it is read from the
loop's condition.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from oneforcing_jax.errors import InputError

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*?) ?([a-z][a-z0-9-]*)\(")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) .*\{$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]*)\)")
_OPERANDS_END = re.compile(r"\)(?=, [a-z_]+=|\s*$)")
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
VMEM, FLAGS, HOST = 1, 2, 5  # memory spaces of TPUs; 0 is HBM


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result.

    Attributes:
      dtype: as HLO writes it.
      dims: sizes.
      bytes: that it takes in memory, padded to the tiles of its layout.
      space: memory space; 0 is the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    bytes: int
    space: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def unpadded(self) -> float:
        """Bytes of the elements alone."""
        return self.size * bits(self.dtype) / 8


def bits(dtype: str) -> int:
    """Bits of an element."""
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.search(r"\d+", dtype)
    return int(number.group()) if number else 0


@functools.lru_cache(maxsize=1 << 16)
def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, tuples flattened."""
    return tuple(_array(*match.groups()) for match in _ARRAY.finditer(shape))


def _array(dtype: str, sizes: str, layout: str | None) -> Array:
    dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    layout = layout or ""
    order = [int(i) for i in layout.split(":")[0].split(",") if i]
    major = [dims[i] for i in reversed(order)] if len(order) == len(dims) else list(dims)
    if tile := _TILE.search(layout):
        parts = [int(i) for i in tile.group(1).split(",") if i]
        for i, part in enumerate(reversed(parts), 1):
            if i <= len(major):
                major[-i] = -(-major[-i] // part) * part
    space = re.search(r"S\((\d+)\)", layout)
    size = math.prod(major) * bits(dtype) // 8
    return Array(dtype, dims, size, int(space.group(1)) if space else 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as written.
      shape: text of the result's shape.
      operands: names of instructions of the same computation.
      rest: the line after the operation's name, operands and attributes.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result."""
        return arrays(self.shape)

    def attribute(self, name: str) -> str:
        """Text of an attribute without its outer brackets; "" where it is not there."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|%?([^\s,{{}}]+))", self.rest)
        return (found.group(1) or found.group(2) or "") if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of numbers."""
        return tuple(int(number) for number in re.findall(r"\d+", self.attribute(name)))

    @property
    def source(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, in order."""
        names = re.findall(
            r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", self.rest
        )
        return (*names, *_OPERAND.findall(self.attribute("branch_computations")))


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run, the name of the last one, and users."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Instructions that read each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Parameters by number."""
        return {
            int(i.rest.partition(")")[0]): i
            for i in self.instructions.values()
            if i.opcode == "parameter"
        }

    def operand(self, instruction: Instruction, number: int) -> Instruction:
        """An operand of an instruction."""
        return self.instructions[instruction.operands[number]]

    def constant(self, name: str) -> int | None:
        """The value of a scalar constant, through copies and conversions; None for anything else."""
        at = self.instructions.get(name)
        while at and at.opcode in ("copy", "convert", "bitcast", "reshape") and at.operands:
            at = self.instructions.get(at.operands[0])
        number = re.match(r"(-?\d+)\)", at.rest) if at and at.opcode == "constant" else None
        return int(number.group(1)) if number else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and which one it begins with."""

    computations: Mapping[str, Computation]
    entry: Computation

    def trips(self, inside: Computation, loop: Instruction) -> int | None:
        """How often a loop's body runs; None where the text does not tell."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition")]
        test = condition.instructions[condition.root]
        bound = [condition.constant(name) for name in test.operands]
        if test.opcode == "fusion" and len(set(bound) - {None}) == 1:
            bound = [None, *(set(bound) - {None})]
            compared = next((i for i in condition.instructions.values() if _is_item(i)), None)
        elif test.opcode == "compare" and "direction=LT" in test.rest and len(bound) == 2:
            compared = condition.instructions[test.operands[0]]
        else:
            return None
        if bound[1] is None or compared is None or not _is_item(compared):
            return None
        return max(bound[1] - self._start(inside, loop, int(compared.attribute("index"))), 0)

    def _start(self, inside: Computation, loop: Instruction, index: int) -> int:
        """What a loop's counter begins with: 0 unless a constant says otherwise."""
        first = inside.instructions.get(loop.operands[0])
        if first is None or first.opcode != "tuple":
            return 0
        return inside.constant(first.operands[index]) or 0


def _is_item(instruction: Instruction) -> bool:
    return instruction.opcode == "get-tuple-element"


def _lines(text: str) -> Iterator[str]:
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def parse(text: str) -> Module:
    """Reads a program.

    Raises:
      InputError: the text holds none.
    """
    computations: dict[str, Computation] = {}
    body: dict[str, Instruction] = {}
    name, entry, root, last = "", "", "", ""
    for line in _lines(text):
        if match := _INSTRUCTION.match(line) if line[:1] == " " else None:
            is_root, last, shape, opcode = match.groups()
            rest = line[match.end() :]
            end = _OPERANDS_END.search(rest)
            inner = rest[: end.start()] if end else rest
            names = () if opcode == "constant" else tuple(_OPERAND.findall(inner))
            body[last] = Instruction(last, opcode, shape, names, rest)
            root = last if is_root else root
        elif line[:1] == "}" and body and line.strip() == "}":
            computations[name] = Computation(name, body, root or last)
            body, root = {}, ""
        elif line[:1] not in (" ", "}") and (header := _HEADER.match(line)):
            name = header.group(2)
            entry = name if header.group(1) else entry
        elif body and last:  # an attribute that goes on
            body[last] = dataclasses.replace(body[last], rest=body[last].rest + line)
    if entry not in computations:
        raise InputError(
            "program: expected the text of a compiled program with an ENTRY computation, found "
            f"{len(text)} characters without; pass compiled.as_text()"
        )
    return Module(computations, computations[entry])
