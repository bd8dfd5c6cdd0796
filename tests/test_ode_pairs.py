"""Pairs of a causal teacher's ODE: the same on a mesh, in shares, and after an interruption."""

import contextlib
import fcntl
import json
import shutil

import jax
import numpy as np
import pytest

from oneforcing_jax import main
from oneforcing_jax.data.store import Store

CONFIG = """
import runpy


def get_config():
    noise = runpy.run_path("configs/noise.py")
    c, train = noise["get_config"](), noise["BASE"]["train_stage"]
    c.ode = {"steps": 4, "kept": (0, 2), "guidance": 1.0}
    rule = c.stages.teacher.optimisers.model.to_dict()
    c.bell_weighting = False
    c.stages.causal = train("teacher_forcing", "noise", 1, 8, {"model": rule}, {"model": "random"})
    c.stages.pairs = {
        "kind": "ode_pairs", "source": "causal:model", "data": "noise",
        "count": 10, "batch": 8, "share": "0/1",
    }
    c.run = ("causal", "pairs")
    return c
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the config with overrides in a work directory of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "config.py").write_text(CONFIG)

    def in_workdir(name, *overrides):
        given = [f"--config.{override}" for override in overrides]
        if not (folder / name / "noise").exists():
            from oneforcing_jax.training.tiny import write_noise

            (folder / name).mkdir(exist_ok=True)
            write_noise(folder / name / "noise", {"latents": (2, 2, 4, 4), "text": (8, 8)}, 6)
        main.main([f"--config={folder / 'config.py'}", f"--workdir={folder / name}", *given])
        return folder / name

    return in_workdir


def pairs(workdir):
    store = Store.open(workdir / "pairs" / "store")
    store.require_complete()
    return [store.read(i) for i in range(len(store))]


@pytest.fixture(scope="module")
def whole(run):
    return run("whole", "mesh.data=8")


@pytest.mark.long
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_meshes_and_shares_make_the_same_pairs(run, whole):
    expected = pairs(whole)
    assert len(expected) == 10 and expected[0]["trajectory"].shape == (3, 2, 2, 4, 4)
    # Clip 6 is clip 0 again, from other noise.
    np.testing.assert_array_equal(expected[6]["latents"], expected[0]["latents"])
    assert not np.allclose(expected[6]["trajectory"], expected[0]["trajectory"])
    run("shared", "run=causal")
    run("shared", "run=pairs", "stages.pairs.share=1/2", "mesh.data=2", "mesh.fsdp=4")
    done = Store.open(whole.parent / "shared" / "pairs" / "store").done()
    assert done.tolist() == [False, True] * 5
    found = pairs(run("shared", "run=pairs", "stages.pairs.share=0/2", "stages.pairs.batch=24"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["trajectory"], other["trajectory"], rtol=1e-4, atol=1e-4)


def test_finished_pairs_are_kept(run, whole):
    before = {p: p.stat().st_mtime_ns for p in (whole / "pairs").rglob("c.*")}
    assert before and run("whole", "mesh.data=8") == whole
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.pairs.share=2/2", "shard: expected I/N .*found '2/2'"),
        ("stages.pairs.batch=3", "a batch to divide over 8 devices"),
        ("stages.pairs.source=pairs:model", "a stage that trains among .*found 'pairs:model'"),
        ("stages.pairs.source=causal:critic", "found 'causal:critic'; name a network of it"),
        ("ode.kept=(0,4)", r"kept steps in \[0, 4\), found \[0, 4\]"),
    ],
)
def test_odd_fields_are_refused(run, override, message):
    with pytest.raises(SystemExit, match=message):
        run("whole", "mesh.data=8", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shift=3", r"trained with shift 3.0, found 5.0 in \S*/causal/config.json; set shift to"),
        ("blocks.frames=2", "trained with blocks.frames 2, found 1 in .* stage 'causal' again"),
        ("generator.dim=32", "is of another model: "),
        ("", "expected Orbax checkpoints .* found none"),
    ],
)
def test_what_a_stage_starts_from_is_checked_first(run, whole, override, message):
    """Before anything is computed or written, and the line says which stage makes it."""
    made = whole.parent / "started"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(whole, made, ignore=lambda *_: ["pairs", *([] if override else ["causal"])])
    with pytest.raises(SystemExit, match=message) as caught:
        run("started", "mesh.data=8", "run=pairs", *([override] if override else []))
    maker = "stage 'causal' of this config makes 'causal:model': --config.run=causal"
    assert str(caught.value).endswith(maker) and "\n" not in str(caught.value)
    assert not (made / "pairs").exists()


@contextlib.contextmanager
def held(file, kind):
    with file.open("a+") as open_file:
        fcntl.flock(open_file, kind | fcntl.LOCK_NB)
        yield


def test_shares_run_side_by_side_and_whole_runs_alone(run, whole):
    share = ("mesh.data=8", "run=pairs", "stages.pairs.share=0/2")
    with held(whole / "lock", fcntl.LOCK_SH):
        run("whole", *share)
        with pytest.raises(SystemExit, match="expected no other run in it"):
            run("whole", "mesh.data=8")
        with (
            held(whole / "lock-0-of-2", fcntl.LOCK_EX),
            pytest.raises(SystemExit, match="expected no other run in it"),
        ):
            run("whole", *share)
    with held(whole / "lock", fcntl.LOCK_EX), pytest.raises(SystemExit, match="no other run"):
        run("whole", *share)
    assert json.loads((whole / "config.json").read_text())["stages"]["pairs"]["share"] == "0/2"
