"""Work directories, weights and lists in buckets, on servers that run here, and on servers that fail."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_integrity import abstract, same, state
from test_train import STAGE, TOOL, noise, overrides, rows, train, whole  # noqa: F401
from test_train import state as trained
from waits import HANG, until

from oneforcing_jax.convert import to_orbax
from oneforcing_jax.data import captions
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.errors import InputError, MissingInput, MissingPackage
from oneforcing_jax.generation.jobs import read_prompts
from oneforcing_jax.system import checkpoint, integrity, places, saved
from oneforcing_jax.system.files import read_record, staged, write_whole
from oneforcing_jax.training.metrics import Cost, Log, read_rows

# A command whose lock is lost sooner.
HASTY = (
    "from oneforcing_jax.main import main; from oneforcing_jax.system import lock; "
    "lock.RENEW, lock.LEASE = 1, 15; main()"
)


def test_names_of_places(tmp_path, monkeypatch):
    assert places.path(tmp_path) == tmp_path and not places.is_url("a/b:c")
    wrong = "http://a/b gs:// s3:///a s3://a/b* s3:/a gs:/a/b gs:a S3://a/b GS:/a file:///a file:/a http:/a r2://a"
    for name in (*wrong.split(), " s3://a/b"):
        for find in (places.path, lambda name: places.within(tmp_path, name)):
            with pytest.raises(InputError, match="expected a path, or gs://BUCKET") as caught:
                find(name)
            assert "\n" not in str(caught.value)
    for name in ("a:b", "a/s3:/b", "/s3:/a"):
        assert str(places.path(name)) == name
    work = places.path("s3://bucket/work/")
    assert str(work) == "s3://bucket/work" and str(work / "a" / "b") == "s3://bucket/work/a/b"
    assert str(places.within(work, "a/b")) == "s3://bucket/work/a/b"
    assert places.within(work, str(tmp_path)) == tmp_path
    assert str(places.within(tmp_path, "gs://bucket/a")) == "gs://bucket/a"
    for place, start in ((work / "e", work / "d"), (tmp_path / "e", tmp_path), (work, tmp_path)):
        assert places.normal(places.within(start, places.relative(place, start))) == place
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    places._prepare.cache_clear()
    with pytest.raises(MissingPackage, match=r"pip install 'oneforcing_jax\[buckets\]'"):
        places.path("s3://bucket/a")


def test_weights_and_lists_in_a_bucket(bucket, tmp_path):
    net = state(4)["params"]["net"]
    # As tools/convert_wan.py writes them, to a bucket.
    with staged(bucket / "made") as made:
        to_orbax.save_item(made / "0" / "params_net", net)
        integrity.seal(made)
        assert not places.sizes(bucket / "made")
    assert same(saved.load_net(bucket / "made", "net", abstract()), net)
    # Without what is copied last they do not count.
    (bucket / "made" / integrity.SUMS).unlink()
    with pytest.raises(MissingInput, match="expected Orbax checkpoints"):
        saved.load_net(bucket / "made", "net", abstract())
    # A run's checkpoints, copied there.
    with checkpoint.manager(tmp_path / "run") as manager:
        checkpoint.save(manager, 1, state(4))
    run = bucket / "run"
    for name in places.sizes(tmp_path / "run"):
        places.write(run / name, (tmp_path / "run" / name).read_bytes())
    assert same(saved.load_net(run, "net", abstract()), net)
    assert saved.identity(run, "net") == saved.identity(tmp_path / "run", "net")
    places.write(next(run / name for name in places.sizes(run) if "/d/" in name), b"cut")
    with pytest.raises(InputError, match="expected the files that were written"):
        saved.load_net(run, "net", abstract())
    # Those that are written there have names for their content, too.
    for number in (4, 5):
        with checkpoint.manager(bucket / f"of_{number}") as manager:
            checkpoint.save(manager, 1, state(number))
    one, other = (saved.identity(bucket / f"of_{number}", "net") for number in (4, 5))
    assert one != other and one == saved.identity(bucket / "of_4" / "1", "net")
    # Lists, and the videos that they name.
    write_whole(bucket / "prompts.txt", "\ufeffa cat\na dog\n".encode())
    assert [p.words for p in read_prompts(bucket / "prompts.txt")] == ["a cat", "a dog"]
    write_whole(bucket / "captions.csv", "\ufeffvideo,caption\nv.mp4,a cat\n".encode())
    write_video(bucket / "videos" / "v.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    (found,) = captions.pair(bucket / "videos", bucket / "captions.csv")
    assert (found.name, found.caption) == ("v.mp4", "a cat")
    assert read_video(found.video)[0].shape == (4, 16, 16, 3)


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_rows_are_published_before_a_checkpoint_and_at_the_end(bucket):
    def go(log, *iterations):
        for done in iterations:
            log.step(done, {"model/loss": 1.0 / done})

    with Log(bucket, "run", 0, 6, 1, {}, Cost(1, {})) as log:
        go(log, 1, 2)
        assert read_rows(bucket) == []
        log.check()
        assert [row["iteration"] for row in read_rows(bucket)] == [1, 2]
        go(log, 3)
        (log.folder / "profile").mkdir()
        (log.folder / "profile" / "trace").write_bytes(b"trace")
    assert [row["iteration"] for row in read_rows(bucket)] == [1, 2, 3]
    assert places.read(bucket / "profile" / "trace") == b"trace" and not log.folder.exists()
    with Log(bucket, "run", 2, 6, 1, {}, Cost(1, {})) as log:  # the third was not saved
        go(log, 3, 4)
    assert [row["iteration"] for row in read_rows(bucket)] == [1, 2, 3, 4]


@pytest.fixture
def impatient(monkeypatch):
    few = {"max_retries": 4, "initial_delay": "10ms", "max_delay": "50ms"}
    monkeypatch.setattr(places, "RETRIES", few)


def front_of(fronts, bucket):
    return fronts[os.fspath(bucket)[:2]]


def test_a_server_that_fails_now_and_then(bucket, fronts, impatient):
    left = []
    front_of(fronts, bucket).fault = lambda method, path: (
        left.pop() if left and method in ("PUT", "POST") else None
    )
    for number, fault in enumerate([503, 500, "cut", "deaf", 0.2]):
        content = b'{"number": %d}' % number + b" " * 100_000
        left[:] = [fault] * 3
        write_whole(bucket / "record.json", content)
        assert not left or fault == 0.2
        assert (bucket / "record.json").read_bytes() == content
    left[:] = ["cut"]
    front_of(fronts, bucket).fault = lambda method, path: left.pop() if left else None
    assert (bucket / "record.json").read_bytes() == content and not left


def test_a_server_that_fails_for_good(bucket, fronts, impatient):
    front, fault = front_of(fronts, bucket), "cut" if os.fspath(bucket).startswith("s3") else 503
    folder, file = bucket / "checkpoints", bucket / "record.json"
    write_whole(file, b'{"old": 1}')
    with checkpoint.manager(folder) as manager:
        checkpoint.save(manager, 1, state(1))
    front.fault = lambda method, path: fault if method in ("PUT", "POST") else None
    before = len(front.heard)
    with pytest.raises(InputError, match=r"record\.json could not be written: .*; see to the") as e:
        write_whole(file, b'{"new": 1}')
    assert "\n" not in str(e.value) and "secret" not in str(e.value)
    assert 2 < len(front.heard) - before < 10  # repeated, within a bound
    # What is large of a checkpoint fails, and what is small does not: it must not count.
    front.fault = lambda method, path: fault if "%2Fd%2F" in path or "/d/" in path else None
    words = "checkpoint: could not be written to .*; those before it are whole"
    with pytest.raises(OSError, match=words), checkpoint.manager(folder) as manager:
        checkpoint.save(manager, 2, state(2))
    front.fault = lambda method, path: None
    assert read_record(file) == {"old": 1}
    assert saved.newest(folder) == 1 and not integrity.problems(folder / "1")
    with checkpoint.manager(folder, keep=1) as manager:
        assert not any(name.startswith("2/") for name in places.sizes(folder))
        checkpoint.save(manager, 2, state(2))
    assert {name.partition("/")[0] for name in places.sizes(folder)} == {"2"}
    assert same(saved.load_net(folder, "net", abstract()), state(2)["params"]["net"])


@pytest.mark.long
def test_a_continued_run_is_the_one_on_a_disk(bucket, noise, whole):  # noqa: F811
    train(bucket, noise, iterations=5)
    checkpoints = bucket / STAGE / "checkpoints"
    assert [p.name for p in saved.numbered(checkpoints)] == ["3", "5"]
    # As after a kill: a save that was cut short, a removal that was, and rows that were not saved.
    for name, content in (("6/params_teacher/d/1", b"half"), ("2/commit_success.txt", b"")):
        places.write(checkpoints / name, content)
    (checkpoints / "5" / "commit_success.txt").unlink()
    (checkpoints / "5" / integrity.SUMS).unlink()
    train(bucket, noise)
    assert [p.name for p in saved.numbered(checkpoints)] == ["6", "8"]
    assert {name.partition("/")[0] for name in places.sizes(checkpoints)} == {"6", "8", "run.json"}
    assert any("tfevents" in name for name in places.sizes(bucket / STAGE / "tensorboard"))
    assert not read_record(bucket / "lock")["owner"]
    compare(bucket, whole)


def compare(bucket, whole, rtol=0.0, atol=0.0):  # noqa: F811
    """Whether a run in a bucket is the one on a disk: its rows, and its last checkpoint."""
    assert [row["iteration"] for row in rows(bucket)] == list(range(1, 9))
    for row, other in zip(rows(bucket), rows(whole), strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, other[name], rtol, atol, err_msg=name)
    for name in ("config.json", f"{STAGE}/config.json"):
        assert read_record(bucket / name)["seed"] == read_record(whole / name)["seed"]
    found, expected = TOOL["read"](bucket / STAGE / "checkpoints" / "8"), trained(whole)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol, atol, err_msg=name)


def start(bucket, noise, environment):  # noqa: F811
    """The command in a process of its own."""
    given = [f"--config.{field}" for field in overrides(noise)]
    return subprocess.Popen(
        [sys.executable, "-c", HASTY, f"--config={TOOL['CONFIG']}", f"--workdir={bucket}", *given],
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_of_two_commands_one_goes_on_and_a_kill_is_made_good(
    bucket, noise, whole, light_environment  # noqa: F811
):  # fmt: skip
    for _ in range(2):
        both = [start(bucket, noise, light_environment) for _ in range(2)]
        said = [process.communicate(timeout=HANG)[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], said
        lost = said[[process.returncode for process in both].index(1)]
        assert "expected no other run in it, found process" in lost.strip().splitlines()[-1]
        places.remove(bucket / STAGE)
    process = start(bucket, noise, light_environment)

    def written():
        assert process.poll() is None, process.stderr.read()
        return saved.newest(bucket / STAGE / "checkpoints") is not None

    until(written, pause=0.1)
    process.kill()
    process.wait()
    process = start(bucket, noise, light_environment)
    assert process.wait(HANG) == 0, process.stderr.read()
    compare(bucket, whole, rtol=1e-3, atol=2e-5)  # that had another number of devices


@pytest.mark.long
@pytest.mark.parametrize(
    "bucket", ["s3"], indirect=True
)  # kinds of buckets differ in single requests
def test_four_processes_in_a_bucket_are_killed_and_end_as_two(bucket, tmp_path, capsys):
    """See tools/kill_processes.py."""
    import kill_processes  # test_train knows where the tools are

    kill_processes.main(["--kills=2", f"--folder={tmp_path}", f"--place={bucket}"])
    assert "2 kills: nothing lost or doubled" in capsys.readouterr().out
