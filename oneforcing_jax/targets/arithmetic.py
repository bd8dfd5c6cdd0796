"""Floating-point operations of single HLO instructions; a multiply and an add are two.

Products are counted (dot, convolution, the libraries' and Pallas kernels for them), elementwise work is
not. Where attention learns its number of keys at run time, all its keys are counted, and `run_time_keys` says
so. A kernel that skips blocks by a table counts for what its scope's name says, "seen_3_of_8".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from oneforcing_jax.models.kernels import splash
from oneforcing_jax.targets.hlo import Array, Computation, Instruction

# Products of tokens x keys x head size in a kernel of splash attention, by the kernel's name.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
# The same of a backward pass in one kernel: scores again, and gradients of values, weights, queries, keys.
_FUSED_BACKWARD = 5
# Kernels of cuDNN for convolutions make so many features at once, or twice as many.
_FEATURES = 64


@dataclasses.dataclass(frozen=True)
class Attention:
    """A call of a GPU's attention kernel.

    Attributes:
      rows: samples x heads x queries.
      keys: of each query.
      backward: a backward pass.
      lengths: it is told at run time how many keys count.
    """

    rows: float
    keys: float
    backward: bool = False
    lengths: bool = False


def of(inside: Computation, instruction: Instruction) -> float:
    """Operations of one run of an instruction; 0 for one that multiplies no matrices."""
    match instruction.opcode:
        case "dot":
            contracted = instruction.numbers("lhs_contracting_dims")
            return _dot(instruction.arrays[0], inside.operand(instruction, 0).arrays[0], contracted)
        case "convolution":
            left, right = (inside.operand(instruction, i).arrays[0] for i in (0, 1))
            return _convolution(instruction, left, right, instruction.arrays[0])
        case "custom-call":
            return _library(inside, instruction)
    return 0.0


def run_time_keys(inside: Computation, instruction: Instruction) -> bool:
    """Whether an instruction is an attention kernel that is told at run time how many keys count."""
    if instruction.opcode != "custom-call":
        return False
    if "__cudnn$fmha" in instruction.rest:
        operands = (inside.instructions[name].arrays for name in instruction.operands)
        return any(array.dtype == "s32" for found in operands for array in found)
    return "splash_mha" in instruction.name and splash.RUN_TIME in instruction.source


def attention(inside: Computation, instruction: Instruction) -> Attention | None:
    """The call of cuDNN's attention that an instruction is, with all its keys."""
    if instruction.opcode != "custom-call" or "__cudnn$fmha" not in instruction.rest:
        return None
    b, h, t, s = _logits(instruction)
    backward = "Backward" in instruction.attribute("custom_call_target")
    return Attention(b * h * t, s, backward, run_time_keys(inside, instruction))


def _logits(instruction: Instruction) -> tuple[int, int, int, int]:
    """Samples, heads, queries and keys of a call of cuDNN's attention; zeros where it does not say."""
    shape = re.search(
        r'intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', instruction.rest
    )
    b, h, t, s = (int(i) for i in re.findall(r"\d+", shape.group(1))) if shape else (0,) * 4
    return b, h, t, s


