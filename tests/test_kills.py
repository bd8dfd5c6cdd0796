"""tools/kill_test.py: what counts as lost, different and unclear, and a few kills."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import write_video

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import kill_stages  # noqa: E402
import kill_test  # noqa: E402


def test_what_is_whole_is_found_and_its_loss_is_seen(tmp_path):
    kill_stages.make_data(tmp_path)
    write_video(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8.0)
    (tmp_path / ".b.mp4.7.tmp").write_bytes(b"half")
    before = kill_stages.state(tmp_path)
    assert {".: prompts.txt", ".: a.mp4", ".: frames of a.mp4"} < before.keys()
    assert sum(name.startswith("noise: sample ") for name in before) == 2 * 24
    assert kill_stages.half(tmp_path) == {str(tmp_path / ".b.mp4.7.tmp")}
    assert not kill_stages.lost(before, before) and not kill_stages.differences(before, before)

    (tmp_path / "prompts.txt").unlink()
    store = Store.open(tmp_path / "noise")
    store.write(3, {name: value + 1 for name, value in store.read(3).items()})
    after = kill_stages.state(tmp_path)
    changed = [f"noise: sample 3 {name} has changed" for name in ("latents", "text")]
    assert kill_stages.lost(before, after) == [".: prompts.txt is lost", *changed]
    assert ".: prompts.txt is missing" in kill_stages.differences(after, before)
    assert len(kill_stages.differences(after, before, finished=False)) == 2
    (tmp_path / "noise" / "arrays" / "text" / "c.0.0.0").write_bytes(b"half")
    found = kill_stages.differences(kill_stages.state(tmp_path), before, finished=False)
    assert len(found) == 1 and "noise: cannot be read: " in found[0]


def test_newer_checkpoints_replace_older_ones_and_bytes_of_videos_may_differ():
    before = {"s: checkpoint 3": "a", "s: row 2 of metrics": "b"}
    assert not kill_stages.lost(before, {"s: row 2 of metrics": "b"})
    assert kill_stages.lost(before, {}) == ["s: row 2 of metrics is lost"]
    end = {"s: checkpoint 6": "a", "s: checkpoint 9": "b"}
    assert not kill_stages.differences({"s: checkpoint 7": "c", "s: checkpoint 9": "b"}, end)
    assert not kill_stages.differences({"s: checkpoint 7": "c"}, end, finished=False)
    assert len(kill_stages.differences({"s: checkpoint 7": "c"}, end)) == 2
    assert len(kill_stages.differences({**end, "s: checkpoint 6": "c"}, end)) == 1
    end = {"v: a.mp4": "bytes", "v: frames of a.mp4": "frames"}
    assert not kill_stages.differences({**end, "v: a.mp4": "others"}, end)
    assert kill_stages.other_bytes({**end, "v: a.mp4": "others"}, end) == 1
    assert kill_stages.differences({**end, "v: frames of a.mp4": "others"}, end)


@pytest.mark.parametrize(
    ("number", "code", "said", "expected"),
    [
        (signal.SIGTERM, 143, "a\rinterrupted; the same command continues\n", []),
        (signal.SIGKILL, -9, "half a li", []),
        (signal.SIGINT, 130, "Traceback\ninterrupted; the same command continues", ["it said"]),
        (signal.SIGTERM, -15, "a\rb", ["expected exit code 143, found -15", "found 'b'"]),
        (signal.SIGTERM, -9, "the same command continues", ["it did not end in"]),
    ],
)
def test_endings(tmp_path, number, code, said, expected):
    (tmp_path / "log.txt").write_text(said)
    found = kill_test.unclear(number, code, tmp_path / "log.txt", finished=False)
    assert len(found) == len(expected)
    assert all(words in line for words, line in zip(expected, found, strict=True))


@pytest.mark.long
def test_kills_of_a_stage_that_writes_files(tmp_path, capsys):
    kill_test.main(["--kills=2", "--stage=encoding", f"--folder={tmp_path}"])
    assert "2 kills: nothing lost" in capsys.readouterr().out
