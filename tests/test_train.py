"""The training command: stopped, continued, given bad input, out of disk, and in two processes."""

import contextlib
import json
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from waits import HANG

from oneforcing_jax import main
from oneforcing_jax.data.store import Store
from oneforcing_jax.generation import pretrained
from oneforcing_jax.system import checkpoint
from oneforcing_jax.training import lineage
from oneforcing_jax.training.metrics import RATES

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))  # kill_test imports kill_stages
TOOL = {
    **runpy.run_path(str(ROOT / "tools" / "kill_stages.py")),
    **runpy.run_path(str(ROOT / "tools" / "kill_test.py")),
}
STAGE = "teacher"


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise") / "store"
    TOOL["make_store"](folder)
    return folder


def overrides(noise, **fields):
    given = {"data": noise} | fields
    return ["run=teacher", *(f"stages.teacher.{name}={value}" for name, value in given.items())]


def train(workdir, noise, *more, **fields):
    """In this process, on all its devices."""
    given = [f"--config.{field}" for field in (*overrides(noise, **fields), *more)]
    main.main([f"--config={TOOL['CONFIG']}", f"--workdir={workdir}", *given])


def refused(workdir, noise, *more, **fields):
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as caught:
        train(workdir, noise, *more, **fields)
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def rows(workdir):
    file = workdir / STAGE / "metrics.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(RATES)} for row in kept]


def saved(workdir):
    folder = workdir / STAGE / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit())


def state(workdir):
    last = workdir / STAGE / "checkpoints" / str(saved(workdir)[-1])
    return TOOL["read"](last)


def assert_equal(found, expected):
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="session")
def whole(noise, tmp_path_factory):
    """An undisturbed run of 8 iterations."""
    workdir = tmp_path_factory.mktemp("whole")
    train(workdir, noise)
    return workdir


def test_continued_run_is_the_whole_one(tmp_path, noise, whole, capsys):
    train(tmp_path, noise, iterations=5, log_every=2)
    assert [row["iteration"] for row in rows(tmp_path)] == [2, 4, 5]
    assert saved(tmp_path) == [3, 5]
    # As after a kill between checkpoint 3 and the end: rows beyond it, half a row, half a checkpoint.
    checkpoints = tmp_path / STAGE / "checkpoints"
    shutil.copytree(checkpoints / "5", checkpoints / "6.orbax-checkpoint-tmp-1")
    shutil.rmtree(checkpoints / "5")
    (checkpoints / "trash" / "1").mkdir(parents=True)
    with (tmp_path / STAGE / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "los')
    train(tmp_path, noise)
    assert [row["iteration"] for row in rows(tmp_path)] == [2, 4, 5, 6, 7, 8]
    assert rows(tmp_path)[1:] == rows(whole)[3:]
    assert_equal(state(tmp_path), state(whole))
    assert sorted(p.name for p in checkpoints.iterdir()) == ["6", "8", "run.json"]

    # A finished run does nothing, a longer one goes on.
    before = (tmp_path / STAGE / "metrics.jsonl").read_text()
    train(tmp_path, noise)
    assert (tmp_path / STAGE / "metrics.jsonl").read_text() == before


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_another_mesh_continues(tmp_path, noise, whole):
    train(tmp_path, noise, iterations=3)
    sharded = ["mesh.fsdp=4", "mesh.data=2"]
    train(tmp_path, noise, *sharded, microbatch=8, offload_optimiser=True)
    expected = state(whole)
    for name, value in state(tmp_path).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"seed": 1}, ("of a run with seed 0, found 1", "seed was 0, now 1")),
        ({"stages.teacher.batch": 16}, ("of a run with batch 8, found 16", "batch was 8, now 16")),
        (
            {"teacher.dim": 32},
            (
                "is of another model: .* use the config it was trained with",
                "teacher.dim was 16, now 32",
            ),
        ),
    ],
)
def test_another_run_is_refused(tmp_path, noise, whole, fields, messages):
    """By what is recorded of it, and in a run of an older version by its checkpoints."""
    shutil.copytree(whole, tmp_path / "w")
    more = [f"{name}={value}" for name, value in fields.items()]
    for message in reversed(messages):
        assert re.search(message, refused(tmp_path / "w", noise, *more, iterations=9))
        (tmp_path / "w" / STAGE / lineage.RECORD).unlink(missing_ok=True)
    assert saved(tmp_path / "w") == saved(whole)


