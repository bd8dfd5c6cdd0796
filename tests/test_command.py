"""How a command ends when something in it fails."""

import argparse
import gc
import os
import signal
import threading
import time

import pytest
from waits import HANG

from oneforcing_jax.system.command import count, ending


def fail():
    raise KeyError("in a thread")


@pytest.mark.parametrize("also", [False, True], ids=["alone", "with the command"])
def test_a_thread_that_fails_prints_nothing_and_fails_the_command(also, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught, ending("", tmp_path):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        if also:
            raise OSError("disk full")
    line = str(caught.value)
    assert line == "error: disk full" if also else "KeyError in test_command.py, line" in line
    kept = list(tmp_path.iterdir())
    assert also or "in a thread" in kept[0].read_text()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_a_collection_of_garbage_is_not_lost(number, capfd):
    """Python ignores exceptions there, and its handler raises one."""

    def collecting(phase, found):
        if phase == "start":
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # shells ignore SIGINT for what runs behind them
    try:
        with pytest.raises(SystemExit) as caught, ending("go on"):
            gc.callbacks.append(collecting)
            try:
                gc.collect()
            finally:
                gc.callbacks.remove(collecting)
            time.sleep(HANG)  # ends with the signal
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number
    assert capfd.readouterr().err == "interrupted; go on\n"


def test_jax_may_have_the_memory_that_a_preset_needs_unless_the_user_says_how_much(monkeypatch):
    ours, older = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for given in ({}, {ours: "0.5"}, {older: "0.5"}):
        for name in (ours, older):
            monkeypatch.setenv(name, given.get(name, ""))
            if name not in given:
                monkeypatch.delenv(name)
        with ending("go on"):
            found = {name: os.environ[name] for name in (ours, older) if name in os.environ}
        # The plan of --preset=h100 takes 77.1 GB of the 85 that the device has.
        assert found == given if given else 77.1 / 85 < float(found[ours]) < 0.95


def test_counts():
    assert count("12") == 12
    for wrong in ("0", "-1", "x", "", "1.5", "9" * 30):
        with pytest.raises(argparse.ArgumentTypeError, match="of 1 or more"):
            count(wrong)
