"""The report: what it reads of runs and studies, what it says of damage, and its page in a real browser."""

import json
import re

import av
import numpy as np
import pytest
from browser import NARROW, assert_accessible, chromium, page_of, until

from oneforcing_jax.data.playable import playable
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.evaluation.report import __main__ as command
from oneforcing_jax.evaluation.report import meanings, page, svg
from oneforcing_jax.evaluation.report.collect import collect, table, tiles

PROMPTS = ("a_cat", 'a_<b>&"dog"')


def clip(colour, frames=6, rows=24, columns=24):
    made = np.full((frames, rows, columns, 3), 20, np.uint8)
    for t, frame in enumerate(made):
        frame[4:12, 2 * t : 2 * t + 8] = colour
    return made


def work_directory(folder, seed, loss, colour, model="student"):
    """What a finished run leaves, at the least."""
    (folder / "report" / "videos").mkdir(parents=True)
    (folder / "one_forcing" / "samples").mkdir(parents=True)
    config = {"seed": seed, "one_forcing": {"dmd_weight": loss}, "fps": 8.0}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"iteration": i, "generator/dmd_loss": loss / i, "critic/loss": 1.0, "rates/x": 2.0}
            for i in range(1, 9)]  # fmt: skip
    (folder / "one_forcing" / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )
    scores = {"real": {"clear": 1.0}, model: {"clear": loss / 10 + seed / 100}}
    (folder / "report" / "scores.json").write_text(json.dumps(scores))
    for prompt in PROMPTS:
        write_video(
            folder / "report" / "videos" / f"{prompt}.mp4", clip(colour), 8, full_chroma=True
        )
    return folder


@pytest.fixture
def study(tmp_path):
    """Two methods, one with two seeds, and a run that is not finished."""
    folder = tmp_path / "study"
    for method, seed, loss, colour in (
        ("dmd_alone", 0, 1.0, (255, 0, 0)), ("dmd_alone", 1, 2.0, (255, 0, 0)),
        ("one_forcing", 0, 3.0, (0, 255, 0)),
    ):  # fmt: skip
        work_directory(folder / "rows" / method / str(seed), seed, loss, colour)
    (folder / "rows" / "asd" / "0").mkdir(parents=True)
    return folder


def fails(*arguments):
    with pytest.raises(SystemExit) as caught:
        command.main([str(x) for x in arguments])
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line and "fault of the program" not in line
    return line


def test_a_study_is_read(study):
    found = collect([study])
    assert found.methods == ["DMD alone", "One-Forcing"]
    assert found.notes == ["ASD, seed 0, is not finished"]
    (_, name, dmd), (_, _, ours) = table(found)
    assert name == "DMD alone" and (dmd["clear"].count, ours["clear"].count) == (2, 1)
    assert abs(dmd["clear"].mean - 0.155) < 1e-9 and str(ours["clear"]) == "0.3"
    run = found.runs[0]
    assert list(run.curves) == ["one_forcing: DMD loss", "one_forcing: critic's loss"]
    np.testing.assert_allclose(run.curves["one_forcing: DMD loss"][1], 1 / np.arange(1, 9))
    assert run.config["one_forcing.dmd_weight"] == 1.0
    assert list(run.clips) == ['a <b>&"dog"', "a cat"]


def test_a_run_is_read_whole(tmp_path):
    folder = work_directory(tmp_path / "toy", 0, 1.0, (0, 0, 255), model="One-Forcing, 1 step")
    write_video(folder / "one_forcing" / "samples" / "000060.mp4", clip((9, 9, 9), rows=48), 8)
    found = collect([folder])
    assert [name for _, name, _ in table(found)] == ["real", "One-Forcing, 1 step"]
    assert list(found.runs[0].clips["one_forcing: samples at iteration 60"]) == ["samples"]
    both = collect([folder, work_directory(tmp_path / "other" / "toy", 0, 2.0, (0, 0, 255))])
    assert both.methods == [str(folder), str(tmp_path / "other" / "toy")]  # two of one name


