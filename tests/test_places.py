"""Work directories, weights and lists in buckets, on servers that run here, and on servers that fail."""

import os
import time

import jax
import numpy as np
import pytest
from test_integrity import abstract, same, state
from test_train import STAGE, TOOL, noise, refused, rows, state as trained, train, whole  # noqa: F401

from oneforcing_jax import checkpoint, integrity, places
from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.files import read_record, write_whole


def test_checkpoints_in_a_bucket(bucket):
    folder = bucket / "checkpoints"
    with checkpoint.manager(folder, keep=2) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, state(step), {"loss": 1.0 / step})
    assert [p.name for p in checkpoint._numbered(folder)] == ["2", "3"]
    assert not any(name.startswith("1/") for name in places.sizes(folder))
    assert not integrity.problems(folder / "3") and integrity.is_sealed(folder / "3")
    loaded = checkpoint.load_net(folder, "net", abstract())
    assert same(loaded, state(3)["params"]["net"])


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(
        places, "RETRIES", {"max_retries": 4, "initial_delay": "10ms", "max_delay": "50ms"}
    )


def faults(front, *first, then=None):
    """What befalls uploads, one after the other."""
    left = list(first)

    def fault(method, path):
        if method not in ("PUT", "POST"):
            return None
        return left.pop(0) if left else then

    front.fault = fault


def test_a_server_that_fails_now_and_then(bucket, fronts, impatient):
    front, file = fronts[os.fspath(bucket)[:2]], bucket / "record.json"
    for number, fault in enumerate([503, 500, "cut", "deaf", 0.2]):
        content = b'{"number": %d}' % number + b" " * 100_000
        faults(front, fault, fault, fault)
        write_whole(file, content)
        assert file.read_bytes() == content


@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_server_that_fails_for_good(bucket, fronts, impatient, fault):
    front = fronts[os.fspath(bucket)[:2]]
    folder, file = bucket / f"{fault}" / "checkpoints", bucket / f"{fault}" / "record.json"
    write_whole(file, b'{"old": 1}')
    with checkpoint.manager(folder) as manager:
        checkpoint.save(manager, 1, state(1))
    faults(front, then=fault)
    before = len(front.heard)
    with pytest.raises(InputError, match=r"record\.json could not be written: .*; see to the server") as said:
        write_whole(file, b'{"new": 1}')
    assert "\n" not in str(said.value) and "secret" not in str(said.value)
    assert 2 < len(front.heard) - before < 10  # repeated, within a bound
    # What is large of a checkpoint fails, and what is small does not: it must not count.
    front.fault = lambda method, path: fault if "%2Fd%2F" in path or "/d/" in path else None
    with pytest.raises(OSError, match="checkpoint: could not be written to .*; those before it are whole"):
        with checkpoint.manager(folder) as manager:
            checkpoint.save(manager, 2, state(2))
    front.fault = lambda method, path: None
    assert read_record(file) == {"old": 1}
    assert checkpoint.newest(folder) == 1 and not integrity.problems(folder / "1")
    with checkpoint.manager(folder) as manager:
        assert not any(name.startswith("2/") for name in places.sizes(folder))
        checkpoint.save(manager, 2, state(2))
    assert same(checkpoint.load_net(folder, "net", abstract()), state(2)["params"]["net"])


@pytest.mark.long
def test_a_continued_run_is_the_one_on_a_disk(bucket, noise, whole, tmp_path):  # noqa: F811
    train(bucket, noise, iterations=5)
    checkpoints = bucket / STAGE / "checkpoints"
    assert [p.name for p in checkpoint._numbered(checkpoints)] == ["3", "5"]
    # As after a kill: a save that was cut short, a removal that was, and rows that were not saved.
    for name, content in (("6/params_teacher/d/1", b"half"), ("2/commit_success.txt", b"")):
        places.write(checkpoints / name, content)
    (checkpoints / "5" / "commit_success.txt").unlink()
    (checkpoints / "5" / integrity.SUMS).unlink()
    train(bucket, noise)
    assert [row["iteration"] for row in rows(bucket)] == list(range(1, 9))
    assert rows(bucket) == rows(whole)
    assert [p.name for p in checkpoint._numbered(checkpoints)] == ["6", "8"]
    assert {name.partition("/")[0] for name in places.sizes(checkpoints)} == {"6", "8", "run.json"}
    for name in ("config.json", f"{STAGE}/config.json"):
        read_record(bucket / name)
    assert any("tfevents" in name for name in places.sizes(bucket / STAGE / "tensorboard"))
    assert "owner" in read_record(bucket / "lock") and not read_record(bucket / "lock")["owner"]
    for name in places.sizes(checkpoints / "8"):
        file = tmp_path / "8" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((checkpoints / "8" / name).read_bytes())
    expected = trained(whole)
    for name, value in TOOL["read"](tmp_path / "8").items():
        np.testing.assert_array_equal(value, expected[name])
