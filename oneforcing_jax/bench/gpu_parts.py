"""The parts of `bench gpu`, each of them a process of its own, whose end frees the device's memory.

    python -m oneforcing_jax.bench.gpu_parts PART CONFIG FILE [overrides]

writes what was found so far to FILE, again and again, so that what ends a part early costs the rest alone.
Without a GPU it is a rehearsal: of small ceilings, and kernel tables without kernels.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import chips, presets
from oneforcing_jax import config as configs
from oneforcing_jax.bench import generate, trace, train
from oneforcing_jax.bench.timing import clocked, waited
from oneforcing_jax.causal import flops
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import Plan, make_plan
from oneforcing_jax.config import PREFIX
from oneforcing_jax.files import write_whole
from oneforcing_jax.generation.streaming import decoded
from oneforcing_jax.generation.student import FIRST_STEPS
from oneforcing_jax.run import Run
from oneforcing_jax.training.train import student, trained

ROOT = Path(__file__).parents[2]
REPEATS, STAGE = 2, "one_forcing"
# Sizes of the published models: a student of 12 heads, a teacher of 40; 1560 tokens a frame, 32760 a clip.
# Of products the rows, and the columns of the one matrix and of the next.
PRODUCTS = (
    (8192, 8192, 8192),
    (3120, 1536, 1536),
    (3120, 1536, 8960),
    (32760, 1536, 8960),
    (32760, 5120, 13824),
)
# Queries, keys, heads. 32256 is the multiple of 256 below 32760.
ATTENTION = (
    (1560, 512, 12),
    (1560, 1560, 12),
    (1560, 17160, 12),
    (3120, 17160, 12),
    (1560, 32760, 12),
    (3120, 32760, 12),
    (32760, 32760, 12),
    (32256, 32256, 12),
    (32760, 32760, 40),
)
TRAINED = ((32760, 32760, 12), (32256, 32256, 12))
# Operations that follow each other in one program, so that the device does not wait for the host; and small
# ones, so that it does.
CHAIN, SMALL = 8, 200
# Tests with the marker "gpu", the networks' first.
VECTORS = tuple(
    f"tests/test_{n}.py" for n in ("models", "causal", "vae", "one_forcing", "attention")
)
# Each process has a context on the GPU.
WORKERS = 14

Note = Callable[..., None]


def ceilings(run: Run, note: Note) -> None:
    """What the device does at best: products, attention, memory, and how fast it is given kernels."""
    gpu = jax.default_backend() == "gpu"
    less, kernel = (1, "cudnn") if gpu else (128, "xla")
    products = (_product(*(size // less for size in sizes)) for sizes in PRODUCTS)
    _rows(note, "products", products)
    x = jnp.ones((1 << 30) // less**3, jnp.bfloat16)
    seconds = _each(jax.jit(lambda x: x + 1), x)
    note(copy={"bytes": 2 * x.nbytes, "seconds": seconds, "bytes_per_s": 2 * x.nbytes / seconds})
    del x
    for name, cases, backward in (("attention", ATTENTION, False), ("trained", TRAINED, True)):
        sizes = ((t // less, s // less, h) for t, s, h in cases)
        _rows(note, name, (_attention(*size, kernel, backward) for size in sizes))
    note(launches=_launches())


def _rows(note: Note, name: str, rows: Iterable[Callable[[], dict[str, Any]]]) -> None:
    """Notes each row as it is made, with its rate; of one that fails, why."""
    found: list[dict[str, Any]] = []
    for row in rows:
        try:
            made = row()
            found.append(made | {"flops_per_s": made["flops"] / made["seconds"]})
        except Exception as error:  # kernels refuse sizes in many ways; each is a result here
            found.append({"error": _said(error)})
        note(**{name: found})


def _product(m: int, k: int, n: int) -> Callable[[], dict[str, Any]]:
    """Products of m rows with a matrix [k, n] and one [n, k] in turn; the mean of both."""

    def chain(x: jax.Array, there: jax.Array, back: jax.Array) -> jax.Array:
        for _ in range(CHAIN):
            x = x @ there @ back
        return x

    def row() -> dict[str, Any]:
        there, back = _random(1, k, n) / k**0.5, _random(2, n, k) / n**0.5
        seconds = _each(jax.jit(chain), _random(0, m, k), there, back) / (2 * CHAIN)
        return {"size": [m, k, n], "seconds": seconds, "flops": 2 * m * k * n}

    return row


def _attention(t: int, s: int, h: int, kernel: Any, backward: bool) -> Callable[[], dict[str, Any]]:
    """Attention of t queries and s keys; the kernel computes the logits again in the backward pass."""

    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return call(q, k, v).astype(jnp.float32).sum()

    def chain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        for _ in range(CHAIN):
            q = call(q, k, v)
        return q

    def row() -> dict[str, Any]:
        inputs = [_random(i, 1, n, h, 128) for i, n in enumerate((t, s, s))]
        made, calls = (jax.grad(total, (0, 1, 2)), 1) if backward else (chain, CHAIN)
        work = 4 * t * s * h * 128 * (3.5 if backward else 1)
        return {"size": [t, s, h], "seconds": _each(jax.jit(made), *inputs) / calls, "flops": work}

    return row


def _random(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _each(call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call among others that are queued before it has ended: of the device, if they are long."""
    once = min(clocked(call, *arguments)[0] for _ in range(3))
    count = max(2, min(50, int(0.5 / once)))
    found, start = None, time.perf_counter()
    for _ in range(count):
        found = call(*arguments)  # the one before is let go, or the memory would not do
    jax.block_until_ready(found)
    return (time.perf_counter() - start) / count


