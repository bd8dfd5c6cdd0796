"""VBench: names that its evaluator finds, videos and their check, results, the score and the paper's rows."""

import functools
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from goldens import FOLDER, Golden
from test_generate import WORDS, save_weights

from oneforcing_jax.data.origin import read_origin
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.evaluation.vbench import results, score, suite, tables
from oneforcing_jax.evaluation.vbench.__main__ import main
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import encoders as toy_encoders
from oneforcing_jax.toy import text as texts

# As VBench's list: equal lines for different dimensions, a long prompt, punctuation, another letter case.
LONG = ("a very long prompt, " * 11)[:210].strip() + "."
ROWS = [
    ("a cat, in the style of Ukiyo", ["appearance_style"]),
    ('A dog\'s "façade": 50% of it?', ["color", "scene"]),
    (LONG, ["temporal_flickering"]),
    ("a cat, in the style of Ukiyo", ["overall_consistency"]),
    ("a dog-1", ["color"]),
]


@pytest.fixture
def checkout(tmp_path):
    """A checkout of VBench, as far as its list goes."""
    folder = tmp_path / "VBench"
    (folder / "vbench").mkdir(parents=True)
    rows = [{"prompt_en": words, "dimension": its} for words, its in ROWS]
    (folder / "vbench" / "VBench_full_info.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Options for a recorded framewise model and encoders that fit it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "encoders").mkdir()
    save_weights(folder / "transformer", *Golden("inference_framewise_ffe").model())
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    words = texts.TextEncoder.train([WORDS], dim=16, length=8)
    toy_encoders.save(folder / "encoders", codecs.fit(noise, channels=4), words)
    return [
        f"--checkpoint={folder / 'transformer'}", f"--encoders={folder / 'encoders'}",
        "--dtype=float32", "--frames=6", "--size=24x32", "--first_steps=1000", "--batch=8",
    ]  # fmt: skip


def command(*arguments):
    main([str(argument) for argument in arguments])


def refused(*arguments):
    """The line with which a command ends."""
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line
    return line


# The list.


def test_every_name_is_one_that_vbench_looks_for(checkout, model, tmp_path, capsys):
    command("make", "--vbench", checkout, "--out", tmp_path / "videos", "--dry_run", *model)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "VBench_full_info.json: line 4 repeats line 1, which counts"
    assert lines[-1] == "20 videos to make, of 20 of 4 prompts"
    # VBench's rule: the whole prompt, a number, and the ending.
    looked_for = {f"{words}-{i}.mp4" for words, _ in ROWS for i in range(5)}
    assert set(lines[1:-1]) == looked_for and len(lines[1:-1]) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VBench"]


def test_prompts_by_dimension_and_rewritten_ones(checkout, tmp_path):
    found = suite.read(checkout)
    assert found.prompts() == [ROWS[0][0], ROWS[1][0], LONG, "a dog-1"]
    assert found.prompts(["overall_consistency", "color"]) == [ROWS[0][0], ROWS[1][0], "a dog-1"]
    new = tmp_path / "new.txt"
    new.write_text("1\n2\n3\n4\n5\n")
    # Of equal lines the first counts, for rewritten prompts, too.
    assert list(found.rewritten(new).values()) == ["1", "2", "3", "5"]
    new.write_text("1\n2\n")
    with pytest.raises(ValueError, match=r"new.txt: expected 5 prompts, one for each .* found 2"):
        found.rewritten(new)
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(words for words, _ in ROWS))
    assert suite.read(plain).digest == found.digest and suite.read(plain).repeats() == [(4, 1)]
    with pytest.raises(ValueError, match="--dimension: expected VBench's JSON list with it"):
        suite.read(plain).prompts(["color"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a cat\n\na dog\n", "line 2: expected a prompt, found none"),
        ("a cat\n" + "x" * 250, "line 2: VBench looks for .* 220 bytes at most.* found 250 bytes"),
        ("a cat/dog\n", "line 1: VBench looks for a file named after the whole prompt.* no slash"),
        (".hidden\n", "line 1: VBench looks for"),
        ("", "expected prompts, one a line, found none"),
        ('{"prompt_en": "a"}', "expected VBench's list, .* found something else"),
        ('[{"prompt_en": " "}]', "expected VBench's list"),
        ("[" * 10000, "expected VBench's list"),
    ],
)
def test_bad_lists_are_refused(content, message, tmp_path):
    file = tmp_path / ("list.json" if content[:1] in ("[", "{") else "list.txt")
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        suite.read(file)
    with pytest.raises(FileNotFoundError, match="--vbench: expected a checkout of VBench"):
        suite.read(tmp_path / "nowhere")


