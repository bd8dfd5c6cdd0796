"""Reading a store, on a disk or in a bucket, as training does: samples a second, and how long steps wait."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import trange

from oneforcing_jax.bench.timing import clocked
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import count

# Of Wan2.1 at 480x832 and 81 frames, as `encode` writes it: latents, and a prompt of so many tokens.
FIELDS = {"latents": ((21, 16, 60, 104), "float16"), "text": ((512, 4096), "bfloat16")}
TOKENS = 60


def fill(place: str, samples: int) -> None:
    """Makes a store of Wan's size, with noise in it; what is there already stays."""
    store, rng = Store.create(place, samples, FIELDS), np.random.default_rng(0)
    done = store.done()
    for index in trange(samples, desc=f"fill {place}", unit="sample"):
        if not done[index]:
            sample = {name: np.zeros(shape, dtype) for name, (shape, dtype) in FIELDS.items()}
            sample["latents"][:] = rng.normal(size=sample["latents"].shape)
            sample["text"][:TOKENS] = rng.normal(size=(TOKENS, sample["text"].shape[1]))
            store.write(index, sample)


def measure(place: str, batch: int, every: float, number: int, threads: int) -> dict[str, Any]:
    """Reads batches at the pace of steps.

    Args:
      place: of the store.
      batch: samples of a batch that one process reads.
      every: seconds from having a batch to asking for the next; 0: as fast as it goes.
      number: batches after the first.
      threads: that read samples ahead.

    Returns:
      Seconds to open the store, until the first batch, and until the later ones as each is asked for (median,
      longest), and samples a second.
    """
    open_s, store = clocked(Store.open, place)
    stream = batches(store, batch, seed=0, start=0, num_threads=threads)
    first_s, _ = clocked(next, stream)
    begun, waits = time.perf_counter(), []
    for _ in trange(number, desc=f"read {place}", unit="batch"):
        time.sleep(every)
        waits.append(clocked(next, stream)[0])
    return {
        "samples": len(store),
        "open_s": open_s,
        "first_s": first_s,
        "wait_s": statistics.median(waits),
        "longest_wait_s": max(waits),
        "samples_per_s": number * batch / (time.perf_counter() - begun),
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument("--store", required=True, help="a folder, or the URL of a bucket")
    parser.add_argument("--fill", type=count, help="first make a store of so many samples of noise")
    parser.add_argument("--batch", type=count, default=4, help="samples that one process reads")
    parser.add_argument("--every", type=float, default=0.0, help="seconds of a step; 0: no pause")
    parser.add_argument("--batches", type=count, default=16, help="to read after the first")
    parser.add_argument("--threads", type=count, default=8, help="that read samples ahead")


def run(given: argparse.Namespace, unknown: Sequence[str]) -> dict[str, Any]:
    """Times reading a store; prints a line and returns what it says."""
    if unknown:
        raise InputError(f"expected the options of `bench data --help`, found {unknown[0]}")
    if not 0 <= given.every < 3600:
        raise InputError(f"every: expected 0 to 3600 seconds, found {given.every}")
    if given.fill:
        fill(given.store, given.fill)
    made = measure(given.store, given.batch, given.every, given.batches, given.threads)
    print(
        f"{given.store}: {made['samples']} samples, opened in {made['open_s']:.2f} s, first batch after "
        f"{made['first_s']:.2f} s; then {made['samples_per_s']:.1f} samples/s, a wait of "
        f"{made['wait_s'] * 1e3:.1f} ms (longest {made['longest_wait_s'] * 1e3:.1f}) for {given.batch}"
    )
    return {name: getattr(given, name) for name in ("batch", "every", "batches", "threads")} | made
