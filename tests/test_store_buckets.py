"""Stores in buckets: what holds on a disk holds there, too."""

import collections
import itertools
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import stores
from test_store import FIELDS, assert_same, sample
from waits import HANG

from oneforcing_jax.data import shards
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import Store
from oneforcing_jax.system import places

TOOLS = Path(__file__).parents[1] / "tools"


def names(bucket: Path) -> list[str]:
    """Objects of samples, without the descriptions of the arrays."""
    return sorted(name for name in places.sizes(bucket) if not name.endswith(".json"))


def test_a_store_in_a_bucket(bucket, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_SAMPLES", 2)
        store = Store.create(str(bucket), 5, FIELDS)
    for index in (0, 3):
        store.write(index, sample(index))
    store.leave_out(1, "b.mp4: too short")
    store.write(4, sample(4))
    packed = [f"arrays/latents/c.{i}.0.0.0.0" for i in (0, 2)]
    packed += [f"arrays/text/c.{i}.0.0" for i in (0, 2)]
    assert names(bucket) == [*packed, "left_out/1.txt", "pending/3"]
    again = Store.create(bucket, 5, FIELDS)
    np.testing.assert_array_equal(again.done(), [1, 0, 0, 1, 1])
    again.write(1, sample(1))
    again.write(2, sample(2))
    again.write_shared("negative_text", np.ones((2, 3)))
    assert len(names(bucket)) == 7 and again.done().all()  # a shared array is one
    opened = Store.open(str(bucket))
    for index in range(5):
        assert_same(opened.read(index), sample(index))
    np.testing.assert_array_equal(opened.read_shared("negative_text"), np.ones((2, 3)))
    drawn = next(batches(opened, 5, seed=0, start=0))
    assert sorted(drawn["latents"][:, 0, 0, 0, 0]) == sorted(
        sample(i)["latents"][0, 0, 0, 0] for i in range(5)
    )
    runpy.run_path(str(TOOLS / "check.py"))["main"]([str(bucket)])
    assert "5 of 5 samples written" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds another store: count is 5 on disk, 6 now"):
        Store.create(bucket, 6, FIELDS)


def test_what_is_no_store_is_refused_there(bucket):
    with pytest.raises(FileNotFoundError, match="no store at"):
        Store.open(bucket)
    places.write(bucket / "photos" / "1.png", b"x")
    with pytest.raises(ValueError, match="found other files .*1.png"):
        Store.create(bucket / "photos", 5, FIELDS)


@pytest.mark.long
def test_processes_pack_the_same_ranges_there_at_once(bucket, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_SAMPLES", 4)
        patch.setattr(shards.Shards, "_pack", lambda *_: None)
        store = Store.create(bucket, 12, stores.FIELDS)
        for index in range(8):
            store.write(index, stores.sample(index))
    with stores.writers(bucket, "01", tmp_path / "ready") as processes:
        assert [process.wait(HANG) for process in processes] == [0, 0]
    Store.create(bucket, 12, stores.FIELDS)
    found = Store.open(bucket)
    assert found.done().all() and len(names(bucket)) == 2 * 3
    for index in range(12):
        assert_same(found.read(index), stores.sample(index))


def test_a_server_that_fails_at_times_is_asked_again_and_one_that_fails_always_is_a_line(
    bucket, fronts, monkeypatch
):
    front = fronts[os.fspath(bucket).partition("://")[0]]
    retries = {"max_retries": 3, "initial_delay": "10ms", "max_delay": "10ms"}
    monkeypatch.setattr(places, "RETRIES", retries)
    store = Store.create(bucket, 3, FIELDS)
    # The first two requests for each object fail; several are on their way at once.
    kinds, heard = itertools.cycle(["cut", 500, "deaf", 503]), collections.Counter()

    def fault(method, path):
        path = re.sub(r"tensorstore=\w+", "", path)  # differs from request to request
        heard[path] += 1
        return next(kinds) if heard[path] <= 2 else None

    front.fault = fault
    for index in range(3):
        store.write(index, sample(index))
    for index in range(3):
        assert_same(store.read(index), sample(index))
    front.fault = lambda method, path: 503
    with pytest.raises(ValueError, match="cannot read sample 0: ") as caught:
        store.read(0)
    assert "\n" not in str(caught.value) and "damaged" not in str(caught.value)
    with pytest.raises(ValueError, match="sample 0 was not written: ") as caught:
        store.write(0, sample(0))
    assert "\n" not in str(caught.value)
