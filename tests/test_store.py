"""The store: what is written comes back, kills lose nothing, bad input is one clear line."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from oneforcing_jax.data import shards, store_meta
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


@pytest.fixture
def old(monkeypatch) -> None:
    """New stores are of version 1."""
    monkeypatch.setattr(store_meta, "VERSION", 1)


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


def test_padding_takes_no_disk_space_in_an_old_store(tmp_path, old):
    store = Store.create(tmp_path / "s", 3, FIELDS)
    for index in (0, 1, 2):
        value = sample(0)
        value["text"][: (0, 64, 65)[index]] = 1
        store.write(index, value)
    files = sorted(file.name for file in (tmp_path / "s/arrays/text").rglob("c*") if file.is_file())
    assert files == ["c.1.0.0", "c.2.0.0", "c.2.1.0"]


def test_a_zero_latent_is_data_and_a_lost_one_is_damage(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    store.write(0, {**sample(1), "latents": np.zeros((3, 2, 4, 4), np.float32)})
    assert not store.read(0)["latents"].any()
    (tmp_path / "s/pending/latents/c.0.0.0.0.0").unlink()
    with pytest.raises(
        ValueError, match="cannot read sample 0: .*(missing|not found).*damaged"
    ) as caught:
        store.read(0)
    assert "\n" not in str(caught.value)


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


def test_a_half_written_sample_is_not_done(tmp_path):
    store = Store.create(tmp_path / "s", 2, FIELDS)
    store.write(0, sample(1))
    # A folder where the text's file belongs: that field alone cannot be written.
    (tmp_path / "s/pending/text/c.1.0.0").mkdir()
    with pytest.raises(ValueError, match="sample 1 was not written") as caught:
        store.write(1, sample(1))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "s/pending/latents/c.1.0.0.0.0").exists()
    (tmp_path / "s/pending/text/c.1.0.0").rmdir()
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
        (2, {"done": ((2,), "uint8")}, {}, "found 'done'"),
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
    for text in ("", whole[: len(whole) // 2], "[]", '{"version": 1}'):
        meta.write_text(text)
        with pytest.raises(ValueError, match="found a damaged file"):
            Store.open(tmp_path / "s")
    meta.write_text(json.dumps(json.loads(whole) | {"version": 3}))
    with pytest.raises(ValueError, match="expected format version 2 or less, found 3"):
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


WRITER = """
import sys
import numpy as np
from oneforcing_jax.data.store import Store

store = Store.create(sys.argv[1], 400, {"x": ((64, 64, 8), "float32"), "y": ((4,), "float32")})
for i in np.flatnonzero(~store.done())[int(sys.argv[2]) :: 2]:
    store.write(int(i), {"x": np.full((64, 64, 8), i, "f"), "y": np.full(4, i, "f")})
"""


def test_two_writers_killed_midway_lose_nothing(tmp_path):
    """SIGKILL at an arbitrary moment: every sample that counts as done is whole."""
    folder = tmp_path / "s"
    fields = {"x": ((64, 64, 8), "float32"), "y": ((4,), "float32")}
    Store.create(folder, 400, fields)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), part], env=environment)
        for part in ("0", "1")
    ]
    try:
        store, deadline = Store.open(folder), time.monotonic() + 20
        while store.done().sum() < 10 and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    done = np.flatnonzero(Store.open(folder).done())
    assert 10 <= len(done) < 400
    resumed = Store.create(folder, 400, fields)
    for index in done:
        value = resumed.read(int(index))
        assert (value["x"] == index).all() and (value["y"] == index).all()
    for index in np.flatnonzero(~resumed.done())[:5]:
        value = {"x": np.full((64, 64, 8), -1, "f"), "y": np.full(4, -1, "f")}
        resumed.write(int(index), value)
        assert_same(resumed.read(int(index)), value)
    assert resumed.done().sum() == len(done) + 5


def names(folder: Path) -> list[str]:
    """Files of samples, without the descriptions of the arrays."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("c.*"))


def test_a_full_range_becomes_a_shard_and_late_samples_stay_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SAMPLES", 2)
    store, reader = (Store.create(tmp_path / "s", 5, FIELDS) for _ in range(2))
    for index in (1, 3, 0):  # 0 fills the first range
        store.write(index, sample(index))
        assert_same(reader.read(index), sample(index))
    assert names(tmp_path / "s") == [
        "arrays/latents/c.0.0.0.0.0",
        "arrays/text/c.0.0.0",
        "pending/latents/c.3.0.0.0.0",
        "pending/text/c.3.0.0",
    ]
    assert_same(reader.read(1), sample(1))  # it was pending when the reader looked
    store.leave_out(2, "b.mp4: too short")
    store.write(4, sample(4))
    assert names(tmp_path / "s/pending") == []
    store.require_complete()
    np.testing.assert_array_equal(Store.open(tmp_path / "s").done(), [1, 1, 0, 1, 1])
    store.write(2, sample(2))
    again = Store.create(tmp_path / "s", 5, FIELDS)
    assert not again.left_out() and again.done().all()
    for index in range(5):
        assert_same(again.read(index), sample(index))


@pytest.mark.parametrize("step", range(6))
def test_a_kill_while_packing_loses_nothing(tmp_path, monkeypatch, step):
    """Stops before write or removal number `step` of packing; the next run packs the rest."""
    store, left = Store.create(tmp_path / "s", 2, FIELDS), [step]
    store.write(0, sample(1))

    class Killed(BaseException):
        pass

    def counted(self, *args, real, **kwargs):
        if "/pending/" in self.path or "/arrays/" in self.path:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("write", "delete_range"):
            real = getattr(ts.KvStore, name)
            patch.setattr(ts.KvStore, name, functools.partialmethod(counted, real=real))
        store.write(1, sample(2))
    for index in range(2):
        assert_same(Store.open(tmp_path / "s").read(index), sample(index + 1))
    again = Store.create(tmp_path / "s", 2, FIELDS)
    for index in range(2):
        assert_same(again.read(index), sample(index + 1))
    assert len(names(tmp_path / "s/arrays")) == 2


def test_an_old_store_is_continued_as_it_is(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_meta, "VERSION", 1)
        Store.create(tmp_path / "s", 3, FIELDS).write(0, sample(0))
    store = Store.create(tmp_path / "s", 3, FIELDS)
    store.write(1, sample(1))
    store.leave_out(2, "b.mp4: too short")
    store.require_complete()
    again = Store.open(tmp_path / "s")
    np.testing.assert_array_equal(again.done(), [True, True, False])
    assert again.left_out() == {2: "b.mp4: too short"}
    assert_same(again.read(1), sample(1))
    assert json.loads((tmp_path / "s/meta.json").read_text())["version"] == 1
    assert not (tmp_path / "s/pending").exists()
