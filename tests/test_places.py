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
