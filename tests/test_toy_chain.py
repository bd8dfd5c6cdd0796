"""The whole chain at its smallest: video files in, a one-step student and its videos out."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from oneforcing_jax.data.origin import read_origin
from oneforcing_jax.data.video import read_video
from oneforcing_jax.toy.world import FPS

pytestmark = pytest.mark.long
# As the tests are, but on one device.
LIGHT = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    # A teacher that stops early, so that the whole run has something to resume. Most of the steps are
    # here, in programs compiled as a user's are; what follows is mostly compiling, and does it lightly.
    run(folder, "--config.run=world,teacher", "--config.stages.teacher.iterations=200", flags="")
    run(folder)
    return folder


def run(folder, *overrides, flags=LIGHT):
    """The command as a user runs it, on one device."""
    command = [sys.executable, "-m", "oneforcing_jax.main", "--config=configs/tiny.py"]
    done = subprocess.run(
        [*command, f"--workdir={folder}", *overrides],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_scores(workdir):
    found = json.loads((workdir / "report" / "scores.json").read_text())
    assert found["real"]["joint"] >= 0.95
    assert found["real through the codec"]["joint"] >= 0.95
    teacher, untrained = found["teacher"], found["untrained, 1 step"]
    before, after = found["before One-Forcing, 1 step"], found["One-Forcing, 1 step"]
    assert teacher["colour"] >= 0.9
    assert teacher["shape"] >= 0.8
    assert untrained["colour"] <= 0.7
    assert untrained["shape"] <= 0.6
    assert after["colour"] >= 0.9
    assert after["shape"] >= 0.7
    assert before["frechet"] < 0.3 * untrained["frechet"]
    assert after["frechet"] < 0.3 * untrained["frechet"]


def test_videos_and_sheet(workdir):
    files = sorted((workdir / "report" / "videos").glob("*.mp4"))
    assert len(files) == 2
    for file in files:
        frames, times = read_video(file)
        assert frames.shape == (4, 24, 24, 3)
        assert times.rate == FPS
        assert frames.max() > 100
        said = read_origin(file)
        words = hashlib.sha256(file.stem.replace("_", " ").encode()).hexdigest()
        assert said["prompt"] == words and len(said["checkpoint"]) == 64 and said["seed"] == 0
    # The other rows of the table show theirs for the same prompts, and what a model made says so.
    rows = list(json.loads((workdir / "report" / "scores.json").read_text()))[:-1]
    for row in rows:
        for file in files:
            other = workdir / "report" / "compared" / row / file.name
            assert read_video(other)[0].shape == (4, 24, 24, 3)
            made = row != "untrained, 1 step" and not row.startswith("real")
            assert ("checkpoint" in read_origin(other)) == made
    sheet = np.asarray(Image.open(workdir / "report" / "sheet.png"))
    assert sheet.shape[0] > 600
    assert sheet.std() > 10


def test_samples_on_the_way(workdir):
    rows = [json.loads(line) for line in (workdir / "one_forcing" / "metrics.jsonl").open()]
    files = sorted((workdir / "one_forcing" / "samples").glob("*.mp4"))
    assert [file.stem for file in files] == ["000010", "000020"]
    # Raw weights above their average, three prompts side by side.
    frames, times = read_video(files[-1])
    assert frames.shape == (4, 2 * 24, 3 * 24, 3)
    assert times.rate == FPS
    assert frames.max() > 100
    assert read_origin(files[-1]).keys() == {"software", "prompt", "seed", "settings", "digest"}
    assert all(row["samples/motion"] > 0 and row["samples/motion_ema"] > 0 for row in rows)


def test_resumed_where_it_stopped(workdir):
    rows = [json.loads(line) for line in (workdir / "teacher" / "metrics.jsonl").open()]
    iterations = [row["iteration"] for row in rows]
    assert iterations == list(range(10, 241, 10))
    assert np.mean([row["model/loss"] for row in rows[-5:]]) < 0.8 * rows[0]["model/loss"]


def test_finished_run_does_nothing(workdir):
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("*/metrics.jsonl")}
    assert "One-Forcing, 1 step" in run(workdir)
    assert before == {p: p.stat().st_mtime_ns for p in before}
