"""Bad input of the evaluation's commands, for tools/fuzz.py: lists, results, videos, votes and features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from oneforcing_jax.data.video import write_video
from oneforcing_jax.evaluation import figures, measures, provenance
from oneforcing_jax.evaluation.raters import __main__ as raters
from oneforcing_jax.evaluation.raters.draw import read as read_draw
from oneforcing_jax.evaluation.raters.votes import Votes
from oneforcing_jax.evaluation.report import __main__ as report
from oneforcing_jax.evaluation.vbench import __main__ as vbench

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "figures": figures.main,
    "measures": measures.main,
    "provenance": provenance.main,
    "raters": raters.main,
    "report": report.main,
    "vbench": vbench.main,
}
PROMPTS = ("a red square", "a blue circle", "a cat")
DIMENSIONS = ("color", "scene")


def make(folder: Path) -> None:
    """In a new folder: a list of prompts, videos of two models, results, scores, features, and a study."""
    folder.mkdir()
    rows = [{"prompt_en": words, "dimension": [DIMENSIONS[0]]} for words in PROMPTS]
    (folder / "list.json").write_text(json.dumps(rows))
    rng = np.random.default_rng(0)
    for model in ("ours", "other"):
        (folder / model).mkdir()
        for words in PROMPTS:
            clip = rng.integers(0, 256, (6, 32, 48, 3), np.uint8)
            write_video(folder / model / f"{words}-0.mp4", clip, 8.0)
    (folder / "results").mkdir()
    for name in DIMENSIONS:
        content = json.dumps({name: [0.5, []]})
        (folder / "results" / f"{name}_eval_results.json").write_text(content)
    np.save(folder / "features.npy", rng.normal(size=(3, 2)))
    vbench.main(
        ["score", str(folder / "results"), "--leaderboard_zero", f"--out={folder / 'score.json'}"]
    )
    raters.main([
        "draw", f"--prompts={folder / 'list.json'}", f"--out={folder / 'votes'}", "--count=2",
        f"--ours=a={folder / 'ours'}", f"--baseline=b={folder / 'other'}", "--checks=1",
    ])  # fmt: skip
    votes = Votes(folder / "votes", read_draw(folder / "votes"), create=True)
    rater = votes.join()
    votes.vote(rater, votes.turn(rater).pair, "left")


def arguments(given: Path, run: Path) -> tuple[tuple[str, tuple[str, ...], list[str]], ...]:
    """Commands that are right as long as what they read is: name, what that is, and options.

    Args:
      given: what `make` made.
      run: a work directory.
    """
    draws = [
        "--count=2",
        f"--ours=a={given / 'ours'}",
        f"--baseline=b={given / 'other'}",
        "--checks=1",
    ]
    return (
        ("vbench", ("list.json", "ours"), [
            "check", f"--vbench={given / 'list.json'}", f"--videos={given / 'ours'}", "--samples=1",
            "--frames=6", "--size=32x48", "--fps=8",
        ]),
        ("vbench", ("results",), ["score", str(given / "results"), f"--out={given / 'new.json'}"]),
        ("measures", ("ours", "other", "features.npy"), [
            str(given / "ours"), f"--against={given / 'other'}", f"--features={given / 'features.npy'}",
            f"--real_features={given / 'features.npy'}", f"--out={given / 'new.json'}",
        ]),
        ("figures", ("score.json", "ours", "../run/one_forcing/metrics.jsonl"), [
            f"--out={given / 'new'}", f"--scores={given / 'score.json'}", f"--videos=a={given / 'ours'}",
            f"--runs=a={run / 'one_forcing'}",
        ]),
        ("provenance", ("ours",), [str(given / "ours" / f"{words}-0.mp4") for words in PROMPTS]),
        ("report", ("../run/one_forcing/metrics.jsonl", "../run/config.json"), [
            str(run), f"--out={given / 'new.html'}",
        ]),
        ("raters", ("list.json", "ours", "other"), [
            "draw", f"--prompts={given / 'list.json'}", f"--out={given / 'new'}", *draws,
        ]),
        ("raters", ("votes/votes.db", "votes/draw.json"), ["analyse", str(given / 'votes')]),
    )  # fmt: skip


# A command, and options that it must refuse; "@" stands for the folder that `make` made.
WRONG = tuple(
    (command, *options, *out)
    for command, out, rows in (
        ("vbench", (), (
            ("check", "--vbench=@/list.json", "--videos=@/ours", "--samples=0"),
            ("check", "--vbench=/no", "--videos=@/ours"),
            ("score", "/no", "--out=@/new"), ("score", "/dev/null", "--out=@/new"),
        )),
        ("measures", ("--out=@/new.json",), (
            ("@/ours", "--window=0"), ("@/ours", "--window=x"), ("@/ours", "--block=-1"),
            ("@/ours", "--first_block=0", "--block=2"), ("@/ours", "--features=@/features.npy"),
            ("/no",), ("/",),
        )),
        ("figures", ("--out=@/new",), (
            ("--curvature", "x"), ("--curvature", "a=/no"), ("--runs", "a=/"), ("--scores=/no",),
        )),
        ("provenance", (), (("/no",), ("/",))),
        ("report", ("--out=@/new",), (("/no",),)),
        ("raters", (), (("analyse", "/no"), ("serve", "/no"), ("serve", "@/votes", "--port=-1"))),
        ("raters", ("--out=@/new", "--prompts=@/list.json", "--ours=a=@/ours"), (
            ("draw", "--baseline=b=@/other", "--count=0"), ("draw", "--baseline=a=@/other"),
        )),
    )
    for options in rows
)  # fmt: skip