# Videos.


def test_videos_are_made_once_and_checked(checkout, model, tmp_path, capsys):
    """Shards, a second run, another seed; and each kind of fault that `check` names."""
    out, new = tmp_path / "videos", tmp_path / "new.txt"
    new.write_text("a red square\na blue circle\na red circle\na blue square\nblue\n")
    make = ["make", "--vbench", checkout, "--rewritten", new, "--samples=2", "--out", out, *model]
    check = ["check", "--vbench", checkout, "--samples=2", "--videos", out]
    command(*make, "--shard=0/2")
    record = json.loads((tmp_path / "videos.record.json").read_text())
    assert len(list(out.iterdir())) == 4 and record["seed"] == 0
    assert record["checkpoint"].endswith("transformer/0") and record["rewritten_sha256"]
    assert record["clip"] == {"frames": 6, "rows": 24, "columns": 32, "fps": 16.0}
    command(*make)
    capsys.readouterr()
    command(*check)
    assert capsys.readouterr().out.endswith(
        "8 videos as expected, 0 missing, 0 wrong, 0 extra files\n"
    )
    # Samples differ, and so do rewritten prompts of one sample number.
    clips = [read_video(out / f"{words}-{k}.mp4")[0] for words in (LONG, "a dog-1") for k in (0, 1)]
    assert all((a != b).any() for i, a in enumerate(clips) for b in clips[:i])

    said = read_origin(out / f"{LONG}-0.mp4")
    assert said["settings"]["steps"] == [1000] and record["options"] == said["settings"]
    assert "expected the options that" in refused(*make, "--crf=20")
    # A video in it of another origin than its record says.
    foreign, kept = out / f"{LONG}-0.mp4", (out / f"{LONG}-0.mp4").read_bytes()
    foreign.write_bytes((out / f"{LONG}-1.mp4").read_bytes())
    assert "found a video made with sample 1 and not 0; choose another" in refused(*make)
    command(*make, "--overwrite")
    assert foreign.read_bytes() == kept
    capsys.readouterr()

    assert "expected the seed that" in refused(*make, "--seed=1")
    assert "expected the rewritten_sha256 that" in refused(
        *[m for m in make if m not in ("--rewritten", new)]
    )
    assert len(list(out.iterdir())) == 8

    video, *others = (out / name for name in suite.names([ROWS[0][0], LONG, "a dog-1"], 2))
    video.write_bytes(video.read_bytes()[:-3000])
    others[0].unlink()
    write_video(others[1], np.zeros((6, 24, 16, 3), np.uint8), 16, full_chroma=True)
    write_video(others[2], np.zeros((6, 24, 32, 3), np.uint8), 8, full_chroma=True)
    (out / "notes.txt").touch()
    assert "some videos are not as expected" in refused(*check)
    said = capsys.readouterr().out
    assert f"missing: {others[0].name}\n" in said and "extra: notes.txt\n" in said
    assert re.search(r"wrong: .*-0.mp4: expected a readable video, found", said)
    assert "found 6 frames of 24x16 at 16 a second" in said
    assert "found 6 frames of 24x32 at 8 a second" in said
    assert said.endswith("4 videos as expected, 1 missing, 3 wrong, 1 extra files\n")

    (tmp_path / "videos.record.json").unlink()
    assert "found none: nobody knows what they were made from" in refused(*make)


# The evaluator. The package has the interface of VBench's, and its look-up.