def compared_run(folder):
    """A run whose report compares models; returns its folder."""
    work_directory(folder, 0, 1.0, (0, 0, 255), model="after, 1 step")
    for model, colour in (("real", (255, 0, 0)), ("teacher", (0, 255, 0))):
        place = folder / "report" / "compared" / model
        place.mkdir(parents=True)
        write_video(place / "a_cat.mp4", clip(colour), 8, full_chroma=True)
    names = ("real", "teacher", "before", "after, 1 step")
    row = {"own": 2.0} | dict.fromkeys(meanings.SCORES, 1.0) | {"frechet": 1e-14}
    scores = dict.fromkeys(names, row)  # more columns than fit
    (folder / "report" / "scores.json").write_text(json.dumps(scores))
    students = [["before", "ode:model"], ["after, 1 step", "ema one_forcing:generator"]]
    report = {"kind": "report", "teacher": "teacher:model", "students": students}
    stages = {"one_forcing": {"kind": "train"}, "teacher": {"kind": "train"}, "report": report}
    (folder / "config.json").write_text(json.dumps({"stages": stages, "evaluation": {"steps": 16}}))
    (folder / "teacher").mkdir()
    rows = (folder / "one_forcing" / "metrics.jsonl").read_text()
    (folder / "teacher" / "metrics.jsonl").write_text(rows.replace("generator", "model"))
    return folder


def test_a_run_compares_its_models(tmp_path):
    """Side by side under their names, each said in a line; another run beside it has its own videos alone."""
    found = collect([compared_run(tmp_path / "toy")])
    (run,) = found.runs
    assert found.names == list(run.scores)
    cat = tiles(found, run, "a cat")
    assert list(cat) == ["real", "teacher", "after, 1 step"]
    assert cat["after, 1 step"] == tmp_path / "toy/report/videos/a_cat.mp4"
    assert list(tiles(found, run, 'a <b>&"dog"')) == ["after, 1 step"]
    assert next(iter(run.curves)).startswith("one_forcing: ")  # by the config, and not by time
    said = dict(meanings.models(found.names, run.config))
    assert "teacher of stage" not in said["teacher"] and "16 steps" in said["teacher"]
    assert (
        said["after, 1 step"] == "generator of stage one_forcing, a moving average of its weights"
    )
    text = page.page(found, "toy", 9)
    assert f"<dt>clear</dt><dd>{meanings.SCORES['clear']}</dd>" in text
    assert text.count("<td>0</td>") == 4 and "<dt>own</dt>" not in text

    other = work_directory(tmp_path / "other", 0, 2.0, (0, 0, 255))
    both = collect([tmp_path / "toy", other])
    assert both.names == ["toy", "other"]
    assert list(tiles(both, both.runs[0], "a cat")) == ["toy"]


def test_the_table_of_configs_has_a_column_a_run(tmp_path):
    folders = [work_directory(tmp_path / f"run{n}", n, 1.0 + n, (0, 0, 255)) for n in range(3)]
    (folders[2] / "config.json").write_text("{")
    table = page.config(collect(folders)).split("<details>")[0]
    assert re.findall("<th.*?>([^<]+)</th>", table) == [
        "field", "run0", "run1", "seed", "one_forcing.dmd_weight",
    ]  # fmt: skip
    assert re.findall("<td.*?>([^<]+)</td>", table) == ["0", "1", "1.0", "2.0"]


def test_damage_is_noted_and_the_rest_is_shown(study, capsys):
    row = study / "rows" / "dmd_alone"
    for n, prompt in enumerate(PROMPTS):
        file = row / "0" / "report" / "videos" / f"{prompt}.mp4"
        file.write_bytes(file.read_bytes()[: 400 * n])
    (row / "0" / "one_forcing" / "metrics.jsonl").write_text('{"iteration": 1}\nhalf\n')
    (row / "1" / "config.json").write_text("{")
    (row / "1" / "report" / "scores.json").write_text("[]")
    out = study / "report.html"
    command.main([str(study), f"--out={out}"])
    said = capsys.readouterr().out
    for words in ("found zero bytes", "expected a readable video", "found a damaged one", "config.json",
                  "scores.json", "ASD, seed 0, is not finished"):  # fmt: skip
        assert words in said
    assert out.read_text().count("data:video/mp4") == 4


