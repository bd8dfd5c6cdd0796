"""What would not fit memory or disk is refused before it starts, and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from oneforcing_jax.causal import cache as kv
from oneforcing_jax.data.store import Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import wan
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import room

NOISE = Path(__file__).parents[1] / "configs" / "noise.py"
# Page faults of a step that makes 64 MB anew, in a process in which `main` was a run's command before.
FAULTS = """
import resource, sys
from oneforcing_jax import main
main.main(["--config=tiny", "--workdir=unused", "--dry_run"])
import jax, jax.numpy as jnp
step, x = jax.jit(lambda x: x + 1), jnp.ones((16, 1024, 1024))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(50):
    before = before if turn > 10 else faults()
    x = step(x).block_until_ready()
print("faults", faults() - before)
"""
CONFIG = wan.WanConfig(24, 32, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)


def test_bytes_are_compared(tmp_path):
    room.check_disk("a store", 1, tmp_path / "not" / "yet")
    room.check_memory("a model", 1, "")
    with pytest.raises(InputError, match="a store: expected at least 1,000,000,000.0 GB free"):
        room.check_disk("a store", 1e18, tmp_path / "not" / "yet")
    with pytest.raises(InputError, match="a model: .* GB of memory, found .* GB; take less"):
        room.check_memory("a model", 1e18, "take less", jax.devices())
    assert 0 < room.free_memory() < 1e15


def test_a_store_that_the_disk_cannot_hold_is_not_begun(tmp_path):
    with pytest.raises(InputError, match="a store of 100000 samples: expected at least"):
        Store.create(tmp_path / "s", 100_000, {"latents": ((1000, 16, 960, 960), "float32")})
    assert not list(tmp_path.iterdir())
    # Texts are padding for the most part, which takes no room.
    Store.create(tmp_path / "s", 1, {"text": ((10**9, 4096), "float32")})


def test_a_cache_is_as_large_as_it_was_said_to_be():
    for stacked in (True, False):
        made = jax.eval_shape(lambda stacked=stacked: kv.init(CONFIG, 3, 5, 7, stacked))
        assert room.size(made) == kv.size(CONFIG, 3, 5, 7)
    weights = wan.model(CONFIG).shapes
    with pytest.raises(InputError, match="cache of 1000000000 latent frames: .* or give a window"):
        Student(wan.model(CONFIG), weights)._empty((1, 1, 2, 4, 2), 10**9)


def test_a_stage_that_memory_cannot_hold_is_refused_before_the_first_runs(tmp_path):
    size = {"dim": 8192, "ffn_dim": 65536, "num_heads": 64, "num_layers": 1000}
    run = Run.of(configs.load(NOISE, [f"--config.teacher.{k}={v}" for k, v in size.items()]))
    (stage,) = stages.prepare(run)
    with pytest.raises(
        InputError, match="stage 'one_forcing': expected at least 51,.* GB of memory"
    ):
        stage.check(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_a_run_keeps_the_memory_that_it_frees():
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
    )
    # Given back and taken again, it would be 16,384 in each of the last 39 steps.
    assert int(done.stdout.split()[-1]) < 20 * 16_384
