"""The comparison of methods: intervals, pairs and verdicts; a study runs, continues, names what failed."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oneforcing_jax.commands import study as command
from oneforcing_jax.evaluation import study
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.run import Run
from oneforcing_jax.training import lineage

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import kill_stages  # noqa: E402

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "study.py"


def test_intervals_hold_their_level():
    """Of normal samples of three and of five, the interval holds the mean in 95 of 100."""
    rng = np.random.default_rng(0)
    for n in (3, 5):
        found = [study.Estimate.of(rng.normal(2.0, 3.0, n).tolist()) for _ in range(2000)]
        held = np.mean([abs(e.mean - 2.0) <= e.half for e in found])
        assert 0.93 < held < 0.97
    alone = study.Estimate.of([1.5])
    assert math.isnan(alone.half) and str(alone) == "1.5"


def test_verdicts_are_of_pairs():
    """Seeds differ by more than methods; their pairs do not."""
    noise = np.random.default_rng(0).normal(0, 10, 5)
    results = {
        "One-Forcing": {
            i: {"frechet": x, "motion": 1.0, "clear": 0.5} for i, x in enumerate(noise)
        },
        study.AGAINST: {
            i: {"frechet": x + 1 + 0.1 * (i % 2), "clear": 0.4} for i, x in enumerate(noise)
        },
        "One-Forcing + forward KL": {0: {"motion": 0.5}},
    }
    found = study.paired(results, "One-Forcing", study.AGAINST, "frechet")
    assert found.count == 5 and abs(found.mean + 1.04) < 1e-9 and found.half < 0.1
    said = [study.verdict(claim, results) for claim in study.CLAIMS]
    assert said[0].startswith("not tried: Real data keeps")
    assert said[1].startswith("holds here: The adversarial branch")
    assert said[5].startswith("open: A forward KL costs motion") and "1 seeds" in said[5]
    turned = {"One-Forcing": results[study.AGAINST], study.AGAINST: results["One-Forcing"]}
    assert "**does not hold here**" in study.verdict(study.CLAIMS[1], turned)
    shown = study.table(results, {"ASD": "seed 0: error: no room"})
    assert "| ASD | failed: seed 0: error: no room |" in shown
    assert "| One-Forcing | 5 |" in shown
    assert "| One-Forcing | DMD alone |" in study.differences(results)
    # Lower is better in the first, higher in the fourth, and motion is known of one row alone.
    said = "| One-Forcing | DMD alone | better | open | open | better | open | open |"
    assert said in study.conditions(results)


def test_the_page_says_what_came_of_each_claim():
    results = {study.AGAINST: {0: {"frechet": 2.0, "drift_clear": -0.1}}}
    curvature = {
        "latents": {"high_share": {"mean": 0.6, "low": 0.55, "high": 0.65}},
        "settings": {"clips": 32},
    }
    page = study.page(
        results, {"ASD": "no room"}, curvature, {"joint": 0.8}, "tools/study.py --out=x"
    )
    assert page.count("- not tried: ") == len(study.CLAIMS)
    assert "- holds here: Curvature gathers" in page and "0.6 [0.55, 0.65], 32 clips" in page
    assert "| DMD alone | 1 | 2 |" in page and "| ASD | failed: no room |" in page
    assert "`tools/study.py --out=x`" in page and "joint 0.8" in page and " -0.1 |" in page
    assert "| DMD alone, chunkwise | `one_forcing.gan_generator_weight=0.0`" in page
    for low, high, said in ((0.45, 0.55, "open: "), (0.3, 0.45, "**does not hold here**: ")):
        curvature["latents"]["high_share"].update({"low": low, "high": high})
        assert study.curved(curvature).startswith(said)


def test_a_study_of_which_nothing_ran_still_has_a_page(tmp_path):
    """It names what failed; there are no figures yet."""
    made = command.Study(tmp_path, CONFIG, ())
    exam = made.base("framewise") / "exam"
    exam.mkdir(parents=True)
    (exam / study.SCORES).write_text(json.dumps({"joint": 0.8}))
    share = {"mean": 0.6, "low": 0.55, "high": 0.65}
    curvature = {"latents": {"high_share": share}, "settings": {"clips": 32}}
    (tmp_path / "curvature.json").write_text(json.dumps(curvature))
    rows = study.ROWS[:1]
    command.publish(made, rows, [(rows[0], 0)], {rows[0].name: "seed 0: error: no room"})
    assert (
        f"| {rows[0].name} | failed: seed 0: error: no room |"
        in (tmp_path / "study.md").read_text()
    )
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("row", (*study.ROWS, *study.LOW_RANK), ids=lambda row: row.folder)
def test_every_row_is_a_run(row):
    fields = row.fields | {"run": ",".join(row.stages)}
    fields |= {"stages.report.students": f"(('student', '{row.student}'),)"}
    run = Run.of(configs.load(CONFIG, [f"--config.{k}={v}" for k, v in fields.items()]))
    assert [stage.name for stage in stages.prepare(run)] == list(row.stages)


SIZES = (
    "world.frames=4", "latents.frames=4", "evaluation.samples=8", "evaluation.steps=2", "evaluation.long=8",
    "ode.steps=4", "ode.kept=(0,2)", "consistency.steps=4", "stages.world.count=32",
    "stages.world.codec_videos=16", "stages.world.judge_iterations=20", "stages.exam.least.colour=0.0",
    "stages.exam.least.shape=0.0", "stages.exam.least.direction=0.0", "stages.ode_pairs.count=8",
    "stages.ode_pairs.batch=8", "stages.report.videos=1", "head.layers=(0,1)", "head.ffn_dim=16",
    *(
        f"{net}.{field}={value}"
        for net in ("generator", "teacher", "critic")
        for field, value in {"dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 2}.items()
    ),
    *(
        f"stages.{stage}.{field}={value}"
        for stage in ("teacher", "teacher_forcing", "ode", "consistency", "one_forcing")
        for field, value in {"iterations": 4, "batch": 4, "log_every": 1}.items()
    ),
)  # fmt: skip


@pytest.mark.long
def test_a_chain_that_is_resumed_again_and_again_equals_an_unbroken_one(
    tmp_path, light_environment
):
    """All checkpoints, rows, scores, videos and other files, bit for bit."""

    def chain(folder, *names):
        command = [sys.executable, "-m", "oneforcing_jax.main", f"--config={CONFIG}"]
        command += [f"--workdir={folder}", f"--config.run={','.join(names)}"]
        command += [f"--config.{field}" for field in SIZES]
        subprocess.run(
            command, env=light_environment, cwd=ROOT, capture_output=True, text=True, check=True
        )

    names = (*study.SHARED, *study.OWN)
    chain(tmp_path / "unbroken", *names)
    # Commands that end after the first stage, the second, and then every second one.
    for count in (1, *range(2, len(names), 2), len(names)):
        chain(tmp_path / "resumed", *names[:count])
    # A stage's config also says which other stages its command ran, and what it was made from has the
    # checksums of files whose names Orbax draws.
    unbroken, resumed = (
        {
            name: digest
            for name, digest in kill_stages.state(tmp_path / folder).items()
            if not name.endswith((": config.json", f": {lineage.RECORD}"))
        }
        for folder in ("unbroken", "resumed")
    )
    assert {name.split(":")[0].split("/")[0] for name in unbroken} >= {*names}
    different = kill_stages.differences(resumed, unbroken)
    assert not different, different


@pytest.mark.long
def test_a_study_runs_continues_and_names_what_failed(tmp_path, light_environment):
    """At the smallest size: two methods, one of which cannot start."""
    command = [
        sys.executable,
        str(ROOT / "tools" / "study.py"),
        f"--out={tmp_path / 'study'}",
        "--seeds=1",
    ]
    command += [
        "--rows",
        "One-Forcing",
        "One-Forcing from consistency",
        *(f"--config.{field}" for field in SIZES),
    ]
    run = lambda: subprocess.run(  # noqa: E731
        command, env=light_environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    made = run().stdout
    assert "| One-Forcing | 1 |" in made and "| One-Forcing from consistency | 1 |" in made
    page = (tmp_path / "study" / "study.md").read_text()
    assert "motion One-Forcing minus One-Forcing from consistency" in page
    # A row whose start is gone is named, and the other stays.
    broken = tmp_path / "study/rows/one_forcing_from_consistency/0"
    for stage in study.OWN:
        shutil.rmtree(broken / stage)
    (broken / "consistency").unlink()
    (broken / "consistency").mkdir()
    again = run().stdout
    assert "| One-Forcing | 1 |" in again
    # Scores of other fields are not those of what is asked for.
    command.append("--config.stages.report.videos=2")
    other = run().stdout
    assert "| One-Forcing | failed: seed 0: report: stages.report.videos was 1, now 2" in other
    assert "| One-Forcing from consistency | failed: seed 0: error: " in again
