"""tools/compare_runs.py: what is noise between two kinds of runs, and what is refused."""

import json
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "compare_runs.py"))


def made(folder, values, metric="model/loss"):
    (folder / "teacher").mkdir(parents=True)
    rows = [{"iteration": i, metric: v, "rates/step": 9.0 + v} for i, v in enumerate(values, 1)]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "teacher" / "metrics.jsonl").write_text(text + "\n")
    return folder


def test_the_row_of_a_metric(tmp_path):
    runs = [made(tmp_path / "a0", [3, 2, 1]), made(tmp_path / "a1", [5, 4, 3])]
    against = [made(tmp_path / "b0", [3, 2, 1.5]), made(tmp_path / "b1", [5, 4, 3.1])]
    (row,) = TOOL["compare"](runs, against, "teacher")
    assert row == pytest.approx(("model/loss", 2, 2.3, 2**0.5, 0.1, 2**0.5))


def test_other_runs_are_one_line(tmp_path, capsys):
    a, b = made(tmp_path / "a", [1, 2]), made(tmp_path / "b", [1, 2, 3])
    for runs, against, message in (
        ([a], [b], "expected two runs or more and as many against them, found 1 and 1"),
        ([a, a], [b, b], f"error: expected the iterations and metrics of {a} in {b}, found others"),
        ([a, a], [a, tmp_path / "c"], "expected a run with the stage 'teacher', found no "),
    ):
        with pytest.raises(SystemExit, match=message):
            TOOL["main"](
                ["--stage=teacher", "--runs", *map(str, runs), "--against", *map(str, against)]
            )
    TOOL["main"](["--stage=teacher", "--runs", str(a), str(a), "--against", str(a), str(a)])
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "model/loss"
