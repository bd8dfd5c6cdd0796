"""One run in a place: of several that start at once one goes on, and one that was lost gives way."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waits import HANG, until

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import lock, places
from oneforcing_jax.system.files import read_record

ROOT = Path(__file__).parents[1]
REFUSED = r"expected no other run in it, found process \d+ on .*; wait for it to end"
SCRIPT = """
import sys, time
from oneforcing_jax.system import lock, places
lock.RENEW, lock.LOOK = 0.1, 0.02
with lock.held(places.path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.1)
    monkeypatch.setattr(lock, "LOOK", 0.02)


@contextlib.contextmanager
def owner(place):
    """A process that holds the lock of a place."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(place)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def race(place):
    """How many of two that start at once hold the lock of a place, and what the others are told."""
    inside, refused, end = [], [], threading.Event()
    decided = threading.Barrier(3, timeout=HANG)

    def run():
        try:
            with lock.held(place):
                inside.append(None)
                decided.wait()
                end.wait(HANG)
        except InputError as error:
            refused.append(str(error))
            decided.wait()

    both = [threading.Thread(target=run) for _ in range(2)]
    for thread in both:
        thread.start()
    decided.wait()
    end.set()
    for thread in both:
        thread.join()
    return len(inside), refused


def test_of_two_at_once_one_goes_on_fifty_times(bucket):
    """Fifty in each kind of bucket: five places at a time, ten times, which a run before has given up."""
    for _ in range(10):
        with ThreadPoolExecutor(5) as pool:
            found = list(pool.map(race, [bucket / str(i) for i in range(5)]))
        assert [count for count, _ in found] == [1] * 5
        assert all("expected no other run in it, found process" in r[0] for _, r in found)


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_lost_owner_gives_way(bucket, monkeypatch, capsys):
    with owner(bucket) as process:
        with pytest.raises(InputError, match=REFUSED), lock.held(bucket):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        monkeypatch.setattr(lock, "LEASE", 1.0)
        with lock.held(bucket):
            assert "seems lost; its lock ends within 1 s" in capsys.readouterr().err
    assert not read_record(bucket / lock.LOCK)["owner"]  # it was given up
    with lock.held(bucket):
        assert not capsys.readouterr().err


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_an_owner_whose_lock_is_taken_ends(bucket):
    with owner(bucket) as process:
        places.write(bucket / lock.LOCK, b'{"owner": "another"}')
        assert process.wait(HANG) == 1
        line = process.stderr.read().strip().splitlines()[-1]
    assert line.startswith(
        f"lost: the lock of {bucket}: another run has taken it; the same command"
    )


def test_a_write_without_an_answer_is_known_again(bucket, fronts, monkeypatch):
    few = {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"}
    monkeypatch.setattr(places, "RETRIES", few)
    left = ["deaf"]
    fronts[os.fspath(bucket)[:2]].fault = lambda method, path: (
        left.pop() if left and method in ("PUT", "POST") else None
    )
    with lock.held(bucket):
        assert not left
        left += ["deaf"] * 3  # a whole write, with its repetitions
        until(lambda: not left)
        for _ in range(2):  # it is written on
            seen = places.read(bucket / lock.LOCK)
            until(lambda seen=seen: places.read(bucket / lock.LOCK) != seen)


def test_shares_of_a_stage_run_together_in_a_bucket(bucket):
    shares_run_together(bucket)


def test_shares_of_a_stage_run_together_on_a_disk(tmp_path):
    shares_run_together(tmp_path)


def shares_run_together(place):
    with lock.held(place, [(0, 2)]), lock.held(place, [(1, 2)]):
        for shares in ([(0, 2)], [(0, 1)]):
            with pytest.raises(InputError, match="expected no other run in it, found process"):
                lock.held(place, shares).__enter__()
    with lock.held(place), pytest.raises(InputError, match="expected no other run in it"):
        lock.held(place, [(0, 2)]).__enter__()