def slowness(inside: Computation, instruction: Instruction) -> float:
    """How many times longer a product takes than one in bf16 that fills its tiles: float32 goes through the
    units twice (as TF32, or in two parts), and six times at the highest precision; cuDNN's convolutions fill
    up their features."""
    if "__cudnn$conv" in instruction.rest and "Backward" not in instruction.rest:
        made = instruction.attribute("dim_labels").partition(">")[2].find("f")
        features = instruction.arrays[0].dims[made]
        return -(-features // _FEATURES) * _FEATURES / features * _precision(inside, instruction)
    return _precision(inside, instruction)


def _precision(inside: Computation, instruction: Instruction) -> float:
    if "operand_precision={highest" in instruction.rest:
        return 6.0
    types = {array.dtype for name in instruction.operands[:2]
             for array in inside.instructions[name].arrays}  # fmt: skip
    return 2.0 if types == {"f32"} else 1.0


def _dot(out: Array, left: Array, contracted: Sequence[int]) -> float:
    return 2.0 * out.size * math.prod(left.dims[i] for i in contracted)


def _convolution(instruction: Instruction, left: Array, right: Array, out: Array) -> float:
    """Operations of a convolution of `left` by the kernel `right`. Positions in padding and between dilated
    elements are not counted, because the products of a batch are written as convolutions with such."""
    labels = instruction.attribute("dim_labels")
    found = re.match(r"(\w+)_(\w+)->(\w+)", labels)
    if not found:
        return 0.0
    image, kernel, made = found.groups()
    window = {
        key: value.split("x")
        for key, value in re.findall(r"(\w+)=([\dx_\-]+)", instruction.attribute("window"))
    }
    pairs = 1
    for axis in (label for label in made if label.isdigit()):
        i = int(axis)
        low, _, _ = _of_axis(window, "pad", i, "0_0").partition("_")
        pairs *= _pairs(
            out.dims[made.index(axis)],
            right.dims[kernel.index(axis)],
            left.dims[image.index(axis)],
            *(int(_of_axis(window, key, i, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate")),
            int(low),
        )
    features = out.dims[made.index("f")] * right.dims[kernel.index("i")]
    return 2.0 * out.dims[made.index("b")] * features * pairs


def _of_axis(window: Mapping[str, Sequence[str]], key: str, axis: int, default: str) -> str:
    """One axis' part of a window's attribute."""
    return window[key][axis] if key in window else default


@functools.lru_cache(maxsize=4096)
def _pairs(out: int, size: int, width: int, stride: int, apart: int, spread: int, low: int) -> int:
    """Pairs of output positions and kernel positions that meet an element of the input."""
    if low == 0 and apart == 1 and (out - 1) * stride + (size - 1) * spread < width:
        return out * size
    total, positions = 0, np.arange(out) * stride - low
    for k in range(size):
        at = positions + k * spread
        total += int(((at >= 0) & (at <= (width - 1) * apart) & (at % apart == 0)).sum())
    return total


def _library(inside: Computation, instruction: Instruction) -> float:
    target, rest = instruction.attribute("custom_call_target").strip('"'), instruction.rest
    if target.startswith("__cublas$"):
        numbers = re.search(r'lhs_contracting_dimensions":\[([^\]]*)\]', rest)
        contracted = [int(i) for i in re.findall(r"\d+", numbers.group(1))] if numbers else []
        return _dot(instruction.arrays[0], inside.operand(instruction, 0).arrays[0], contracted)
    if target.startswith("__cudnn$conv"):
        one, two = (inside.operand(instruction, i).arrays[0] for i in (0, 1))
        out = instruction.arrays[0]
        sides = {"BackwardInput": (out, two, one), "BackwardFilter": (one, out, two)}
        kind = next((kind for kind in sides if kind in target), "")
        return _convolution(instruction, *sides.get(kind, (one, two, out)))
    if target.startswith("__cudnn$fmha"):
        products = _FUSED_BACKWARD if "Backward" in target else 2
        # Its first result is [b, h, t, k].
        return 2.0 * products * instruction.arrays[0].size * _logits(instruction)[-1]
    if target == "tpu_custom_call":
        return _pallas(inside, instruction)
    if "matmul" in target:  # of the CPU's library: the last axis of the left side is contracted
        left = inside.operand(instruction, 0).arrays[0]
        return _dot(instruction.arrays[0], left, (len(left.dims) - 1,))
    return 0.0


def _pallas(inside: Computation, instruction: Instruction) -> float:
    """Operations of splash attention, by the kernel's name; any other kernel says its own."""
    source = f"{instruction.name} {instruction.source}"
    kernel = next((name for name in _SPLASH if name in source), None)
    if not kernel:
        said = re.search(r'"flops":"?(\d+)', instruction.rest)
        return float(said.group(1)) if said else 0.0
    products = _SPLASH[kernel]
    operands = [inside.instructions[name].arrays[0] for name in instruction.operands]
    q, k = [x for x in operands if x.dtype[0] in "bf" and len(x.dims) >= 3][:2]
    # The gradient of queries comes in parts, one a tile of keys.
    if kernel == "splash_mha_dkv" and any(len(x.dims) > len(q.dims) for x in instruction.arrays):
        products = _FUSED_BACKWARD
    seen = re.search(r"seen_(\d+)_of_(\d+)", source)
    share = int(seen.group(1)) / int(seen.group(2)) if seen else 1.0
    return share * 2.0 * products * q.size * k.dims[-2]  # [b, h, t, k] and [b, h, s, k]