def test_a_refused_run_changes_nothing(tmp_path, noise, whole):
    """Neither what is there, nor what `generate` finds."""
    shutil.copytree(whole, tmp_path / "w")

    def files():
        return {p: p.read_bytes() for p in (tmp_path / "w").rglob("*.json")}

    before, found = files(), pretrained.find(tmp_path / "w" / STAGE)
    for fields in ({"seed": 5, "shift": 9.0}, {"stages.teacher.batch": 16}, {"shift": "nan"}):
        refused(tmp_path / "w", noise, *(f"{k}={v}" for k, v in fields.items()), iterations=20)
        assert files() == before
    # A model that does not fit is seen when it is read: the stage's own record stays.
    refused(tmp_path / "w", noise, "shift=9.0", "teacher.dim=32", iterations=20)
    assert pretrained.find(tmp_path / "w" / STAGE) == found
    assert (
        before[tmp_path / "w" / STAGE / "config.json"]
        == files()[tmp_path / "w" / STAGE / "config.json"]
    )


def test_the_best_checkpoint_stays(tmp_path, noise):
    best = ["stages.teacher.best.metric=model/loss", "stages.teacher.checkpoint_every=1"]
    train(tmp_path, noise, *best, keep=1)
    losses = {row["iteration"]: row["model/loss"] for row in rows(tmp_path)}
    lowest = min(losses, key=losses.get)
    assert lowest != 8
    assert saved(tmp_path) == [lowest, 8]
    best_one = tmp_path / STAGE / "checkpoints" / str(lowest)
    expected = TOOL["read"](best_one)["params_model['head']['kernel']"]
    np.testing.assert_array_equal(pretrained.find(best_one).params()["head"]["kernel"], expected)
    last = pretrained.find(tmp_path / STAGE).params()["head"]["kernel"]
    assert not np.array_equal(last, expected)
    (tmp_path / "vae").mkdir()
    assert pretrained.find_encoders(best_one) == tmp_path
    other = ["stages.teacher.best.metric=los", "stages.teacher.best.mode=min"]
    assert "'best.metric': expected one of ['model/gradient_norm'" in refused(
        tmp_path / "other", noise, *other
    )
    assert "'stages.teacher.best': expected a mode among ('min', 'max'), found 'least'" in refused(
        tmp_path / "other", noise, "stages.teacher.best.mode=least"
    )


def test_values_that_are_not_finite_are_not_saved(tmp_path, noise, whole):
    shutil.copytree(whole, tmp_path / "w")
    rate = "stages.teacher.optimisers.model.learning_rate=1e29"
    found = refused(tmp_path / "w", noise, rate, iterations=20, log_every=100)
    assert "expected finite values, found model/" in found
    assert (
        f"the last is {tmp_path / 'w' / STAGE / 'checkpoints' / '8'}: lower the learning" in found
    )
    assert saved(tmp_path / "w") == [6, 8]
    train(tmp_path / "w", noise, iterations=9)
    assert [row["iteration"] for row in rows(tmp_path / "w")] == list(range(1, 10))


def damaged(noise, tmp_path, index=None):
    """A copy of the store, sample `index` of which has a value that is not finite."""
    copy = tmp_path / "damaged"
    shutil.copytree(noise, copy)
    if index is not None:
        store = Store.open(copy)
        sample = store.read(index)["latents"].copy()
        sample[0] = np.nan
        store._samples._arrays["latents"][index].write(sample).result()
    return copy


def test_data_that_does_not_fit_is_refused(tmp_path, noise):
    found = refused(tmp_path / "w", damaged(noise, tmp_path, index=5), iterations=3)
    assert "expected finite latents of sample 5, found 32 values that are not" in found
    found = refused(tmp_path / "w", noise, "latents.rows=6")
    assert "expected latents [2, 2, 6, 4] as in the config, found [2, 2, 4, 4]; change" in found
    found = refused(tmp_path / "w", tmp_path / "absent")
    assert f"no store at {tmp_path / 'absent'}" in found
    Store.create(tmp_path / "empty", 7, Store.open(noise).fields)
    assert "expected 7 samples, 7 are missing" in refused(tmp_path / "w", tmp_path / "empty")
    for file in (tmp_path / "damaged" / "arrays" / "latents").glob("c*"):
        file.write_bytes(file.read_bytes()[:7])
    assert "the store is damaged, make it again" in refused(tmp_path / "w", tmp_path / "damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("latents.channels=3",), "expected in_dim 3 of network 'model'.* found 2"),
        (("teacher.in_dim=3",), "expected in_dim 2 of network 'model'.* found 3"),
        (("teacher.out_dim=3",), "expected out_dim 2 of network 'model'.* found 3"),
        (("run=one_forcing", "critic.in_dim=3"), "expected in_dim 2 of network 'critic'"),
        (("run=one_forcing", "teacher.text_dim=9"), "expected text_dim 8 of network 'teacher'"),
        (("run=one_forcing", "critic.text_len=9"), "expected text_len 8 of network 'critic'"),
    ],
)
def test_networks_fit_the_latents(tmp_path, noise, changes, message):
    assert re.search(message, refused(tmp_path / "w", noise, *changes))


