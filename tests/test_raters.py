"""The human study: the draw, the votes of several raters at once, the page, and Table 2."""

import contextlib
import http.client
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import krippendorff
import numpy as np
import pytest
from browser import NARROW, assert_accessible, chromium, page_of, until
from waits import HANG

from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation.raters import __main__ as command
from oneforcing_jax.evaluation.raters import analysis, draw, prompts, server
from oneforcing_jax.evaluation.raters import votes as module
from oneforcing_jax.evaluation.raters.votes import FILE, Refused, Vote, Votes

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import attack_live  # noqa: E402

MODELS = ("One-Forcing", "Self Forcing", "ASD")
WORDS = [f"{thing} number {n}/{n}" for thing in ("a cat", "a red car") for n in range(3)]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of clips for each model, and a list of prompts of two dimensions."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    for m, model in enumerate(MODELS):
        (folder / model).mkdir()
        for n, words in enumerate(WORDS):
            clip = np.full((6, 48, 64, 3), 30 + 20 * n, np.uint8)
            clip[..., m] = 220
            for t, frame in enumerate(clip):
                frame[8:24, 6 * t : 6 * t + 16] = 255 - frame[0, 0]
            clip += rng.integers(0, 9, clip.shape, np.uint8)
            write_video(
                folder / model / f"{words.replace('/', '_')}-0.mp4", clip, 12, full_chroma=m == 0
            )
    rows = [{"prompt_en": words, "dimension": [words.split(" n")[0], "other"]} for words in WORDS]
    (folder / "prompts.json").write_text(json.dumps([*rows, rows[0]]))
    return folder


def options(models, out, *more, baselines=MODELS[1:]):
    given = [
        "draw",
        f"--prompts={models / 'prompts.json'}",
        f"--out={out}",
        "--count=3",
        "--checks=2",
    ]
    given += [f"--ours={MODELS[0]}={models / MODELS[0]}"]
    return given + [f"--baseline={m}={models / m}" for m in baselines] + list(more)


@pytest.fixture
def study(models, tmp_path):
    command.main(options(models, tmp_path / "study"))
    return tmp_path / "study"


def fails(arguments, capsys):
    """The line with which a command ends."""
    with pytest.raises(SystemExit) as caught:
        command.main([str(x) for x in arguments])
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line and "fault of the program" not in line
    return line


