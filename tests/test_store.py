"""The store: what is written comes back, kills lose nothing, bad input is one clear line."""

import cProfile
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import stores
from waits import HANG, until

from oneforcing_jax.data import shards
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import Store

FIELDS = {"latents": ((3, 2, 4, 4), "float32"), "text": ((200, 8), "bfloat16")}


def sample(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    text = np.zeros((200, 8), ml_dtypes.bfloat16)
    text[: 10 * index] = rng.standard_normal((10 * index, 8))
    return {"latents": rng.standard_normal((3, 2, 4, 4), np.float32), "text": text}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        np.testing.assert_array_equal(value, b[name])


def test_samples_come_back_from_another_handle(tmp_path):
    store = Store.create(tmp_path / "s", 5, FIELDS, {"codec": "x"})
    for index in (3, 0):
        store.write(index, sample(index))
    again = Store.open(tmp_path / "s")
    assert len(again) == 5 and again.attributes == {"codec": "x"} and again.fields == FIELDS
    np.testing.assert_array_equal(again.done(), [True, False, False, True, False])
    for index in (0, 3):
        assert_same(again.read(index), sample(index))
    assert again.read(3, ["text"]).keys() == {"text"}
    with pytest.raises(ValueError, match="expected 5 samples, 3 are missing; run the command"):
        again.require_complete()
    for index in (1, 2, 4):
        store.write(index, sample(index))
    again.require_complete()
    assert_same(again.read(4), sample(4))


def test_who_makes_a_store_at_once_with_others_opens_theirs(tmp_path):
    begin = threading.Barrier(8)

    def make(_: int) -> list[Store]:
        made = []
        for number in range(20):
            begin.wait(HANG)
            try:
                made.append(Store.create(tmp_path / f"s{number}", 5, FIELDS, {"codec": "x"}))
            except BaseException:
                begin.abort()  # the others would wait for this one
                raise
        return made

    with ThreadPoolExecutor(8) as pool:
        stores_made = list(pool.map(make, range(8)))
    stores_made[0][0].write(0, sample(0))
    assert all(made[0].done()[0] for made in stores_made)


@pytest.mark.parametrize("file", ["arrays/latents/zarr.json", "arrays/text/zarr.json", "meta.json"])
def test_a_store_that_was_killed_as_it_was_made_is_made_again(tmp_path, file):
    """There is no store yet or one that opens: commands look at what is there before they begin."""
    Store.create(tmp_path / "s", 5, FIELDS)
    last = max((tmp_path / "s").rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert last.name == "meta.json"
    last.unlink()
    (tmp_path / "s" / file).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="no store at"):
        Store.open(tmp_path / "s")
    Store.create(tmp_path / "s", 5, FIELDS).write(0, sample(0))
    assert_same(Store.open(tmp_path / "s").read(0), sample(0))


def test_padding_takes_no_disk_space(tmp_path):
    fields = {"text": ((512, 256), "bfloat16")}
    store = Store.create(tmp_path / "s", 16, fields)
    text = np.zeros((512, 256), ml_dtypes.bfloat16)
    text[:8] = np.random.default_rng(0).normal(size=(8, 256))
    for index in range(16):
        store.write(index, {"text": text})
    (shard,) = (tmp_path / "s/arrays/text").glob("c.*")
    assert shard.stat().st_size < 1.3 * 16 * text[:8].nbytes
    assert_same(store.read(7), {"text": text})


def test_a_zero_latent_is_data_and_a_lost_one_is_damage(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    store.write(0, {**sample(1), "latents": np.zeros((3, 2, 4, 4), np.float32)})
    assert not store.read(0)["latents"].any()
    (tmp_path / "s/pending/0").rename(tmp_path / "0")
    with pytest.raises(ValueError, match="cannot read sample 0: .*missing.*damaged") as caught:
        store.read(0)
    assert "\n" not in str(caught.value)
    (tmp_path / "0").rename(tmp_path / "s/pending/0")
    store.write(1, sample(1))
    assert names(tmp_path / "s/pending") == [] and not store.read(0)["latents"].any()
    again = Store.open(tmp_path / "s")
    again.read(0)
    (tmp_path / "s/arrays/latents/c.0.0.0.0.0").unlink()
    with pytest.raises(ValueError, match="cannot read sample 0: .*missing.*damaged"):
        again.read(0)
    with pytest.raises(ValueError, match="2 are missing"):
        Store.open(tmp_path / "s").require_complete()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": np.zeros((3, 2, 4, 5), np.float32)}, r"latents float32 \[3, 2, 4, 4\], found"),
        ({"latents": np.zeros((3, 2, 4, 4))}, "found float64"),
        ({"latents": np.full((3, 2, 4, 4), np.nan, np.float32)}, "finite latents, found 96"),
        ({"text": np.full((200, 8), np.inf, ml_dtypes.bfloat16)}, "finite text"),
        ({"other": np.zeros(1)}, "expected the fields"),
    ],
)
def test_a_bad_sample_is_refused_and_not_done(tmp_path, change, message):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    with pytest.raises(ValueError, match=message):
        store.write(1, sample(1) | change)
    assert not store.done().any()
    with pytest.raises(ValueError, match="sample 1 is left out or not written yet"):
        store.read(1)