def test_data_is_compared_before_an_earlier_stage_runs(tmp_path, noise):
    fields = Store.open(noise).fields
    Store.create(tmp_path / "other", 7, fields | {"latents": ((2, 3, 4, 4), "float16")})
    more = ("run=('teacher', 'one_forcing')", f"stages.one_forcing.data={tmp_path / 'other'}")
    found = refused(tmp_path / "w", noise, *more)
    assert "other: expected latents [2, 2, 4, 4] as in the config, found [2, 3, 4, 4]" in found
    assert not (tmp_path / "w" / STAGE / "checkpoints").exists()


def start(workdir, noise, *flags, **fields):
    """The command in another process, on one device."""
    command = TOOL["command"](workdir, *overrides(noise, **fields))
    return subprocess.Popen(
        [*command, *flags],
        env=TOOL["environment"](compiled()) | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def compiled():
    return Path(jax.config.jax_compilation_cache_dir or "/tmp")


def wait_for_rows(workdir, count, process):
    file = workdir / STAGE / "metrics.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.long
def test_signals_locks_and_a_full_disk(tmp_path, noise):
    """One run in another process, so that it can be stopped."""
    process = start(tmp_path, noise, iterations=10000, checkpoint_every=10000)
    wait_for_rows(tmp_path, 2, process)
    found = refused(tmp_path, noise)
    assert f"expected no other run in it, found process {process.pid}; wait" in found
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM, errors
    last = saved(tmp_path)[-1]
    assert f"stopped by SIGTERM after iteration {last}; the last is " in errors.splitlines()[-1]
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(1, last + 1))

    # No file may grow beyond a few hundred bytes: what a full disk does to a save.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = tmp_path / "config.json", tmp_path / STAGE / "metrics.jsonl"
    whole = max(file.stat().st_size for file in files)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 3000, hard))
    try:
        found = refused(tmp_path, noise, "mesh.data=8", iterations=last + 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "checkpoint: could not be written to" in found and "make room there" in found
    checkpoints = tmp_path / STAGE / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == [str(last), "run.json"]
    train(tmp_path, noise, iterations=last + 3)
    assert saved(tmp_path)[-1] == last + 3


def test_late_writers_of_a_failed_save_are_cleared_away(tmp_path):
    unfinished = tmp_path / "9.orbax-checkpoint-tmp" / "d"
    unfinished.mkdir(parents=True)

    def write():
        for i in range(50):
            unfinished.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (unfinished / str(i)).touch()
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    with checkpoint.manager(tmp_path) as to:
        checkpoint.save(to, 9, {"params": {"net": {"weight": np.ones(3)}}})
    writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["9"]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.long
def test_two_processes_train_as_one(tmp_path, noise, whole):
    port = free_port()
    both = [
        start(
            tmp_path, noise, f"--coordinator=localhost:{port}",
            f"--process_id={i}", "--process_count=2", iterations=6,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        _, errors = process.communicate(timeout=HANG)
        assert process.returncode == 0, errors
    assert saved(tmp_path) == [3, 6]
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(1, 7))
    for found, expected in zip(rows(tmp_path), rows(whole), strict=False):
        assert found == pytest.approx(expected, rel=1e-4)
    # One process, eight devices, goes on from there.
    train(tmp_path, noise)
    expected = state(whole)
    for name, value in state(tmp_path).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_flags_of_processes_belong_together(tmp_path):
    with pytest.raises(SystemExit, match="--process_id and --process_count together, found"):
        main.main([f"--config={TOOL['CONFIG']}", f"--workdir={tmp_path}", "--process_id=1"])


@pytest.mark.long
def test_kills(tmp_path, capsys):
    TOOL["main"](["--kills=2", "--stage=teacher", f"--folder={tmp_path}"])
    assert "2 kills: nothing lost" in capsys.readouterr().out


def test_profiles_and_weights_and_biases(tmp_path, noise, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, noise, "wandb=oneforcing", "profile=1", iterations=3)
    train(tmp_path, noise, "wandb=oneforcing", iterations=4)
    assert list((tmp_path / STAGE / "profile").rglob("*.xplane.pb"))
    name = (tmp_path / STAGE / "wandb.txt").read_text()
    assert len(list((tmp_path / STAGE / "wandb").glob(f"offline-run-*-{name}"))) == 2
