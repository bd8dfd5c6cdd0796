"""What a device does at best: products, attention, memory, and how fast it is given kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax.bench.timing import clocked, queued
from oneforcing_jax.generation.student import COMPILER_OPTIONS

# Sizes of the published models: a student of 12 heads, a teacher of 40; 1560 tokens a frame, 32760 a clip.
# The rows of products, and the columns of the one matrix and of the next.
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

# Takes what was found, by name.
Note = Callable[..., None]


def measure(note: Note) -> None:
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
            found.append({"error": said(error)})
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
    for name, options in (("buffered", None), ("single", COMPILER_OPTIONS["gpu"])):
        made = jax.jit(chain).lower(x, w).compile(compiler_options=options)
        clocked(made, x, w), clocked(made, x, w)
        times = [queued(lambda: made(x, w)) for _ in range(10)]  # noqa: B023, called here
        host, both = (statistics.median(row[i] for row in times) / SMALL for i in (0, 1))
        found[name] = {"kernels": SMALL, "host_s": host, "seconds": both}
    return found


def said(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