def test_left_out_samples_complete_a_store_until_they_are_written(tmp_path):
    store = Store.create(tmp_path / "s", 3, FIELDS)
    store.write(0, sample(0))
    store.leave_out(1, "b.mp4: found zero bytes")
    with pytest.raises(ValueError, match="1 are missing"):
        store.require_complete()
    store.leave_out(2, "c.mp4: too short")
    again = Store.open(tmp_path / "s")
    again.require_complete()
    assert again.left_out() == {1: "b.mp4: found zero bytes", 2: "c.mp4: too short"}
    np.testing.assert_array_equal(again.done(), [True, False, False])
    with pytest.raises(ValueError, match="sample 1 is left out"):
        again.read(1)
    drawn = batches(again, 4, seed=0, start=0)
    np.testing.assert_array_equal(next(drawn)["latents"], [sample(0)["latents"]] * 4)
    store.write(2, sample(2))
    assert again.left_out().keys() == {1}
    assert_same(again.read(2), sample(2))

    none = Store.create(tmp_path / "none", 1, FIELDS)
    none.leave_out(0, "a.mp4: too short")
    with pytest.raises(ValueError, match="all 1 left out"):
        none.require_complete()


def test_a_sample_that_cannot_be_written_is_not_done(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    store.write(0, sample(1))
    (tmp_path / "s/pending/1").mkdir()  # where its file belongs
    with pytest.raises(ValueError, match="sample 1 was not written") as caught:
        store.write(1, sample(1))
    assert "\n" not in str(caught.value)
    (tmp_path / "s/pending/1").rmdir()
    again = Store.create(tmp_path / "s", 2, FIELDS)
    np.testing.assert_array_equal(again.done(), [True, False])
    again.write(1, sample(1))
    assert_same(again.read(1), sample(1))


def test_indices_and_names_are_checked(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    for index in (-1, 2):
        with pytest.raises(ValueError, match=f"0 <= sample < 2, found {index}"):
            store.write(index, sample(0))
    store.write(0, sample(0))
    with pytest.raises(ValueError, match=r"got \['pixels'\]"):
        store.read(0, ["pixels"])


@pytest.mark.parametrize(
    ("count", "fields", "attributes", "message"),
    [
        (3, FIELDS, {"a": {"b": 1}}, "count is 2 on disk, 3 now"),
        (2, {"latents": FIELDS["latents"]}, {"a": {"b": 1}}, "fields.text is only on disk"),
        (2, FIELDS | {"n": ((), "int32")}, {"a": {"b": 1}}, "fields.n is not on disk"),
        (
            2,
            FIELDS | {"text": ((100, 8), "bfloat16")},
            {"a": {"b": 1}},
            r"text.shape is \[200, 8\]",
        ),
        (2, FIELDS, {"a": {"b": 2}}, "attributes.a.b is 1 on disk, 2 now"),
        (0, FIELDS, {}, "1 sample or more"),
        (2, {"x": ((2,), "float64")}, {}, "field x: expected a dtype of .* found 'float64'"),
        (2, {"a b": ((2,), "uint8")}, {}, "found 'a b'"),
        (2, {"x": ((2, 0), "uint8")}, {}, "sizes of 1 or more"),
        (2, FIELDS, {"a": object()}, "attributes that JSON can hold"),
    ],
)
def test_another_description_is_refused_and_nothing_is_lost(
    tmp_path, count, fields, attributes, message
):
    store = Store.create(tmp_path / "s", 2, FIELDS, {"a": {"b": 1}})
    store.write(1, sample(1))
    with pytest.raises(ValueError, match=message):
        Store.create(tmp_path / "s", count, fields, attributes)
    assert_same(Store.create(tmp_path / "s", 2, FIELDS, {"a": {"b": 1}}).read(1), sample(1))


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at"):
        Store.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no store at"):
        Store.open(tmp_path / "empty")

    Store.create(tmp_path / "s", 2, FIELDS)
    meta = tmp_path / "s" / "meta.json"
    whole = meta.read_text()
    for text in ("", whole[: len(whole) // 2], "[]", '{"version": 2}'):
        meta.write_text(text)
        with pytest.raises(ValueError, match="found a damaged file"):
            Store.open(tmp_path / "s")
    for other in (1, 3):
        meta.write_text(json.dumps(json.loads(whole) | {"version": other}))
        with pytest.raises(ValueError, match=f"expected format version 2, found {other}; fill a"):
            Store.open(tmp_path / "s")
    meta.write_text(whole)
    (tmp_path / "s/arrays/text/zarr.json").unlink()
    with pytest.raises(ValueError, match="expected arrays of 2 samples of .*text"):
        Store.open(tmp_path / "s")

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="found other files .*1.png"):
        Store.create(tmp_path / "photos", 2, FIELDS)
    with pytest.raises(ValueError, match="cannot make a store"):
        Store.create(tmp_path / "photos/1.png", 2, FIELDS)


def test_shared_arrays(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    with pytest.raises(FileNotFoundError, match="negative_text.npy"):
        store.read_shared("negative_text")
    for value in (np.ones((2, 3)), np.arange(3)):
        store.write_shared("negative_text", value)
        np.testing.assert_array_equal(store.read_shared("negative_text"), value)
    with pytest.raises(ValueError, match="use float32"):
        store.write_shared("negative_text", np.ones(2, ml_dtypes.bfloat16))
    (tmp_path / "s/shared/negative_text.npy").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged file"):
        store.read_shared("negative_text")


def names(folder: Path) -> list[str]:
    """Files of samples, without the descriptions of the arrays and the locks of what was killed."""
    found = (f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".json", ".__lock"))
    return sorted(str(f.relative_to(folder)) for f in found)


def test_writers_that_are_killed_or_do_the_same_lose_and_double_nothing(tmp_path, monkeypatch):
    """SIGKILL at an arbitrary moment: every sample that counts as done is whole. Then three finish: they find
    full ranges, which all pack at once, and two of them write the same samples."""
    folder = tmp_path / "s"
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 8)
    Store.create(folder, stores.COUNT, stores.FIELDS)
    monkeypatch.undo()
    store = Store.open(folder)
    with stores.writers(folder, "01", tmp_path / "killed"):
        until(lambda: store.done().sum() >= 20, pause=0.002)
    done = np.flatnonzero(Store.open(folder).done())
    assert len(done) >= 20
    for index in done:
        assert_same(store.read(int(index)), stores.sample(int(index)))
    monkeypatch.setattr(shards.Shards, "_pack", lambda *_: None)
    for index in range(120, 160):
        store.write(index, stores.sample(index))
    monkeypatch.undo()
    assert len(names(folder / "pending")) >= 40
    with stores.writers(folder, "010", tmp_path / "finishing") as processes:
        assert [process.wait(HANG) for process in processes] == [0] * 3
    Store.create(folder, stores.COUNT, stores.FIELDS)  # packs again what was written again
    assert not names(folder / "pending") and len(names(folder / "arrays")) == 2 * stores.COUNT // 8
    resumed = Store.open(folder)
    for index in range(stores.COUNT):
        assert_same(resumed.read(index), stores.sample(index))


def test_a_full_range_becomes_a_file_of_each_field_and_late_samples_join_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 2)
    store, reader = (Store.create(tmp_path / "s", 5, FIELDS) for _ in range(2))
    monkeypatch.undo()
    for index in (1, 3, 0):  # 0 fills the first range
        store.write(index, sample(index))
        assert_same(reader.read(index), sample(index))
    first = ["arrays/latents/c.0.0.0.0.0", "arrays/text/c.0.0.0"]
    assert names(tmp_path / "s") == [*first, "pending/3"]
    assert_same(reader.read(1), sample(1))  # it was pending when the reader looked
    store.leave_out(2, "b.mp4: too short")
    store.write(4, sample(4))
    assert names(tmp_path / "s/pending") == []
    store.require_complete()
    np.testing.assert_array_equal(Store.open(tmp_path / "s").done(), [1, 1, 0, 1, 1])
    Store.create(tmp_path / "s", 5, FIELDS).write(2, sample(2))
    assert len(names(tmp_path / "s")) == 6 and not names(tmp_path / "s/pending")
    again = Store.open(tmp_path / "s")
    assert not again.left_out() and again.done().all()
    for index in range(5):
        assert_same(again.read(index), sample(index))


def test_a_store_of_100000_samples_takes_no_call_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 32)
    store = Store.create(tmp_path / "s", 100_000, FIELDS)
    for shard in range(100_000 // 32 - 1):
        (tmp_path / f"s/arrays/latents/c.{shard}.0.0.0.0").touch()
        (tmp_path / f"s/arrays/text/c.{shard}.0.0").touch()
    calls = cProfile.Profile()
    calls.enable()
    store = Store.create(tmp_path / "s", 100_000, FIELDS)
    with pytest.raises(ValueError, match="expected 100000 samples, 32 are missing"):
        store.require_complete()
    for index in range(99_968, 100_000):
        store.write(index, sample(index % 10))
    again = Store.open(tmp_path / "s")
    again.require_complete()
    calls.disable()
    assert sum(entry.callcount for entry in calls.getstats()) < 100_000
    assert_same(again.read(99_999), sample(9))


@pytest.mark.parametrize("packed", [[], ["text"], ["latents", "text"]])
@pytest.mark.parametrize("removed", [0, 1])
def test_packing_that_was_killed_is_finished(tmp_path, monkeypatch, packed, removed):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        with monkeypatch.context() as patch:
            if folder == part:
                patch.setattr(shards.Shards, "_pack", lambda *_: None)
            store = Store.create(folder, 3, FIELDS)
            for index in (0, 2):
                store.write(index, sample(index))
            store.leave_out(1, "b.mp4: too short")
    # The writer of sample 2 was killed before it removed the reason of an earlier try.
    (part / "left_out/2.txt").write_text("c.mp4: no caption")
    for name in packed:
        shutil.copytree(whole / "arrays" / name, part / "arrays" / name, dirs_exist_ok=True)
    if removed and len(packed) == 2:
        (part / "pending/0").unlink()
    assert_same(Store.open(part).read(0), sample(0))
    store = Store.create(part, 3, FIELDS)
    assert names(part) == names(whole)
    np.testing.assert_array_equal(store.done(), [True, False, True])
    for index in (0, 2):
        assert_same(store.read(index), sample(index))


def test_a_damaged_sample_is_not_packed(tmp_path):
    store = Store.create(tmp_path / "s", 3, FIELDS)
    for index in (0, 1):
        store.write(index, sample(index))
    file = tmp_path / "s/pending/1"
    file.write_bytes(file.read_bytes()[:-9] + b"\0" * 9)
    store.write(2, sample(2))
    assert names(tmp_path / "s/pending") == ["1"]
    with pytest.raises(ValueError, match="cannot read sample 1: expected the bytes that were"):
        Store.create(tmp_path / "s", 3, FIELDS).read(1)
    store.write(1, sample(1))
    assert not names(tmp_path / "s/pending")
    assert_same(Store.open(tmp_path / "s").read(1), sample(1))
