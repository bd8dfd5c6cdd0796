"""The order of batches: a pure function of (seed, number), whole epochs, equal parts."""

import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest
from waits import HANG

from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import Store

COUNT = 10


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = Store.create(
        tmp_path_factory.mktemp("store") / "s",
        COUNT,
        {"number": ((), "int32"), "latents": ((2, 3), "float32")},
    )
    for i in range(COUNT):
        store.write(i, {"number": np.array(i, np.int32), "latents": np.full((2, 3), i, np.float32)})
    return store


def numbers(store: Store, count: int, size: int, **given: Any) -> np.ndarray:
    options: dict[str, Any] = {"seed": 0, "start": 0, "fields": ["number"]} | given
    return np.stack([batch["number"] for batch in islice(batches(store, size, **options), count)])


def test_batches_hold_whole_samples(store):
    batch = next(batches(store, 4, seed=0, start=0))
    assert batch["latents"].shape == (4, 2, 3) and batch["latents"].dtype == np.float32
    np.testing.assert_array_equal(batch["latents"][:, 1, 2], batch["number"])
    assert next(batches(store, 4, seed=0, start=0, fields=["latents"])).keys() == {"latents"}


@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.parametrize("start", [1, 5])
def test_start_equals_skipping(store, size, start):
    straight = numbers(store, start + 4, size)
    np.testing.assert_array_equal(numbers(store, 4, size, start=start), straight[start:])


def test_threads_do_not_change_the_order(store):
    np.testing.assert_array_equal(
        numbers(store, 12, 3, num_threads=1), numbers(store, 12, 3, num_threads=8)
    )


def test_samples_of_a_batch_are_read_at_once(store):
    """Each waits until all are asked for, so that none would come of reading one by one."""

    class Together(Store):
        meeting = threading.Barrier(4, timeout=HANG)

        def read(self, index, fields=None):
            self.meeting.wait()
            return super().read(index, fields)

    drawn = islice(batches(Together.open(store.path), 4, seed=0, start=0, num_threads=4), 3)
    plain = islice(batches(store, 4, seed=0, start=0), 3)
    for one, other in zip(drawn, plain, strict=True):
        np.testing.assert_array_equal(one["latents"], other["latents"])


@pytest.mark.parametrize("size", [3, 25])
def test_every_epoch_holds_every_sample_once_in_a_new_order(store, size):
    epochs = numbers(store, -(-8 * COUNT // size), size).reshape(-1)[: 8 * COUNT].reshape(8, COUNT)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(COUNT), (8, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_seeds_differ(store):
    orders = {tuple(numbers(store, 1, COUNT, seed=seed)[0]) for seed in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_the_contiguous_parts_of_one_batch(store, processes):
    whole = numbers(store, 5, 6, start=2)
    parts = [
        numbers(store, 5, 6, start=2, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    whole_epoch = np.concatenate(parts, axis=1).reshape(-1)[8:18]  # batch 2 begins with sample 12
    np.testing.assert_array_equal(np.sort(whole_epoch), np.arange(COUNT))


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (5, {"process_count": 2}, "that 2 processes divide, found 5"),
        (0, {}, "found 0"),
        (4, {"process_index": 2, "process_count": 2}, "process_index < 2, found 2"),
        (4, {"seed": -1}, "seed"),
        (4, {"start": -1}, "start=-1"),
        (4, {"num_threads": 0}, "num_threads=0"),
        (4, {"fields": ["pixels"]}, "pixels"),
    ],
)
def test_bad_arguments_are_refused_at_once(store, size, options, message):
    with pytest.raises(ValueError, match=message):
        batches(store, size, **({"seed": 0, "start": 0} | options))


def test_an_incomplete_store_is_refused(tmp_path):
    store = Store.create(tmp_path / "s", 3, {"number": ((), "int32")})
    store.write(0, {"number": np.array(0, np.int32)})
    with pytest.raises(ValueError, match="2 are missing"):
        batches(store, 1, seed=0, start=0)


def test_damage_is_reported_through_the_reading_threads(tmp_path):
    store = Store.create(tmp_path / "s", 3, {"x": ((2,), "float32")})
    for i in range(3):
        store.write(i, {"x": np.full(2, i, np.float32)})
    file, one = tmp_path / "s/arrays/x/c.0.0", np.ones(2, np.float32).tobytes()
    assert file.read_bytes().count(one) == 1
    file.write_bytes(file.read_bytes().replace(one, one[::-1]))
    with pytest.raises(ValueError, match="cannot read sample 1"):
        next(batches(store, 3, seed=0, start=0))