def test_folders_with_nothing_to_show_are_one_line(study, tmp_path):
    out = tmp_path / "report.html"
    (tmp_path / "empty" / "rows" / "asd" / "0").mkdir(parents=True)
    assert "expected a finished run" in fails(tmp_path / "empty", "--out", out)
    assert "found neither" in fails(tmp_path / "nowhere", "--out", out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    assert "expected metrics, scores or videos" in fails(tmp_path / "new", "--out", out)
    assert "cannot write" in fails(study, "--out", tmp_path / "no folder" / "x.html")
    assert not out.exists()


def test_the_page_holds_everything_and_escapes_it(study, capsys):
    file = study / "rows" / "one_forcing" / "0" / "report" / "scores.json"
    file.write_text(json.dumps({"student": {"</td><script>x": 1.0}}))
    out = study / "report.html"
    command.main([str(study), f"--out={out}", "--prompts=1"])
    text = out.read_text()
    assert "videos of 1 of 2 prompts are shown" in capsys.readouterr().out
    assert text.count("data:video/mp4") == 3
    assert "</td><script>x" not in text and "<b>" not in text and "{{" not in text
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]


def test_a_line_goes_through_its_points():
    at, values = np.arange(0, 101, 50.0), np.array([0.0, 2.0, 1.0])
    drawn = svg.panel("loss", {3: [(at, values), (at, values + 2)]})
    left, right = svg.LEFT, svg.WIDTH - svg.RIGHT
    top, bottom = svg.TOP, svg.HEIGHT - svg.BOTTOM
    group = re.search(r'<g class="m3">(.+)</g>', drawn)[1]
    points = [tuple(map(float, p.split(","))) for p in
              re.search(r'class="line" d="M([^"]+)"', group)[1].split("L")]  # fmt: skip
    expected = [(x, bottom - (bottom - top) * v / 4) for x, v in
                zip((left, (left + right) / 2, right), (1, 3, 2), strict=True)]  # fmt: skip
    np.testing.assert_allclose(points, expected, atol=0.06)
    assert 'class="band"' in group
    assert svg.panel("nothing", {0: [(at, at * np.nan)]}) == ""
    for low, high in ((0.0, 1.0), (-3e-5, 2e-4), (5.0, 5.0), (0.0, 0.0), (1e7, 3.3e7)):
        ticks = svg._ticks(low, high)
        assert (
            ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) <= svg.TICKS + 1
        )


