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
