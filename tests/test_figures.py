"""Figures of one's own runs: what they are drawn from, and what is refused."""

import json

import numpy as np
import pytest

from oneforcing_jax.data.video import write_video
from oneforcing_jax.evaluation import curves, figures
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.training.metrics import read_rows


def write_rows(folder, more=()):
    for run in range(2):
        (folder / str(run)).mkdir()
        rows = [
            {"iteration": i, "critic/logit_gap": 0.1 * i + run} | dict(more) for i in range(1, 6)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / str(run) / "metrics.jsonl").write_text(lines)


def test_curves_are_read_and_drawn(tmp_path):
    write_rows(tmp_path)
    at, gap = curves.series(read_rows(tmp_path / "1"), "critic/logit_gap")
    np.testing.assert_allclose(at, range(1, 6))
    np.testing.assert_allclose(gap, 0.1 * at + 1)
    runs = {"a": [tmp_path / "0", tmp_path / "1"]}
    curves.plot(tmp_path / "c.png", runs, curves.GAP)
    first = (tmp_path / "c.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and b"</svg>" in first
    with pytest.raises(ValueError, match="expected rows with generator/dmd_loss"):
        curves.plot(tmp_path / "c.png", runs)


def test_strips_show_videos_of_one_name_beside_each_other(tmp_path):
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        for name in ("one.mp4", f"{folder}.mp4"):
            video = np.full((8, 16, 16, 3), 60 * i + 40, np.uint8)
            write_video(tmp_path / folder / name, video, 8.0)
    folders = {name: tmp_path / name for name in ("a", "b")}
    figures.strips(tmp_path / "s.png", folders)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "b" / "one.mp4").unlink()
    with pytest.raises(ValueError, match="expected mp4 files of the same names"):
        figures.strips(tmp_path / "s.png", folders)


def test_the_command_draws_what_it_is_given(tmp_path, capsys):
    write_rows(tmp_path, {"generator/dmd_loss": 1.0})
    point = {"low": 0.9, "mean": 1.0, "high": 1.1}
    report = {"latents": {"times": [0.9, 0.5], "curve": [point, point]}}
    (tmp_path / "curvature.json").write_text(json.dumps(report))
    rows = {name: {"raw": 0.5, "score": 0.5} for name in DIMENSIONS}
    scores = {
        f"ours{at}": {"rows": rows, "total": 80.0, "quality": quality, "semantic": 70.0}
        for at, quality in (("", 1.0), ("@200", 2.0), ("@100", None))
    }
    (tmp_path / "score.json").write_text(json.dumps(scores))
    out = tmp_path / "figures"
    figures.main([
        f"--out={out}", "--curvature", f"toy={tmp_path / 'curvature.json'}", "--runs", f"a={tmp_path / '0'}",
        f"a={tmp_path / '1'}", f"--scores={tmp_path / 'score.json'}",
    ])  # fmt: skip
    names = (
        "figure3_curvature",
        "figure4_logit_gap",
        "figure5_losses",
        "figure6_vbench",
        "vbench_over_iterations",
    )
    assert {file.name for file in out.iterdir()} == {
        f"{n}.{s}" for n in names for s in ("png", "svg")
    }
    assert len(capsys.readouterr().out.splitlines()) == 5
    whole = dict(rows)
    del rows["color"]
    (tmp_path / "score.json").write_text(json.dumps(scores))
    (tmp_path / "no.json").write_text(json.dumps({"a@1": {"rows": whole}}))
    for wrong, line in (
        ([f"--scores={tmp_path / 'no.json'}"], "expected what `vbench score` writes of 'a'"),
        ([f"--scores={tmp_path / 'score.json'}"], "expected all 16 dimensions of 'ours'"),
        ([], "expected something to draw"),
        (["--runs", "a"], "expected NAME=PATH, found 'a'"),
        (["--curvature", f"a={tmp_path / 'absent.json'}"], "expected a JSON object"),
    ):
        with pytest.raises(SystemExit) as ended:
            figures.main([f"--out={out}", *wrong])
        assert line in f"{ended.value} {capsys.readouterr().err}"