def test_playable_clips_keep_frames_and_colours(tmp_path):
    """What browsers play is copied without its metadata; small clips of full colour keep it."""
    for name, full, rows in (("copied", False, 64), ("coded", True, 24), ("odd", True, 301)):
        file = tmp_path / f"{name}.mp4"
        columns = rows - rows % 2
        write_video(file, clip((200, 40, 40), rows=rows, columns=columns), 8, full_chroma=full)
        before = read_video(file)[0]
        out = tmp_path / f"{name}_out.mp4"
        out.write_bytes(playable(file))
        after, times = read_video(out)
        with av.open(str(out)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert times.rate == 8 and len(after) == len(before)
        if name == "copied":
            np.testing.assert_array_equal(after, before)
        elif name == "coded":
            assert np.abs(after[:, ::2, ::2].astype(int) - before).mean() < 4
        else:
            assert after.shape[1:3] == (302, 300)


@pytest.mark.browser
def test_the_page_plays_and_filters(study, tmp_path):
    """From the disk, without a network, wide and narrow."""
    out = tmp_path / "report.html"
    command.main([str(study), f"--out={out}"])
    videos = "[...document.querySelectorAll('#tiles video')]"
    captions = "[...document.querySelectorAll('#tiles figcaption')].map(x => x.textContent)"
    drawn = (
        "[...document.querySelectorAll('.panels g')].filter(x => x.getClientRects().length).length"
    )
    playing = f"{videos}.length && {videos}.every(v => v.readyState > 2 && v.currentTime > 0 && !v.paused)"
    with chromium() as browser, page_of(browser, offline=True) as page:
        page.goto(out.as_uri())
        until(page, playing)
        assert page.evaluate(captions) == ["DMD alone", "One-Forcing"]
        # The picture is there: red moves in one, green in the other.
        colours = page.evaluate(f"""{videos}.map(video => {{
            const canvas = Object.assign(document.createElement("canvas"), {{width: 48, height: 48}});
            const brush = canvas.getContext("2d");
            brush.drawImage(video, 0, 0);
            const pixels = brush.getImageData(0, 0, 48, 48).data;
            return [0, 1].map(c => Math.max(...pixels.filter((_, i) => i % 4 === c)));
        }})""")
        assert (
            colours[0][0] > 200 > 120 > colours[0][1] and colours[1][1] > 200 > 120 > colours[1][0]
        )
        times = page.evaluate(f"{videos}.map(v => v.currentTime)")
        assert abs(times[0] - times[1]) < 0.13
        until(page, f"{videos}.every(v => v.currentTime > 0.5)")
        until(
            page, f"{videos}.every(v => v.currentTime < 0.4 && !v.paused)"
        )  # again from the start
        assert page.evaluate(drawn) == 4
        page.screenshot(path=tmp_path / "report_wide.png", full_page=True)
        assert_accessible(page)
        page.uncheck("input[value='One-Forcing']")
        page.select_option("#prompt", label="a cat")
        page.select_option("#seed", label="1")
        until(page, playing)
        assert page.evaluate(captions) == ["DMD alone"] and page.evaluate(drawn) == 2
        assert page.locator("#scores tbody tr:visible").count() == 1
        link = page.url
        assert link.endswith("#prompt=a+cat&seed=1&show=DMD+alone")
        page.click("#pause")
        until(page, f"{videos}.every(v => v.paused)")
    with chromium() as browser, page_of(browser, NARROW, offline=True) as page:
        page.goto(link)
        until(page, playing)
        assert page.evaluate(captions) == ["DMD alone"]
        assert page.eval_on_selector("#prompt", "x => x.selectedOptions[0].text") == "a cat"
        page.evaluate("location.hash = 'show=One-Forcing&prompt=nothing'")
        until(page, f"{captions}[0] === 'One-Forcing'")
        page.focus("#after")
        page.keyboard.press("Enter")
        until(page, playing)
        assert "prompt=a+cat" in page.url
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        page.screenshot(path=tmp_path / "report_narrow.png", full_page=True)
        assert_accessible(page)


@pytest.mark.browser
def test_the_models_of_a_run_play_side_by_side(tmp_path):
    out = tmp_path / "report.html"
    command.main([str(compared_run(tmp_path / "toy")), f"--out={out}"])
    captions = "[...document.querySelectorAll('#tiles figcaption')].map(x => x.textContent)"
    videos = "[...document.querySelectorAll('#tiles video')]"
    playing = f"{videos}.length && {videos}.every(v => v.currentTime > 0 && !v.paused)"
    tops = f"new Set({videos}.map(v => v.getBoundingClientRect().top)).size"
    with chromium() as browser, page_of(browser, NARROW, offline=True, color_scheme="dark") as page:
        page.goto(out.as_uri())
        page.select_option("#prompt", label="a cat")
        until(page, playing)
        assert page.evaluate(captions) == ["real", "teacher", "after, 1 step"]
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        assert_accessible(page)
        page.screenshot(path=tmp_path / "models.png", full_page=True)
        page.uncheck("input[value='teacher']")
        until(page, playing)
        assert page.evaluate(captions) == ["real", "after, 1 step"] and page.evaluate(tops) == 1
        assert page.locator("#scores tbody tr:visible").count() == 3
        assert page.locator(".panels g:visible").count() > 0