PACKAGE = """
import json, os
class VBench:
    def __init__(self, device, info, out):
        self.info, self.out = info, out
    def evaluate(self, videos_path, name, dimension_list):
        if name == os.environ.get("FAILS"):
            raise RuntimeError("no network")
        there = os.listdir(videos_path)
        wanted = [r["prompt_en"] for r in json.load(open(self.info)) if name in r["dimension"]]
        files = [f"{p}-{i}.mp4" for p in wanted for i in range(5) if f"{p}-{i}.mp4" in there]
        rows = [{"video_path": os.path.join(videos_path, f), "video_results": 0.5} for f in files]
        json.dump({name: [0.5, rows]}, open(f"{self.out}/{name}_eval_results.json", "w"))
"""


def test_the_evaluator_runs_dimension_by_dimension(checkout, tmp_path, monkeypatch):
    videos, out, package = tmp_path / "videos", tmp_path / "results", tmp_path / "packages"
    for folder in (videos, package):
        folder.mkdir()
    for name in suite.names([words for words, _ in ROWS]):
        (videos / name).touch()
    run = ["run", "--vbench", checkout, "--videos", videos, "--out", out, "--device=cpu"]
    run = functools.partial(command, *run), functools.partial(refused, *run)
    assert "expected the package vbench, found none" in run[1]("--dimension", "color")
    (package / "vbench.py").write_text(PACKAGE)
    (package / "torch.py").write_text("device = str\n")  # the real one takes seconds to import
    monkeypatch.setenv("PYTHONPATH", str(package))

    monkeypatch.setenv("FAILS", "scene")
    assert "scene: VBench ended with exit code 1" in run[1]("--dimension", "color", "scene")
    assert sorted(p.name for p in out.iterdir()) == ["color_eval_results.json"]
    monkeypatch.setenv("FAILS", "color")  # which is not evaluated again
    run[0]("--dimension", "color", "scene")
    assert results.read(out) == {"color": 0.5, "scene": 0.5}

    (videos / "notes.txt").touch()
    assert "nothing but .mp4 files, found 'notes.txt'" in run[1]("--dimension", "color")
    (videos / "notes.txt").unlink()
    (videos / f"{LONG}-3.mp4").unlink()
    assert "expected 5 videos in" in run[1]("--dimension", "temporal_flickering")
    run[0]("--dimension", "temporal_flickering", "--partial")
    other = refused(
        "run", "--vbench", checkout, "--videos", tmp_path, "--out", out, "--dimension", "color"
    )
    assert "color_eval_results.json: expected results of" in other
    (out / "scene_eval_results.json").write_text('{"color": [0.5, []]}')
    assert "expected a score of scene, found none" in run[1]("--dimension", "scene")
    assert "cannot run /no/python" in run[1](
        "--dimension", "appearance_style", "--python=/no/python"
    )


# The score.


def close(ours, theirs):
    return abs(ours - theirs) < 1e-9


def test_scores_are_those_of_vbench():
    """Recorded from VBench's script at 45e79ec, on random inputs, whole and partial."""
    cases = json.loads((FOLDER / "vbench_scores.json").read_text())
    for case in cases:
        ours = score.score(case["raw"], leaderboard_zero=True)
        assert all(
            close(getattr(ours, name), case[name]) for name in ("quality", "semantic", "total")
        )
        # What is missing is named, and nothing is made of the rest.
        ours = score.score(case["raw"])
        assert (
            set(ours.missing)
            == DIMENSIONS.keys() - case["raw"].keys()
            == DIMENSIONS.keys() - ours.rows.keys()
        )
        for name in ("quality", "semantic", "total"):
            found = getattr(ours, name)
            assert found is None if ours.missing else close(found, case[name])
    assert sum(len(case["raw"]) < 16 for case in cases) == 7


def test_the_papers_totals_follow_from_their_parts():
    for row in tables.PAPER:
        # Each of the three is rounded to 0.01.
        assert abs(score.total(row.quality, row.semantic) - row.total) <= 0.01 + 1e-9, row.name
    assert len(tables.PAPER) == 13