@contextlib.contextmanager
def served(study, *more):
    """The real server in a process of its own; gives its address."""
    words = ["-m", "oneforcing_jax.evaluation.raters", "serve", str(study), "--port=0", *more]
    with (
        (study / "log.txt").open("wb") as log,
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip()
            assert address, (study / "log.txt").read_text()
            yield address
        finally:
            process.terminate()
            assert process.wait(HANG) == 128 + 15


def ask(address, path, body=None, headers=None, method="POST"):
    """Status and answer of a request; a body that is no text or bytes is sent as JSON."""
    host = re.match(r"http://([^/]+)/", address)[1]
    connection = http.client.HTTPConnection(f"127.0.0.1:{host.split(':')[-1]}", timeout=HANG)
    content = body if isinstance(body, (str, bytes)) or body is None else json.dumps(body)
    sent = {"Content-Type": "application/json"} | (headers or {})
    with contextlib.closing(connection):
        connection.request(method, path, content, sent)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_the_draw_is_stratified_and_fixed(models, tmp_path):
    drawn, again, other = [
        draw.make(
            prompts.read(models / "prompts.json"), (MODELS[0], models / MODELS[0]),
            {m: models / m for m in MODELS[1:]}, draw.Settings(4, 3, 2, seed), tmp_path / name,
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]  # fmt: skip
    assert drawn.hash == again.hash != other.hash and draw.read(tmp_path / "a") == drawn
    assert sorted(p.dimension for p in drawn.prompts) == ["a cat"] * 2 + ["a red car"] * 2
    assert len(drawn.pairs) == 4 * 2 + 2 and len(drawn.checks) == 2
    compared = {(p.prompt, p.baseline) for p in drawn.pairs if p.baseline}
    assert compared == {(n, m) for n in range(4) for m in MODELS[1:]}
    # Colour says whose clip it is: ours is red.
    for pair in drawn.pairs:
        if pair.baseline:
            clip, _ = read_video(tmp_path / "a" / "clips" / getattr(pair, pair.ours))
            assert clip.shape[1:3] == (96, 128) and clip[..., 0].mean() > clip[..., 1].mean() + 20
    assert not re.search("|".join(MODELS), " ".join(drawn.clips))
    lines = (tmp_path / "a" / "prompts.txt").read_text().splitlines()
    assert lines == [prompt.words for prompt in drawn.prompts]


def test_sides_are_balanced():
    """Of many pairs about half have ours on the left."""
    rng = np.random.default_rng(0)
    sides = [draw._pair(0, "b", "x", "y", rng).ours for _ in range(1000)]
    assert 440 < sides.count("left") < 560


def test_strata_run_out_evenly():
    listed = [prompts.Prompt(f"{d}{n}", d) for d, most in zip("abc", (1, 4, 9), strict=True)
              for n in range(most)]  # fmt: skip
    chosen = prompts.stratified(listed, 9, np.random.default_rng(3))
    assert [sum(p.dimension == d for p in chosen) for d in "abc"] == [1, 4, 4]
    assert len(set(chosen)) == 9


def test_a_list_of_prompts_may_be_text(tmp_path):
    (tmp_path / "p.txt").write_text("color\ta red cat\n\nscene\ta beach\ncolor\ta red cat\n")
    found = prompts.read(tmp_path / "p.txt")
    assert found == [prompts.Prompt("a red cat", "color"), prompts.Prompt("a beach", "scene")]


def test_bad_draws_are_one_line(models, tmp_path, capsys):
    out = tmp_path / "study"
    for name, text in {
        "a.json": "{", "b.json": '{"a": 1}', "c.json": '[{"prompt": "x"}]', "d.txt": "no dimension",
        "e.json": "[" * 100_000, "f.json": '[{"prompt": "", "dimension": []}]',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
        line = fails(options(models, out, f"--prompts={tmp_path / name}"), capsys)
        assert "expected a JSON list" in line
    assert "lower --count" in fails(options(models, out, "--count=7"), capsys)
    assert "different names" in fails(options(models, out, f"--baseline=ASD={models}"), capsys)
    assert "--checks: expected" in fails(options(models, out, "--checks=-1"), capsys)
    assert not (out / "draw.json").exists()


def test_missing_and_half_written_clips_are_named(models, tmp_path, capsys):
    bad, whole = tmp_path / "bad", models / "ASD"
    bad.mkdir()
    line = fails(options(models, tmp_path / "s", f"--baseline=bad={bad}"), capsys)
    assert "3 are missing" in line and "prompts.txt" in line
    for file in whole.iterdir():
        (bad / file.name).write_bytes(file.read_bytes()[:900])
    line = fails(options(models, tmp_path / "s", f"--baseline=bad={bad}"), capsys)
    assert str(bad) in line and "expected a readable video" in line
    assert not (tmp_path / "s" / "draw.json").exists()


def test_a_draw_is_not_replaced(models, study, capsys):
    before = (study / "draw.json").read_bytes(), (study / "prompts.txt").read_bytes()
    command.main(options(models, study))
    for more in (["--seed=5"], ["--raters=2"]):
        assert "found another; choose another --out" in fails(options(models, study, *more), capsys)
    assert before == ((study / "draw.json").read_bytes(), (study / "prompts.txt").read_bytes())


def test_a_changed_draw_ends_serve_and_analyse(models, study, capsys):
    Votes(study, draw.read(study), create=True)
    text = (study / "draw.json").read_text()
    (study / "draw.json").write_text(text.replace('"ours": "left"', '"ours": "right"', 1))
    for verb in ("serve", "analyse"):
        assert "changed since" in fails([verb, study], capsys)
    # Another draw with a hash of its own does not fit the votes either.
    (study / "draw.json").unlink()
    command.main(options(models, study, "--raters=2"))
    for verb in ("serve", "analyse"):
        assert "found votes on another" in fails([verb, study], capsys)
    (study / "draw.json").write_text(text)
    next((study / "clips").iterdir()).write_bytes(b"half")
    assert "expected the clip as drawn" in fails(["serve", study], capsys)
    assert "expected the folder of a study" in fails(["serve", study.parent], capsys)


def rate(votes, drawn, key, choose):
    """A rater who goes on to the end; gives their pairs."""
    seen = []
    while (turn := votes.turn(key)).pair is not None:
        assert turn.pair == votes.turn(key).pair  # a reload shows the same pair
        with contextlib.suppress(Refused):
            votes.vote(key, turn.pair, choose(turn.pair))
            seen.append(turn.pair)
    return seen


def test_many_raters_at_once_give_each_pair_its_votes(study, capsys, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", HANG)
    drawn = draw.read(study)
    votes = Votes(study, drawn, create=True)

    def person(_):
        mine = Votes(study, drawn)
        key = mine.join()
        return rate(mine, drawn, key, lambda n: drawn.pairs[n].ours)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(person, range(8)))
    found = votes.all()
    real = set(range(len(drawn.pairs))) - drawn.checks
    assert sorted(v.pair for v in found if v.pair in real) == sorted([*real] * 3)
    assert sum(map(len, seen)) == len(found) and all(drawn.checks <= set(mine) for mine in seen)
    assert votes.count() == drawn.needed == 18
    command.main(["analyse", str(study)])
    assert "| Self Forcing | 9 | 0 | 0 | 9 | 100.0% | 100.0% to 100.0% |" in capsys.readouterr().out
    assert json.loads((study / "analysis.json").read_text())["complete"]


def test_a_kill_loses_no_vote(study):
    """What was told to be recorded is there, and others go on."""
    code = f"""
from pathlib import Path
from oneforcing_jax.evaluation.raters import draw
from oneforcing_jax.evaluation.raters.votes import Votes
study = Path({str(study)!r})
drawn = draw.read(study)
votes = Votes(study, drawn, create=True)
key = votes.join()
while (pair := votes.turn(key).pair) is not None:
    votes.vote(key, pair, drawn.pairs[pair].ours)
    print(pair, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        told = [int(process.stdout.readline()) for _ in range(4)]
        process.kill()
    drawn = draw.read(study)
    votes = Votes(study, drawn)
    assert set(told) <= {vote.pair for vote in votes.all()}
    for _ in range(3):
        rate(votes, drawn, votes.join(), lambda n: drawn.pairs[n].ours)
    assert 17 <= votes.count() <= 18  # one pair may be held for the rater who is gone


def test_raters_who_fail_the_checks_do_not_count(study):
    drawn = draw.read(study)
    votes = Votes(study, drawn, create=True)
    wrong = {"left": "right", "right": "left"}
    careless = votes.join()
    rate(votes, drawn, careless, lambda n: wrong[drawn.pairs[n].ours])
    for _ in range(3):
        rate(votes, drawn, votes.join(), lambda n: drawn.pairs[n].ours)
    found = analysis.analyse(drawn, votes.all())
    assert found["complete"] and found["raters"]["1"] == {"wrong_checks": 2, "counts": False}
    for row in found["baselines"].values():
        assert (row["wins"], row["losses"], row["rate"]) == (9, 0, 1.0)
    assert "Left out for attention checks: rater 1." in analysis.page(found)


def test_a_vote_counts_once_and_only_where_it_may(study):
    drawn = draw.read(study)
    votes = Votes(study, drawn, create=True)
    key = votes.join()
    pair = votes.turn(key).pair
    other = next(n for n in range(len(drawn.pairs)) if n != pair)
    for status, given in {
        404: ("nobody", pair, "left"), 409: (key, other, "left"), 400: (key, pair, "both"),
    }.items():  # fmt: skip
        with pytest.raises(Refused) as caught:
            votes.vote(*given)
        assert caught.value.status == status
    votes.vote(key, pair, "left")
    votes.vote(key, pair, "left")
    with pytest.raises(Refused, match="has voted"):
        votes.vote(key, pair, "right")
    assert votes.all() == [Vote(pair, 1, "left")]


def test_a_pair_that_was_left_is_given_to_another(study, monkeypatch):
    drawn = draw.read(study)
    votes = Votes(study, drawn, create=True)

    def right(number):
        return drawn.pairs[number].ours

    away = votes.join()
    while (pair := votes.turn(away).pair) in drawn.checks:
        votes.vote(away, pair, right(pair))
    seen = [pair in rate(votes, drawn, votes.join(), right) for _ in range(3)]
    assert seen == [True, True, False] and votes.count() == 17
    monkeypatch.setattr(module, "HOLD", -1)
    assert pair in rate(votes, drawn, votes.join(), right)
    with pytest.raises(Refused, match="all its votes"):
        votes.vote(away, pair, "left")
    assert votes.turn(away).pair in {None, *drawn.checks} and votes.count() == drawn.needed == 18


def test_bad_databases_are_one_line(study, capsys, monkeypatch):
    drawn, file = draw.read(study), study / FILE
    assert "serve the study first" in fails(["analyse", study], capsys)
    votes = Votes(study, drawn, create=True)
    assert "votes that count" in fails(["analyse", study], capsys)
    rate(votes, drawn, votes.join(), lambda n: "tie")
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "database is locked" in fails(["analyse", study], capsys)
    whole = file.read_bytes()
    for damaged in (
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-4096],
        b"",
        b"no database" * 500,
    ):
        file.write_bytes(damaged)
        for verb in ("serve", "analyse"):
            assert "restore it from a copy" in fails([verb, study], capsys)
        assert file.read_bytes() == damaged
    file.write_bytes(whole)
    assert len(Votes(study, drawn).all()) == len(drawn.pairs)


def test_table_2_of_the_papers_counts(study):
    """130 of 147 decided votes and 139 of 150 are 88.4% and 92.7%."""
    rng = np.random.default_rng(0)
    for wins, losses, ties, rate_ in ((130, 17, 3, 0.884), (139, 11, 0, 0.927)):
        said = rng.permutation(np.repeat(range(3), (wins, losses, ties))).reshape(50, 3)
        row = analysis._baseline(said)
        assert (row["wins"], row["decided"], row["ties"]) == (wins, wins + losses, ties)
        assert abs(row["rate"] - rate_) < 5e-4 and 0.8 < row["low"] < row["rate"] < row["high"] < 1


def test_the_interval_knows_prompts_and_raters():
    """It is as wide as prompts or raters alone make it, and has no width where all are alike."""
    rng = np.random.default_rng(0)
    by_prompt = np.repeat(rng.integers(0, 2, (100, 1)), 3, 1)
    low, high = analysis.interval(by_prompt)
    half = 1.96 * np.sqrt(0.25 / 100)  # three equal votes are one
    assert abs((high - low) / 2 - half) < 0.015
    by_rater = np.repeat(np.array([[0, 0, 0, 0, 1, 1, 1, 1]]), 50, 0)
    low, high = analysis.interval(by_rater)
    assert abs((high - low) / 2 - 1.96 * np.sqrt(0.25 / 8)) < 0.06
    assert analysis.interval(np.zeros((5, 3), int)) == (1.0, 1.0)


def test_agreement_is_krippendorffs():
    said = np.array([[0, 0, 0], [1, 1, 0], [2, -1, 2], [0, -1, -1], [1, 0, 1]])
    found = analysis.agreement(said)
    rows = np.where(said < 0, np.nan, said).T
    expected = krippendorff.alpha(reliability_data=rows, level_of_measurement="nominal")
    assert abs(found["alpha"] - expected) < 1e-12
    assert abs(found["equal"] - (3 + 1 + 1 + 1) / (3 + 3 + 1 + 3)) < 1e-12
    assert analysis.agreement(np.zeros((4, 3), int)) == {"alpha": None, "equal": 1.0}
    assert analysis.agreement(np.array([[0], [1]])) == {"alpha": None, "equal": None}


@pytest.fixture(scope="module")
def open_study(models, tmp_path_factory):
    """A study that is served, and its address."""
    study = tmp_path_factory.mktemp("open") / "study"
    command.main(options(models, study))
    with served(study) as address:
        yield study, address


def test_the_server_answers_bad_requests_with_a_status(open_study):
    study, address = open_study
    drawn = draw.read(study)
    status, said = ask(address, "/api/join", {})
    rater = json.loads(said)["rater"]
    pair = json.loads(ask(address, "/api/turn", {"rater": rater})[1])["pair"]
    vote = {"rater": rater, "pair": pair, "choice": "left"}
    bad = [
        (400, "{"), (400, "[]"), (400, b"\xff\xfe"), (400, ""), (400, "[" * 4000), (413, "x" * 5000),
        (404, vote | {"rater": "nobody"}), (404, vote | {"rater": ["x"]}),
        (404, vote | {"rater": "\ud800"}), (404, vote | {"pair": 99}), (404, vote | {"pair": -1}),
        (404, vote | {"pair": True}), (404, vote | {"pair": "0"}), (404, vote | {"pair": 10**30}),
        (400, vote | {"choice": "up"}), (400, vote | {"choice": ["left"]}), (404, {}),
        (409, vote | {"pair": (pair + 1) % len(drawn.pairs)}),
    ]  # fmt: skip
    for expected, body in bad:
        found, said = ask(address, "/api/vote", body)
        assert found == expected and isinstance(json.loads(said)["error"], str), (
            body,
            found,
            said,
        )
    assert ask(address, "/api/vote", vote, {"Content-Type": "text/plain"})[0] == 415
    assert ask(address, "/", method="GET", headers={"Host": "evil.example"})[0] == 400
    for path in (
        "/clips/99/left",
        "/clips/0/up",
        "/clips/0/..%2fdraw.json",
        "/draw.json",
        "/votes.db",
    ):
        assert ask(address, path, method="GET")[0] == 404
    # A locked database is told, and the vote can be sent again.
    with contextlib.closing(sqlite3.connect(study / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, said = ask(address, "/api/vote", vote)
        assert status == 503 and "locked" in json.loads(said)["error"]
    assert [ask(address, "/api/vote", vote)[0] for _ in range(2)] == [200, 200]
    assert ask(address, "/api/vote", vote | {"choice": "tie"})[0] == 409
    assert [(v.pair, v.choice) for v in Votes(study, drawn).all()] == [(pair, "left")]


def test_nothing_that_is_sent_names_a_model(open_study):
    study, address = open_study
    rater = json.loads(ask(address, "/api/join", {})[1])["rater"]
    sent = [ask(address, path, method="GET")[1] for path in
            ("/", "/raters.js", "/clips/0/left", "/clips/0/right", "/clips/1/left")]  # fmt: skip
    sent.append(ask(address, "/api/turn", {"rater": rater})[1])
    whole = b"".join(sent).lower()
    for name in (*MODELS, "baseline", "ours", next(iter(draw.read(study).clips))):
        assert name.lower().encode() not in whole, name


def test_other_addresses_need_the_token(study, capsys):
    with served(study, "--host=0.0.0.0") as address:
        token = re.search(r"\?token=(.+)", address)[1]
        for path, method in (("/", "GET"), ("/clips/0/left", "GET"), ("/api/join", "POST")):
            assert ask(address, path, "{}", method=method)[0] == 403
            assert ask(address, f"{path}?token=wrong", "{}", method=method)[0] == 403
            assert ask(address, f"{path}?token={token}", "{}", method=method)[0] in (200, 201)
        port = re.search(r":(\d+)/", address)[1]
        line = fails(["serve", study, f"--port={port}", "--host=0.0.0.0"], capsys)
        assert "choose another --host or --port" in line
    assert server._token(study) == token  # links stay good


def test_the_token_is_never_open_to_others(tmp_path, monkeypatch):
    """Its file is closed before it has content; and no file that was emptied lets everybody in."""
    modes, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (modes.append(os.fstat(n).st_mode & 0o777), sync(n)))
    before = os.umask(0)
    try:
        token = server._token(tmp_path)
    finally:
        os.umask(before)
    file = tmp_path / "token"
    assert modes == [0o600] and file.stat().st_mode & 0o777 == 0o600
    file.write_text(f"{token}\n")
    assert server._token(tmp_path) == token
    for content, words in (
        (b"", "8 characters or more, found 0"),
        (b"\xff" * 9, "expected UTF-8 text"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            server._token(tmp_path)


def test_what_is_no_request_is_a_line(open_study):
    study, address = open_study
    host = re.match(r"http://([^/]+)/", address)[1]
    for content in attack_live.said(host):
        content = content.replace(b"/videos", b"/api/vote").replace(b"/health", b"/raters.js")
        with socket.create_connection(host.split(":"), HANG) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    answer += part
        assert not re.search(rb"HTTP/1.1 5", answer), content[:200]
    said = (study / "log.txt").read_text()
    assert "a request ended before its body was whole" in said and "Traceback" not in said


def test_missing_study_is_named(tmp_path):
    with pytest.raises(MissingInput, match="begin with draw"):
        draw.read(tmp_path)
    (tmp_path / "draw.json").write_text("{}")
    with pytest.raises(InputError, match="other fields"):
        draw.read(tmp_path)


@pytest.mark.browser
def test_two_raters_vote_at_once_and_one_reloads(models, tmp_path):
    """Each with a browser of their own; one by keys, one by touch on a phone."""
    study = tmp_path / "study"
    command.main(options(models, study, "--raters=2"))
    drawn = draw.read(study)
    ready = "document.querySelector('[data-choice]').getAttribute('aria-disabled') === 'false'"

    def wait(page, done):
        shown = f"!document.querySelector('#rate').hidden && document.querySelector('#bar').value === {done}"
        until(page, f"{shown} && {ready}")

    with (
        served(study) as address, chromium() as browser, page_of(browser) as wide,
        page_of(browser, NARROW, has_touch=True, is_mobile=True) as narrow,
    ):  # fmt: skip
        for page in (wide, narrow):
            page.goto(address)
        until(wide, "!document.querySelector('#start').hidden")
        assert_accessible(wide)
        wide.keyboard.press("Tab")
        wide.keyboard.press("Enter")
        narrow.tap("#begin")
        for done in range(len(drawn.pairs)):
            wait(wide, done)
            wait(narrow, done)
            if done == 3:
                before = wide.inner_text("#words"), wide.get_attribute("#left", "src")
                assert wide.evaluate("!document.querySelector('#left').paused")
                for name, page in (("wide", wide), ("narrow", narrow)):
                    page.screenshot(path=tmp_path / f"raters_{name}.png", full_page=True)
                    assert_accessible(page)
                wide.reload()
                wait(wide, done)
                assert before == (wide.inner_text("#words"), wide.get_attribute("#left", "src"))
                with page_of(browser) as elsewhere:
                    elsewhere.goto(urljoin(address, wide.get_attribute("#link", "href")))
                    wait(elsewhere, done)
                    assert before[1] == elsewhere.get_attribute("#left", "src")
            wide.keyboard.press("ArrowRight" if done % 2 else "ArrowDown")
            narrow.tap("[data-choice=left]")
        for page in (wide, narrow):
            page.wait_for_selector("#done:not([hidden])")
            assert page.inner_text("#made") == str(len(drawn.pairs))
            assert_accessible(page)
    found = Votes(study, drawn).all()
    assert [(v.pair, v.rater) for v in found] == [
        (n, r) for n in range(len(drawn.pairs)) for r in (1, 2)
    ]
    choices = {v.rater: [w.choice for w in found if w.rater == v.rater] for v in found}
    assert sorted(map(sorted, choices.values())) == [["left"] * 8, ["right"] * 4 + ["tie"] * 4]


@pytest.mark.browser
def test_the_page_keeps_a_choice_that_did_not_arrive(study, tmp_path):
    """A clip that does not load and a server that is away are told; "Try again" goes on. With a token."""
    with chromium() as browser, page_of(browser) as page:
        with served(study, "--host=0.0.0.0") as address:
            page.route("**/clips/*/right", lambda route: route.abort())
            page.goto(re.sub(r"//[^:]+", "//127.0.0.1", address))
            page.click("#begin")
            page.wait_for_selector("#again:not([hidden])")
            assert "The right video could not be loaded" in page.inner_text("#status")
            assert_accessible(page)
            assert page.get_attribute("[data-choice=left]", "aria-disabled") == "true"
            page.unroute("**/clips/*/right")
            page.click("#again")
            page.wait_for_selector("[data-choice=left][aria-disabled=false]")
        page.click("[data-choice=left]")
        page.wait_for_selector("#again:not([hidden])")
        assert "not kept yet" in page.inner_text("#status")
        port = re.search(r":(\d+)/", address)[1]
        with served(study, f"--port={port}", "--host=0.0.0.0"):
            page.click("#again")
            until(page, "document.querySelector('#bar').value === 1")
    assert [vote.choice for vote in Votes(study, draw.read(study)).all()] == ["left"]