def _launches() -> dict[str, Any]:
    """Seconds a kernel, of a chain of small products: of the host alone, and of both; with command buffers,
    which give the device many kernels at once, and without."""

    def chain(x: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(SMALL):
            x = x @ w
        return x

    x, w, found = _random(0, 128, 128), _random(1, 128, 128) / 12, dict[str, Any]()
    single: dict[str, str | bool] = {"xla_gpu_enable_command_buffer": ""}
    for name, options in (("buffered", None), ("single", single)):
        made = jax.jit(chain).lower(x, w).compile(compiler_options=options)
        clocked(made, x, w), clocked(made, x, w)
        queued = [_queued(lambda: made(x, w)) for _ in range(10)]  # noqa: B023, called here
        host, both = (statistics.median(row[i] for row in queued) / SMALL for i in (0, 1))
        found[name] = {"kernels": SMALL, "host_s": host, "seconds": both}
    return found


def _queued(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until the host has queued a call, and until its results are there."""
    start = time.perf_counter()
    found = call()
    queued = time.perf_counter() - start
    jax.block_until_ready(found)
    return queued, time.perf_counter() - start


def streaming(run: Run, note: Note) -> None:
    """A student's blocks: while each is waited for, and queued."""
    made, blocks, plan = _stream(run)
    compiling, _ = waited(blocks())
    note(with_compilation_s=sum(compiling))
    rows = [waited(blocks())[0] for _ in range(REPEATS)]
    each = [statistics.median(row) for row in zip(*rows, strict=True)]
    queued = [_queued(lambda: list(blocks())) for _ in range(REPEATS)]
    host, both = (statistics.median(row[i] for row in queued) for i in (0, 1))
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
        **_memory(),
    )
    note(kernels=trace.profiled(lambda: list(blocks()))[0])


def _stream(run: Run) -> tuple[Any, Callable[[], Iterator[jax.Array]], Plan]:
    """The student's config, a function that streams one video of random weights, and its blocks."""
    size, blocks, made = run.latents, run.blocks, student(run).config
    first = blocks.first_frames or None, FIRST_STEPS
    plan = make_plan(size.frames, blocks.frames, (1000.0,), run.shift, *first)
    streamed = generate.random_student(made, Window())
    noise, text = generate.random_inputs(streamed, size, 1)
    return made, lambda: streamed.stream(noise, text, plan), plan


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
        **_memory(),
    )


def updates(run: Run, note: Note) -> None:
    """The updates of One-Forcing, with the settings that make one clip fit the device."""
    found: dict[str, Any] = {}

    def seen(row: dict[str, Any]) -> None:
        row = row | _rate(row["flops"], row["step_s"])
        found[row["work"].removesuffix(" update")] = row
        note(updates=found, **_memory())

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


def _memory() -> dict[str, Any]:
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"peak_memory_bytes": stats.get("peak_bytes_in_use")}


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
    "ceilings": ceilings,
    "streaming": streaming,
    "vae": vae,
    "updates": updates,
    "vectors": vectors,
}


def _said(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def main(arguments: list[str]) -> int:
    """Runs one part; the exit code."""
    part, config, file, *overrides = arguments
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
        note(error=_said(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