def write_results(folder, raw):
    folder.mkdir()
    for name, value in raw.items():
        (folder / f"{name}_eval_results.json").write_text(json.dumps({name: [value, []]}))
    (folder / "x_full_info.json").write_text("[]")  # VBench leaves its list beside them
    return folder


def test_models_side_by_side(tmp_path, capsys):
    raw = json.loads((FOLDER / "vbench_scores.json").read_text())[0]["raw"]
    whole = write_results(tmp_path / "ours", raw)
    packed, single = tmp_path / "packed.zip", tmp_path / "some.json"
    with zipfile.ZipFile(packed, "w") as file:
        for path in whole.iterdir():
            file.write(path, f"deep/{path.name}")
            file.writestr(f"__MACOSX/{path.name}", b"\0")
    some = {"subject consistency": [0.9, []], "color": [1, []]}
    single.write_text(json.dumps(some))
    assert results.read(packed) == raw

    out = tmp_path / "score.json"
    command("score", whole, packed, single, "--out", out)
    found, table = json.loads(out.read_text()), capsys.readouterr().out
    assert table == out.with_suffix(".md").read_text()
    assert found["ours"] == found["packed"] and found["ours"]["missing"] == []
    assert close(found["ours"]["total"], score.score(raw).total)
    assert found["some"].keys() == {"rows", "missing", "quality", "semantic", "total"}
    assert [found["some"][k] for k in ("quality", "semantic", "total")] == [None] * 3
    assert len(found["some"]["missing"]) == 14 and "some misses background_consistency" in table
    assert found["some"]["rows"]["color"] == {"raw": 1.0, "score": 1.0}
    assert re.search(r"\| One-Forcing, framewise +\| +1\* \| +83.76 \| +85.22 \| +77.91 \|", table)
    assert re.search(r"\| some +\| +\| missing \| missing \| +missing \|", table)

    command("score", single, "--leaderboard_zero", "--out", out)
    zero = json.loads(out.read_text())["some"]
    assert len(zero["missing"]) == 14 and zero["total"] is not None
    assert "counts as a raw value of 0" in capsys.readouterr().out
    twice = refused("score", whole, tmp_path / "x" / ".." / "ours", "--out", out)
    assert "a name for each model, found 'ours' twice" in twice


BAD = [
    ('{"camera_motion": [0.5, []]}', "expected VBench's 16 dimensions, found 'camera_motion'"),
    ('{"color": 0.5}', "expected .* found color: 0.5"),
    ('{"color": [true, []]}', r"found color: \[True"),
    ('{"color": [NaN, []]}', "expected a score of color, found nan: no video was found"),
    ('{"imaging_quality": [67.2, []]}', "expected a raw score of imaging_quality from -1 to 1, found 67.2"),
    ('{"color": [0.5', "expected JSON, found a damaged file"),
    ("3", "expected .* found 3"),
    ("[]", "expected results, .* found none"),
    ("[" * 10000, "expected JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD)
def test_foreign_results_are_refused(content, message, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.json").write_text(content)
    assert re.search(message, refused("score", folder, "--out", tmp_path / "score.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]


@pytest.mark.parametrize(
    "name", ["../color.json", "/color.json", "a/../../color.json", "..\\color.json"]
)
def test_zips_that_climb_out_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("scene.json", '{"scene": [0.5, []]}')
        file.writestr(name, '{"color": [0.5, []]}')
    with pytest.raises(ValueError, match="which climbs out; do not trust it"):
        results.read(tmp_path / "a.zip")


def test_damaged_zips_and_double_scores_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(ValueError, match="a.zip: expected a whole .zip"):
        results.read(tmp_path / "a.zip")
    folder = write_results(tmp_path / "b", {"color": 0.5})
    (folder / "again.json").write_text('{"color": [0.5, []]}')
    assert results.read(folder) == {"color": 0.5}
    (folder / "again.json").write_text('{"color": [0.6, []]}')
    with pytest.raises(ValueError, match=r"one score of color, found 0.6 in .*again.json and 0.5"):
        results.read(folder)
    with pytest.raises(FileNotFoundError, match="found nothing at nowhere"):
        results.read(Path("nowhere"))
