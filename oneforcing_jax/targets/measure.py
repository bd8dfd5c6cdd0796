"""Compiles programs ahead for a target and reads what they cost."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from oneforcing_jax.system.files import write_whole
from oneforcing_jax.system.room import per_device
from oneforcing_jax.targets import kernels, roofline
from oneforcing_jax.targets.programs import Program
from oneforcing_jax.targets.topology import GPUS_A_HOST, Target

# Without a device no tiles are tried, and some products then have none.
NO_TILES = "Couldn't find output tile sizes"
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one program costs on each device.

    Attributes:
      name, runs: of the program.
      compile_s: seconds of compilation; of one that was read again, those of the first time.
      bytes: "state", "resident" (frozen networks), "temporary", "peak" and "limit".
      flops: operations by the compiled program, recomputation included.
      hbm_bytes, copied_bytes: moved in the device's memory, and by copies and transposes of that.
      collectives: bytes sent by kind and dtype.
      predicted_s, bound, parts: see `roofline.Prediction`.
      model_flops, hardware_flops: by `flops.py`, of all devices; 0: not counted.
      notes: what was done to make it compile, loops of unknown length.
      error: why it did not compile; "" if it did.
    """

    name: str
    runs: float
    compile_s: float = 0.0
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    flops: float = 0.0
    hbm_bytes: float = 0.0
    copied_bytes: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    predicted_s: float = 0.0
    bound: str = ""
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def collective_bytes(self) -> float:
        """Bytes that a device sends."""
        return sum(self.collectives.values())

    @property
    def fits(self) -> bool:
        """Whether it compiles and fits the memory."""
        return not self.error and self.bytes["peak"] <= self.bytes["limit"]


def costs(program: Program, target: Target, cache: Path | None = None) -> list[Cost]:
    """Compiles a program and reads its text, once for each way in which it runs.

    Args:
      program: of the run.
      target: whose devices it is laid out on.
      cache: folder of what was compiled before; None: compile always. JAX's own cache cannot serve: without
        a device it has nothing to load a program into.
    """
    blank = [Cost(r.name, r.runs, model_flops=r.model_flops, hardware_flops=r.hardware_flops)
             for r in program.readings]  # fmt: skip
    try:
        with jax.set_mesh(program.mesh):
            traced = program.call.trace(*program.arguments)  # type: ignore[attr-defined]
            lowered = traced.lower(lowering_platforms=(target.platform,))
        found = _compiled(program, target, lowered, cache)
    except (
        Exception
    ) as error:  # compilers and kernels raise errors of any type; each is a result here
        return [dataclasses.replace(cost, error=_one_line(error)) for cost in blank]
    return [dataclasses.replace(cost, **read) for cost, read in zip(blank, found, strict=True)]


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


class _Made(NamedTuple):
    """What the compiler gives: seconds it took, bytes of memory by kind, notes, and the program's text."""

    compile_s: float
    memory: dict[str, int]
    notes: list[str]
    text: str


def _compiled(
    program: Program, target: Target, lowered: Any, cache: Path | None
) -> list[dict[str, Any]]:
    """Fields of `Cost` for each reading."""
    file = cache / f"{_key(target, lowered)}.json.gz" if cache else None
    if file and file.is_file():
        made = _Made(**json.loads(gzip.decompress(file.read_bytes())))
    else:
        made = _compile(target, lowered)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, gzip.compress(json.dumps(made._asdict()).encode(), 1))
    common: dict[str, Any] = {
        "compile_s": made.compile_s,
        "bytes": _bytes(program, target, made.memory),
    }
    found = [common | _read(program, target, made.text, r.keys) for r in program.readings]
    for read in found:
        read["notes"] = made.notes + read["notes"]
    return found


def _compile(target: Target, lowered: Any) -> _Made:
    start, notes = time.perf_counter(), list[str]()
    try:
        made = lowered.compile()
    except Exception as error:
        if target.platform != "cuda" or NO_TILES not in str(error):
            raise
        made = lowered.compile(compiler_options=NO_TRITON)
        notes.append("compiled without Triton products: not autotuned, no tiles were found")
    taken, found = time.perf_counter() - start, made.memory_analysis()
    kinds = ("temp", "output", "alias", "argument")
    memory = {kind: getattr(found, f"{kind}_size_in_bytes") for kind in kinds}
    return _Made(taken, memory, notes, made.as_text())


def _key(target: Target, lowered: Any) -> str:
    """A hash of everything that a compiled program depends on: the traced one, target and compiler."""
    parts = [lowered.as_text(), repr(target.chip), target.name]
    for package in ("jaxlib", "libtpu", "jax_cuda12_plugin"):
        try:
            parts.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _bytes(program: Program, target: Target, memory: dict[str, int]) -> dict[str, int]:
    beside = per_device(program.state) + per_device(program.frozen)
    own = max(per_device(program.arguments), beside)
    temporary = memory["temp"] + memory["output"] - memory["alias"]
    return {
        "state": per_device(program.state),
        "resident": per_device(program.frozen),
        "temporary": temporary,
        # The compiler's count of the arguments has their padding, but not those it does not read.
        "peak": max(own, memory["argument"]) + temporary,
        "limit": int(target.chip.memory),
    }


def _read(program: Program, target: Target, text: str, keys: float) -> dict[str, Any]:
    work = kernels.read(text, program.mesh.size, program.shares, keys)
    predicted = roofline.predict(work, target.chip, _island(target))
    return {
        "flops": work.flops,
        "hbm_bytes": work.hbm_bytes,
        "copied_bytes": work.copied,
        "collectives": work.sent,
        "predicted_s": predicted.seconds,
        "bound": predicted.bound,
        "parts": predicted.parts,
        "notes": [f"loop of unknown length, counted once: {name}" for name in work.unknown],
    }


def _island(target: Target) -> int:
    """Devices that links join."""
    if target.platform == "tpu":
        slices = {getattr(device, "slice_index", None) for device in target.devices}
        return max(len(target.devices) // len(slices), 1)
    return GPUS_A_HOST
