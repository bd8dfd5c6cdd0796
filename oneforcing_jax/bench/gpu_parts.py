"""The parts of `bench gpu`, each of them a process of its own, whose end frees the device's memory.

It writes what it has found to its file again and again, so that what ends a part early costs the rest
alone. Without a GPU it is a rehearsal: of small
ceilings, and kernel tables without kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from oneforcing_jax import families
from oneforcing_jax.bench import ceilings, generate, trace, train
from oneforcing_jax.bench.ceilings import Note, said
from oneforcing_jax.bench.timing import clocked, peak_memory, queued, waited
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import Plan, make_plan
from oneforcing_jax.generation.streaming import decoded
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import presets
from oneforcing_jax.setup.config import PREFIX
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system.command import Help
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.targets import chips
from oneforcing_jax.training.train import student, trained

ROOT = Path(__file__).parents[2]
REPEATS, STAGE = 2, "one_forcing"
# Tests with the marker "gpu", the networks' first.
VECTORS = tuple(
    f"tests/test_{n}.py" for n in ("models", "causal", "vae", "one_forcing", "attention")
)
# Each process has a context on the GPU.
WORKERS = 14


def streaming(run: Run, note: Note) -> None:
    """A student's blocks: while each is waited for, and queued."""
    made, blocks, plan = _stream(run)
    compiling, _ = waited(blocks())
    note(with_compilation_s=sum(compiling))
    rows = [waited(blocks())[0] for _ in range(REPEATS)]
    each = [statistics.median(row) for row in zip(*rows, strict=True)]
    times = [queued(lambda: list(blocks())) for _ in range(REPEATS)]
    host, both = (statistics.median(row[i] for row in times) for i in (0, 1))
    tokens = made.frame_tokens(run.latents.rows, run.latents.columns)
    work = flops.generation(made, tokens, plan).forward
    note(
        first_block_s=each[0],
        steady_blocks_s=each[1:],
        waited_s=sum(each),
        host_s=host,
        diffusion_s=both,
        flops=work,
        **_rate(work, both),
        peak_memory_bytes=peak_memory(),
    )
    note(kernels=trace.profiled(lambda: list(blocks()))[0])


def _stream(run: Run) -> tuple[Any, Callable[[], Iterator[jax.Array]], Plan]:
    """The student's config, a function that streams one video of random weights, and its blocks."""
    size, blocks, network = run.latents, run.blocks, student(run)
    made, video = network.config, families.of_run(run).video
    first = blocks.first_frames or None, video.first_steps
    plan = make_plan(size.frames, blocks.frames, video.steps, run.shift, *first)
    streamed = generate.random_student(network.model, Window())
    noise, given = generate.random_inputs(streamed, size, 1)
    return made, lambda: generate.video(streamed, noise, given, plan), plan


def vae(run: Run, note: Note) -> None:
    """Decoding of a video, and both of its parts overlapped, as videos are made."""
    made, blocks, _ = _stream(run)
    decoder = generate.random_decoder(run.latents, made.dtype)
    latents = jax.block_until_ready(list(blocks()))

    def decode() -> list[jax.Array]:
        return list(map(decoder(), latents))

    compiling, _ = waited(latents, decoder())
    note(with_compilation_s=sum(compiling))
    rows = [waited(latents, decoder())[0] for _ in range(REPEATS)]
    each = [statistics.median(row) for row in zip(*rows, strict=True)]
    queued = statistics.median(clocked(decode)[0] for _ in range(REPEATS))
    note(
        first_decode_s=each[0],
        steady_decode_s=statistics.median(each[1:]),
        waited_s=sum(each),
        decode_s=queued,
    )
    note(kernels=trace.profiled(decode)[0])
    shown = [waited(decoded(blocks(), decoder()))[0] for _ in range(REPEATS + 1)][1:]
    note(
        first_frame_s=statistics.median(row[0] for row in shown),
        total_s=statistics.median(map(sum, shown)),
        peak_memory_bytes=peak_memory(),
    )


def updates(run: Run, note: Note) -> None:
    """The updates of One-Forcing, with the settings that make one clip fit the device."""
    found: dict[str, Any] = {}

    def seen(row: dict[str, Any]) -> None:
        row = row | _rate(row["flops"], row["step_s"])
        found[row["work"].removesuffix(" update")] = row
        note(updates=found, peak_memory_bytes=peak_memory())

    note(batch=trained(run)[STAGE].batch)
    train.measure(run, STAGE, REPEATS, parts=False, profile=True, note=seen)


def one_clip() -> list[str]:
    """Overrides with which an update of one clip fits the device: those of its preset, if there is one."""
    kind = jax.devices()[0].device_kind
    name = next((name for name, chip in chips.CHIPS.items() if chips.find(kind) is chip), "")
    preset = presets.overrides(name) if name in presets.PRESETS else []
    batch = {"batch": jax.device_count(), "microbatch": 0}
    return preset + [f"{PREFIX}stages.{STAGE}.{field}={n}" for field, n in batch.items()]


def _rate(work: float, seconds: float) -> dict[str, Any]:
    """Operations a second, and the part of the device's peak."""
    chip = chips.find(jax.devices()[0].device_kind)
    rate = work / seconds
    return {"flops_per_s": rate, "utilisation": rate / chip.peak if chip else None}


# Of pytest's -v under -n: "[gw3] [ 12%] PASSED tests/test_models.py::test_bidirectional ".
_RESULT = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (tests/\S.*\S)")


def vectors(run: Run, note: Note) -> None:
    """Recorded vectors, by the tests that hold them; products of float32 are exact, and nothing is tuned."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    more = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": flags.strip()}
    workers = max(1, min(WORKERS, (os.cpu_count() or 1) - 1))
    command = [sys.executable, "-m", "pytest", "-v", "-n", str(workers), "-m", "gpu", *VECTORS]
    pytest = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | more, stdout=subprocess.PIPE, text=True
    )
    assert pytest.stdout is not None
    found: dict[str, list[str]] = {"passed": []}
    said: list[str] = []
    for line in pytest.stdout:
        said = [*said[-99:], line]
        if result := _RESULT.search(line):
            kind = "failed" if result[1] == "ERROR" else result[1].lower()
            found.setdefault(kind, []).append(result[2])
            note(**found)
    if pytest.wait():
        print("".join(said), file=sys.stderr)
        raise RuntimeError(
            f"pytest ended with {pytest.returncode}: {said[-1].strip() if said else ''}"
        )


PARTS: dict[str, Callable[[Run, Note], None]] = {
    "ceilings": lambda run, note: ceilings.measure(note),
    "streaming": streaming,
    "vae": vae,
    "updates": updates,
    "vectors": vectors,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one part; the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_parts", description=__doc__, formatter_class=Help)
    parser.add_argument("part", choices=list(PARTS), help="which")
    parser.add_argument("config", help="a Python file with get_config()")
    parser.add_argument("file", type=Path, help="JSON file to write")
    given, overrides = parser.parse_known_args(arguments)
    part, config, file = given.part, given.config, given.file
    found: dict[str, Any] = {}

    def note(**values: Any) -> None:
        found.update(values)
        write_whole(file, json.dumps(found).encode())

    try:
        if part == "vectors":  # many processes share the device
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        else:
            note(device=jax.devices()[0].device_kind, platform=jax.default_backend())
        more = one_clip() if part == "updates" else []
        PARTS[part](Run.of(configs.load(config, [*more, *overrides])), note)
    except Exception as error:  # whatever ends a part is what it has to report
        traceback.print_exc()
        note(error=said(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
