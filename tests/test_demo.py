"""The front door: the pipeline of Python, and students that come with the package."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import demo_run
import jax
import numpy as np
import pytest
from browser import assert_accessible, chromium, page_of, until
from PIL import Image

from oneforcing_jax import Pipeline, demos, generate, serve
from oneforcing_jax.convert import card
from oneforcing_jax.data.origin import digest, read_origin
from oneforcing_jax.data.resize import enlarged
from oneforcing_jax.data.video import read_video
from oneforcing_jax.families import encoders
from oneforcing_jax.generation import pretrained
from oneforcing_jax.system import integrity, places
from oneforcing_jax.toy import ship

LEFT, UP = "a circle moving left", "a square moving up"
COMMIT = "12" * 20
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return demo_run.make(tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def demo(run):
    """A demo of that run, which takes the place of the one in the package."""
    folder = run.parent / "demo"
    ship.main(["--run", str(run), "--out", str(folder)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demos.DEMOS, "toy", folder)
        yield folder


@pytest.fixture(scope="module")
def pipeline(demo):
    return Pipeline.from_pretrained("demo")


# Students that come with the package.


def test_a_demo_is_the_average_of_its_run(run, demo):
    source, found = pretrained.find(run / "one_forcing", ema=True), pretrained.find(demo)
    assert found.config == source.config and found.causal
    for name in pretrained.LAYOUT:
        assert getattr(found, name) == getattr(source, name), name
    for whole, half in zip(*map(jax.tree.leaves, (source.params(), found.params())), strict=True):
        assert half.dtype == whole.dtype == np.float32
        np.testing.assert_allclose(half, whole, rtol=2**-11, atol=1e-7)
    said = json.loads((demo / demos.CARD).read_text())
    assert said["scores"] == demo_run.SCORES and said["seconds"] == {"one_forcing": 10}
    assert said["config"]["generator"]["dim"] == demo_run.SIZES["dim"] and said["seed"] == 0
    page = (demo / card.README).read_text()
    assert "|One-Forcing, 1 step (EMA)|0.25|1.5|" in page and "10 seconds of updates" in page
    assert card.wrong(page) == ["license, in lines between dashes at its beginning"]


def test_a_damaged_demo_is_refused(demo, tmp_path):
    copy = shutil.copytree(demo, tmp_path / "copy")
    (data,) = (copy / "0").glob("*/manifest.ocdbt")
    *kept, last = data.read_bytes()
    data.write_bytes(bytes((*kept, last ^ 1)))
    with pytest.raises(
        ValueError, match="expected the files that were written, found that .*changed"
    ):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("shift=4.0", "expected a run with shift 3.0 as the toy's family has, found 4.0"),
        ("stages.report.students=()", "expected scores of ema one_forcing:generator, found real"),
    ],
)
def test_a_run_that_is_no_demo_is_refused(change, line, run, demo, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    for config in (other / "config.json", other / "one_forcing" / "config.json"):
        said = json.loads(config.read_text())
        del said["record_crc32"]
        if change.startswith("shift"):
            said["shift"] = 4.0
        else:
            said["stages"]["report"]["students"] = []
        config.write_text(json.dumps(said))
    before = (demo / demos.CARD).read_bytes()
    with pytest.raises(SystemExit, match=line):
        ship.main(["--run", str(other), "--out", str(demo)])
    assert (demo / demos.CARD).read_bytes() == before


def test_ship_replaces_nothing_but_a_demo(run, tmp_path):
    with pytest.raises(SystemExit, match="expected nothing or a demo in .*, found something else"):
        ship.main(["--run", str(run), "--out", str(tmp_path)])
    with pytest.raises(
        SystemExit, match="expected the scores of a finished run in report/scores.json"
    ):
        (lacking := tmp_path / "run").mkdir()
        shutil.copytree(run / "one_forcing", lacking / "one_forcing")
        ship.main(["--run", str(lacking), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_the_package_holds_is_whole_and_small():
    for path in demos.DEMOS.values():
        folder = Path(demos.__file__).parent / path
        assert integrity.is_sealed(folder) and not integrity.problems(folder)
        assert sum(places.sizes(folder).values()) <= ship.MOST
        assert pretrained.find(folder).causal
        encoders.load(folder).text.check(LEFT)


# The command lines.


def test_generate_a_demo(demo, pipeline, tmp_path, capsys):
    options = ["--demo", "--window=8", "--frames=3", "--seed=4", "--programs="]
    options.append(f"--out={tmp_path / 'a.mp4'}")
    generate.main([*options, f"--prompt={LEFT}"])
    assert (
        "toy knows prompts like 'a circle moving left': a circle or square"
        in capsys.readouterr().out
    )
    frames, times = read_video(tmp_path / "a.mp4")
    assert frames.shape == (3, 384, 384, 3) and times.rate == pretrained.find(demo).fps
    expected = pipeline.generate(LEFT, num_frames=3, seed=4)
    shown = np.stack([enlarged(frame, demos.SIDE) for frame in expected])
    assert np.abs(frames.astype(int) - shown).mean() < 3 < shown.std()
    assert read_origin(tmp_path / "a.mp4")["settings"]["side"] == demos.SIDE
    generate.main([*options, f"--prompt={LEFT}"])
    assert "1 of 1 videos are there already" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="expected words of .*'circle', 'down'.*, found 'cat'"):
        generate.main([*options[:-1], f"--out={tmp_path / 'b.mp4'}", "--prompt=a cat"])
    for given, line in (
        (f"--checkpoint={demo}", "not allowed with"),
        ("--demo=sky", "invalid choice: 'sky'"),
    ):
        with pytest.raises(SystemExit):
            generate.main([*options, given, "--prompt=a"])
        assert line in capsys.readouterr().err


def test_serve_a_demo(demo):
    args = serve._parser("serve").parse_args(["--demo"])
    assert (args.demo, args.checkpoint) == ("toy", demo)


@pytest.mark.browser
def test_the_page_of_the_shipped_student(light_environment, tmp_path):
    words = [sys.executable, "-m", "oneforcing_jax.serve", "--demo", "--port=0"]
    env = light_environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as serving:
        try:
            address = next(line for line in serving.stdout if line.startswith("http")).strip()
            with chromium() as browser, page_of(browser) as page:
                page.goto(address)
                until(page, f"document.querySelector('#prompt').value === '{LEFT}'")
                assert page.inner_text("#model").startswith("demo toy")
                assert_accessible(page)
                page.click("#start")
                until(page, "Number(document.querySelector('#canvas').dataset.count) >= 8")
                assert (
                    page.evaluate(
                        "getComputedStyle(document.querySelector('#canvas')).imageRendering"
                    )
                    == "auto"
                )
                page.screenshot(path=tmp_path / "demo.png", full_page=True)
        finally:
            serving.terminate()


# The pipeline.


def test_sizes_and_steps_of_a_video(pipeline):
    assert pipeline.fps == 8
    made = pipeline.generate(LEFT, num_frames=2, height=32, width=24, num_inference_steps=2)
    assert made.shape == (2, 32, 24, 3) and made.dtype == np.uint8
    settings = pipeline._settings(None, None, None, None)
    assert settings == pipeline.model.settings() and settings.shape[0] == 8
    assert pipeline._settings(2, None, None, 2).steps == (1000.0, 500.0)


def test_a_stream_is_the_same_video_until_it_is_switched(pipeline):
    whole = pipeline.generate(LEFT, num_frames=6, seed=3)
    frames = np.stack(list(pipeline.stream(LEFT, num_frames=6, seed=3)))
    np.testing.assert_array_equal(frames, whole)
    assert not np.array_equal(pipeline.generate(LEFT, num_frames=6, seed=4), whole)

    older, coming = (
        pipeline.stream(LEFT, num_frames=6, seed=3),
        pipeline.stream(LEFT, num_frames=6, seed=3),
    )
    begun = list(itertools.islice(coming, 2))
    with pytest.raises(ValueError, match="expected words of .*, found 'cat'"):
        pipeline.switch("a cat")
    pipeline.switch(UP)
    same = [np.array_equal(*pair) for pair in zip([*begun, *coming], whole, strict=True)]
    assert same == [True] * 3 + [False] * 3  # one block was on its way
    np.testing.assert_array_equal(np.stack(list(older)), whole)


def test_a_video_begins_with_an_image(pipeline, tmp_path):
    whole, file = pipeline.generate(LEFT, num_frames=3, seed=3), tmp_path / "first.png"
    Image.fromarray(whole[0]).save(file)
    made = pipeline.generate(UP, num_frames=3, seed=4, image=file)
    codec = pipeline.model.encoders.codec
    kept = pipeline.model.continued_latents(whole[:1], pipeline.model.settings(3))
    np.testing.assert_array_equal(made[0], np.asarray(codec.stream()(kept))[0, 0])
    pipeline.save(tmp_path / "a.mp4")
    assert read_origin(tmp_path / "a.mp4")["settings"]["image"] == digest(file.read_bytes())
    assert not np.array_equal(pipeline.generate(UP, num_frames=3, seed=4)[0], made[0])
    with pytest.raises(FileNotFoundError, match="no image file at .*gone.png"):
        pipeline.stream(UP, image=tmp_path / "gone.png")


def test_saved_videos_say_what_made_them(pipeline, demo, tmp_path):
    frames = pipeline.generate(UP, num_frames=2, seed=5)
    pipeline.save(tmp_path / "a.mp4")
    said = read_origin(tmp_path / "a.mp4")
    assert said["seed"] == 5 and said["checkpoint"] == pretrained.find(demo).identity
    assert read_video(tmp_path / "a.mp4")[0].shape == (2, 384, 384, 3)
    plain = Pipeline(pipeline.model)
    plain.save(tmp_path / "b.mp4", iter(frames))
    assert np.abs(read_video(tmp_path / "b.mp4")[0].astype(int) - frames).mean() < 6
    assert "seed" not in read_origin(tmp_path / "b.mp4")
    for path, given, line in (
        ("c.mp4", None, "expected a video, found none; call generate first"),
        ("c.mp4", [], "expected frames, found none"),
        ("c.mp4", frames.astype(float), r"expected frames uint8 \[y, x, 3\], found float64"),
        ("c.gif", frames, "expected a .mp4 file, found .*c.gif"),
    ):
        with pytest.raises(ValueError, match=line):
            plain.save(tmp_path / path, given)
    with pytest.raises(ValueError, match="switch: expected a stream, found none"):
        plain.switch(UP)


@pytest.mark.parametrize(
    ("prompt", "given", "line"),
    [
        (" ", {}, "prompt: expected words, found an empty prompt"),
        ("a cat", {}, "expected words of .*, found 'cat'"),
        (LEFT, {"seed": -1}, r"seed: expected a whole number from 0 to 2\^32 - 1, found -1"),
        (LEFT, {"num_frames": 0}, "num_frames: expected a whole number from 1 .*, found 0"),
        (LEFT, {"num_frames": 2.5}, "num_frames: expected a whole number from 1 .*, found 2.5"),
        (LEFT, {"height": 25}, "expected frames whose sizes 4 divides, found 25x24"),
        (LEFT, {"num_inference_steps": 0}, "num_inference_steps: expected .*, found 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(prompt, given, line, pipeline):
    for make in (pipeline.generate, pipeline.stream):
        with pytest.raises(ValueError, match=line):
            make(prompt, **given)


# Names.


def test_a_repository_of_converted_weights(demo, tmp_path, monkeypatch):
    asked, copy = [], shutil.copytree(demo, tmp_path / COMMIT)

    def snapshot(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    made = Pipeline.from_pretrained("owner/toy@main", window=2)
    assert asked == [("owner/toy", "main", ["*model.json"]), ("owner/toy", COMMIT, None)]
    assert made.model.source.folder == copy and made.model.maker.window.size == 2

    (copy / "model.json").unlink()
    with pytest.raises(
        ValueError, match="found none .*run oneforcing convert --source owner/toy --out"
    ):
        Pipeline.from_pretrained("owner/toy")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "oneforcing_jax\[torch\]"'):
        Pipeline.from_pretrained("owner/toy")


def test_no_such_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="demos: expected a folder of .* or 'demo', found nothing"
    ):
        Pipeline.from_pretrained("demos")
    with pytest.raises(ValueError, match="window: expected a whole number of 1 or more"):
        Pipeline.from_pretrained("demo", window=0)


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    known = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(cell["source"], known)
    assert known["frames"].shape == (8, 24, 24, 3) and len(known["streamed"]) == 16
    assert len(read_video(tmp_path / "switched.mp4")[0]) == 16
    assert np.ptp(known["frames"]) > 128  # something bright on black
