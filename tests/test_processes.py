"""Several processes of one run: they agree; when one is lost, fails or is stopped, all end in a line."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from waits import HANG, until

from oneforcing_jax.system import group, processes

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))  # kill_processes imports kill_stages
LOST_AFTER = 5
# What three processes do: they agree, and then wait for a second agreement until something happens to one.
SCRIPT = """
import argparse, json, pathlib, sys, time
from oneforcing_jax.system import processes
from oneforcing_jax.errors import InputError

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=pathlib.Path)
parser.add_argument("--then")
processes.add_options(parser)
given = parser.parse_args()
with processes.ending("the same command continues"):
    processes.join(given)
    me, file = given.process_id, given.folder / "made"
    with processes.first("a file") as mine:
        if mine:
            time.sleep(0.3)
            file.write_text("whole")
    found = processes.exchange([me, file.read_text()], "what is found")
    turns = [processes.exchange(me * i, "turns")[2] for i in range(50)]
    asked = processes.asked(15 if me == 1 and given.then == "nothing" else 0, "a signal")
    out = {"found": found, "turns": turns, "asked": asked, "names": processes.names()}
    (given.folder / f"{me}.json").write_text(json.dumps(out))
    (given.folder / f"{me}.ready").touch()
    if given.then == "same":
        processes.same("config", "a" if me < 2 else "b")
    if given.then == "error" and me == 1:
        raise InputError("expected something, found nothing")
    if given.then == "wait" or given.then == "error":
        while not processes.exchange(0, "the end of the world")[0]:
            time.sleep(0.05 if me != 2 else 0.1)
    processes.say_rates("work", 10 * (me + 1), 1.0, "piece")
"""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def three(folder, then, lost_after=HANG):
    """Three processes that have agreed on something, by number."""
    (folder / "script.py").write_text(SCRIPT)
    port, found = free_port(), []
    try:
        for i in range(3):
            command = [
                sys.executable, folder / "script.py", f"--folder={folder}", f"--then={then}",
                f"--coordinator=localhost:{port}", f"--process_id={i}", "--process_count=3",
                f"--lost_after={lost_after}",
            ]  # fmt: skip
            env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            found.append(
                subprocess.Popen(
                    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )

        def ready():
            assert all(p.poll() in (None, 0, 1) for p in found), [p.communicate() for p in found]
            return len(list(folder.glob("*.ready"))) == 3

        until(ready)
        yield found
    finally:
        for process in found:
            process.kill()
            process.wait()


def ends(found):
    """Exit code and last line of what each said, after all have ended by themselves."""
    said = []
    for process in found:
        _, errors = process.communicate(timeout=HANG)
        said.append((process.returncode, errors.strip().splitlines()[-1:]))
    return said


def test_processes_agree(tmp_path):
    with three(tmp_path, "nothing") as found:
        outs = [process.communicate(timeout=HANG)[0] for process in found]
        assert [process.returncode for process in found] == [0, 0, 0]
    results = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(3)]
    assert results[0] == results[1] == results[2]
    assert results[0]["found"] == [[i, "whole"] for i in range(3)]
    assert results[0]["turns"] == [2 * i for i in range(50)] and results[0]["asked"] == 15
    assert results[0]["names"] == [f"process {i} ({socket.gethostname()})" for i in range(3)]
    assert "work: 60 pieces in 1 s, 60 a second; the slowest was process 0 (" in outs[0]
    assert "work:" not in outs[1] + outs[2]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others(tmp_path, victim):
    with three(tmp_path, "wait", LOST_AFTER) as found:
        found[victim].kill()
        others = [process for process in found if process is not found[victim]]
        for code, last in ends(others):
            assert code == group.AGAIN
            assert last[0].startswith(f"lost: process {victim} ({socket.gethostname()}) ")
            assert last[0].endswith("the same command continues with the hosts that there are")


def test_an_error_of_one_ends_the_others(tmp_path):
    with three(tmp_path, "error") as found:
        first, second, third = ends(found)
    assert second == (1, ["error: expected something, found nothing"])
    line = f"process 1 ({socket.gethostname()}) ended; error: expected something, found nothing"
    assert first == third == (1, [line])


def test_processes_that_differ_are_refused(tmp_path):
    with three(tmp_path, "same") as found:
        for code, last in ends(found):
            assert code == 1
            assert (
                "expected the same config in all, found 'a' in process 0 and 'b' in pr" in last[0]
            )


def test_a_signal_to_one_stops_all(tmp_path):
    with three(tmp_path, "wait") as found:
        found[2].send_signal(signal.SIGTERM)
        for code, last in ends(found):
            assert (code, last) == (143, ["interrupted; the same command continues"])


def test_parts_cover_all_once_and_a_process_alone_waits_for_nobody(monkeypatch):
    assert processes.exchange("a", "") == ["a"] and processes.asked(15, "") == 15
    with processes.first("") as mine:
        assert mine
    processes.same("x", 1)
    shares = []
    for share in [(0, 2), (1, 2)]:
        for i in range(3):
            monkeypatch.setattr(processes.jax, "process_index", lambda i=i: i)
            monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
            first, step = processes.part(share)
            shares.append(range(first, 20, step))
    assert sorted(i for share in shares for i in share) == list(range(20))


@pytest.mark.long
def test_four_processes_are_killed_and_end_as_two(tmp_path, capsys):
    """Train, encode and make pairs together; see tools/kill_processes.py."""
    import kill_processes

    kill_processes.main(["--kills=2", f"--folder={tmp_path}"])
    assert "2 kills: nothing lost or doubled" in capsys.readouterr().out
