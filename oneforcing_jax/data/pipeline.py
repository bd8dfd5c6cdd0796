"""Batches of a store, in an order that the seed and the batch number alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from oneforcing_jax.data.store import Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.ranges import not_finite

# Batches that are read ahead of whoever takes them.
AHEAD = 4


def batches(
    store: Store,
    batch_size: int,
    *,
    seed: int,
    start: int,
    process_index: int = 0,
    process_count: int = 1,
    fields: Sequence[str] | None = None,
    num_threads: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches; training resumes by asking for the batch number it needs.

    The samples are drawn without replacement within an epoch, and every epoch is shuffled anew.
    A batch may span two epochs, so `batch_size` may exceed the size of the store.

    Args:
      store: a complete store.
      batch_size: samples a batch over all processes.
      seed: 0 <= seed < 2**32.
      start: number of the first batch; batch `start` is the same whether or not the ones before
        it were read.
      process_index, process_count: this process reads the contiguous rows
        [process_index * b, (process_index + 1) * b) of each batch, b = batch_size / process_count.
      fields: names of the fields to read; all of them by default.
      num_threads: threads that read samples, of this batch and of the next `AHEAD`.

    Returns:
      An iterator of {field: array [b, *shape]}.

    Raises:
      InputError: a bad argument, or a store that is not complete.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise InputError(
            f"expected a batch size that {process_count} processes divide, found {batch_size}; "
            "use a multiple"
        )
    if not 0 <= process_index < process_count:
        raise InputError(f"expected 0 <= process_index < {process_count}, found {process_index}")
    if not 0 <= seed < 2**32:
        raise InputError(f"expected 0 <= seed < 2**32, found {seed}; choose another")
    if start < 0:
        raise InputError(f"expected a first batch number of 0 or more, found start={start}")
    if num_threads < 1:
        raise InputError(f"expected 1 reading thread or more, found num_threads={num_threads}")
    names = list(store.fields if fields is None else fields)
    store.check_fields(names)
    store.require_complete()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="samples")
    written = np.flatnonzero(store.done())

    def sample(number: int) -> dict[str, np.ndarray]:
        found = store.read(number, names)
        check_finite(store, number, found)
        return found

    def read(chosen: np.ndarray) -> dict[str, np.ndarray]:
        samples = list(pool.map(sample, written[chosen].tolist()))
        return {name: np.stack([found[name] for found in samples]) for name in names}

    dataset = grain.MapDataset.range(len(written)).seed(seed).shuffle().repeat()
    # Local batches are numbered across processes, so that every process_count-th is this one's.
    # (There is no remainder to drop; without it Grain's length of one-sample batches overflows.)
    local = dataset.batch(batch_size // process_count, drop_remainder=True)
    mine = local.slice(slice(start * process_count + process_index, None, process_count))
    ahead = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    return iter(mine.map(read).to_iter_dataset(ahead))


def check_finite(store: Store, number: int, sample: Mapping[str, np.ndarray]) -> None:
    """Refuses a sample with values that are not finite: a store takes none, but a file may be damaged later.

    Raises:
      InputError: names the sample.
    """
    for name, value in sample.items():
        if wrong := not_finite(value):
            raise InputError(
                f"{store.path}: expected finite {name} of sample {number}, found {wrong} "
                "values that are not; make the store again"
            )
