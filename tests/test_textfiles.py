"""Text that people wrote: lines, encodings, and names of files in it."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from oneforcing_jax.data.captions import VIDEO_SUFFIXES, pair, read_captions
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.chat import instruction_of
from oneforcing_jax.evaluation.raters import draw
from oneforcing_jax.evaluation.raters import prompts as raters
from oneforcing_jax.evaluation.rewrite import Cache
from oneforcing_jax.evaluation.vbench import check, suite
from oneforcing_jax.generation.jobs import file_name, read_prompts
from oneforcing_jax.system import textfiles
from oneforcing_jax.toy.text import TextEncoder

# What `str.splitlines` takes for ends of lines and an editor does not.
INNER = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
ENDS = ("\n", "\r\n", "\r")
ENCODINGS = ("utf-8", "utf-8-sig")
WRONG = {"utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-32": "UTF-32", "latin-1": "0xe9 in line 2"}


def _write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("inner", INNER, ids=ascii)
@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_prompts_end_where_lines_do(tmp_path, inner, end):
    words = f"a red{inner}square"
    for last in ("", end):
        txt = _write(tmp_path / "p.txt", f"{words}{end}a disc{last}")
        assert [p.words for p in read_prompts(txt)] == [words, "a disc"]
    rows = [{"prompt": words}, {"prompt": "a disc", "seed": 3}]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = read_prompts(_write(tmp_path / "p.jsonl", text))
    # JSON allows no control characters within texts unless they are escaped.
    assert [(p.words, p.seed) for p in found] == [(words, None), ("a disc", 3)]
    assert inner not in file_name(words)
    tabbed = _write(tmp_path / "r.txt", f"color\t{words}{end}color\ta disc")
    assert [p.words for p in raters.read(tabbed)] == [words, "a disc"]
    captions = [{"video": "1.mp4", "caption": words}, {"video": "2.mp4", "caption": "a disc"}]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in captions)
    assert read_captions(_write(tmp_path / "c.jsonl", text))["1.mp4"] == words
    table = _write(tmp_path / "c.csv", f"video,caption{end}1.mp4,{words}{end}2.mp4,a disc")
    assert read_captions(table) == {"1.mp4": words, "2.mp4": "a disc"}


def _readers(folder):
    """Every file of users' text: its content, and a reader that gives what "é" became."""
    info = [{"prompt_en": "é", "dimension": ["color"]}]
    caption = {"video": "1.mp4", "caption": "é"}
    return {
        "p.txt": ("x\né", lambda f: read_prompts(f)[1].words),
        "p.jsonl": ('{"prompt": "x"}\n{"prompt": "é"}', lambda f: read_prompts(f)[1].words),
        "r.txt": ("color\tx\ncolor\té", lambda f: raters.read(f)[1].words),
        "r.json": ('[\n{"prompt": "é", "dimension": "color"}]', lambda f: raters.read(f)[0].words),
        "v.json": ("\n" + json.dumps(info, ensure_ascii=False), lambda f: suite.read(f).lines[0]),
        "i.txt": ("\né", instruction_of),
        "i.py": ('\nLM_EN_SYS_PROMPT = "é"', lambda f: instruction_of(f)),
        "c.jsonl": (
            "\n" + json.dumps(caption, ensure_ascii=False),
            lambda f: read_captions(f)["1.mp4"],
        ),
        "c.csv": ("video,caption\n1.mp4,é", lambda f: read_captions(f)["1.mp4"]),
    }


@pytest.mark.parametrize("name", _readers(None))
def test_one_reading_of_every_text(tmp_path, name):
    text, read = _readers(tmp_path)[name]
    for encoding in ENCODINGS:
        assert read(_write(tmp_path / name, text, encoding)) == "é"
    for encoding, found in WRONG.items():
        with pytest.raises(InputError, match=f"expected UTF-8 text, found .*{found}") as caught:
            read(_write(tmp_path / name, text, encoding))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_were_joined_have_marks_within(tmp_path):
    whole = "a disc\n".encode("utf-8-sig") * 2
    (tmp_path / "p.txt").write_bytes(whole)
    assert [p.words for p in read_prompts(tmp_path / "p.txt")] == ["a disc"] * 2


def test_a_cut_cache_is_asked_again(tmp_path):
    rows = [{"key": "k", "prompt": p, "answer": f"a {p}"} for p in ("x", "y\u2028z", "é")]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "c").write_bytes(text.encode()[:-4])
    assert Cache(tmp_path / "c", "k").answers == {"x": "a x", "y\u2028z": "a y\u2028z"}


def test_a_prompt_of_the_study_is_one_line(tmp_path):
    rows = [{"prompt": "a red\nsquare", "dimension": "color"}]
    with pytest.raises(InputError, match="in one line"):
        raters.read(_write(tmp_path / "p.json", json.dumps(rows)))


def test_the_toy_names_the_unknown_word():
    encoder = TextEncoder.train(["a red square"])
    with pytest.raises(InputError, match="found 'blue.*x1c'"):
        encoder.encode("a\u2028red blue\x1c square")


def _forms(name):
    return [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]


@pytest.mark.parametrize("name", ["café", "ガ", "Å", "각"])
def test_names_are_found_in_either_form(tmp_path, name):
    composed, parts = _forms(name)
    for spelt, written in ((composed, parts), (parts, composed), (parts, parts)):
        folder = tmp_path / f"{ascii(spelt)}-{ascii(written)}".replace("\\", "")
        (folder / spelt).mkdir(parents=True)
        for video in (f"{spelt}-0.mp4", f"{spelt}/{spelt}.mp4"):
            (folder / video).write_bytes(b"x")
        rows = [{"video": f"{written}-0.mp4", "caption": "one"}]
        rows += [{"video": f"{written}/{written}.mp4", "caption": "two"}]
        captions = _write(folder / "c.jsonl", "\n".join(map(json.dumps, rows)))
        found = {p.name: (p.video, p.caption) for p in pair(folder, captions)}
        assert found == {
            f"{spelt}-0.mp4": (folder / f"{spelt}-0.mp4", "one"),
            f"{spelt}/{spelt}.mp4": (folder / f"{spelt}/{spelt}.mp4", "two"),
        }
        assert draw.find(folder, raters.Prompt(written, "color")) == folder / f"{spelt}-0.mp4"
    assert file_name(parts) == file_name(composed) == composed
    assert check.respelt([f"{composed}-0.mp4"], {f"{parts}-0.mp4"}) == {
        f"{composed}-0.mp4": f"{parts}-0.mp4"
    }
    (folder / f"{composed}-0.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match="two Unicode forms"):
        pair(folder, captions)


def test_captions_name_videos_in_the_ways_that_people_do(tmp_path, monkeypatch):
    names = [f"{i}{suffix}" for i, suffix in enumerate(VIDEO_SUFFIXES)]
    names += [name.upper() for name in names[:3]] + ["x/a.mp4", "x/y/a.mp4"]
    videos = tmp_path / "videos"
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    said = [f"./{names[0]}", f"{videos}/{names[1]}", f"{videos}/x/a.mp4", "x//y/./a.mp4"]
    said += [name for name in names if name not in (*names[:2], "x/a.mp4", "x/y/a.mp4")]
    text = "".join(json.dumps({"video": name, "caption": name}) + "\n" for name in said)
    captions = _write(tmp_path / "c.jsonl", text)
    monkeypatch.chdir(tmp_path)
    for folder in (videos, Path("videos"), Path("videos/../videos")):
        found = pair(folder, captions)
        assert sorted(p.name for p in found) == sorted(names)
        assert all(
            p.video and p.caption and os.path.samefile(p.video, videos / p.name) for p in found
        )


REASONS = {
    "e.gif": r"expected a video \(.*found \.gif; convert it",
    "B.MP4": r"found 'b\.mp4' in another case; write that name",
    "b.webm": r"found 'b\.mp4' with another suffix",
    "b": r"found 'b\.mp4' with another suffix",
    "c.mp4": r"found 'x/c\.mp4' in another folder",
    "y/b.mp4": r"found 'b\.mp4' in another folder",
    "x\\c.mp4": r"found 'x/c\.mp4' in another case|found 'x/c\.mp4'",
    "/elsewhere/b.mp4": r"found 'b\.mp4' in another folder",
    "/elsewhere/none.mp4": "found one that leaves it",
    "../none.mp4": "found one that leaves it",
    "s3://bucket/none.mp4": "found one that leaves it",
    ".a.mp4": "without a dot before it",
    "none.mp4": "found only its caption; add the file",
    "notes.mp4": "found only its caption; add the file",
    "n" * 300 + "/a.mp4": "in another folder|found only its caption",
    "\0/b.mp4": "in another folder",
}


@pytest.mark.parametrize("name", REASONS, ids=lambda name: ascii(name)[:20])
def test_why_a_caption_has_no_video(tmp_path, name):
    for file in ("a.mp4", "b.mp4", ".a.mp4", "x/c.mp4", "e.gif", "notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    captions = _write(tmp_path / "c.jsonl", json.dumps({"video": name, "caption": "x"}))
    (found,) = (p for p in pair(tmp_path, captions) if p.video is None)
    assert found.caption == "x"
    with pytest.raises(InputError, match=REASONS[name]):
        raise InputError(found.reason)


@pytest.mark.parametrize("twice", [("a.mp4", "./a.mp4"), _forms("é.mp4"), ("x/a.mp4", "x//a.mp4")])
def test_a_video_has_one_caption(tmp_path, twice):
    rows = (json.dumps({"video": name, "caption": "x"}) for name in twice)
    captions = _write(tmp_path / "c.jsonl", "\n".join(rows))
    with pytest.raises(InputError, match=":2: expected each video once"):
        read_captions(captions)


def test_a_folder_without_videos_says_what_is_there(tmp_path):
    captions = _write(tmp_path / "c.jsonl", '{"video": "a.mp4", "caption": "x"}')
    with pytest.raises(InputError, match=r"expected videos .*found none among c\.jsonl;"):
        pair(tmp_path, captions)


def test_lines_are_those_of_an_editor():
    assert textfiles.lines("") == []
    assert textfiles.lines("\n") == [""]
    assert textfiles.lines("a\n\nb\r\rc\r\n") == ["a", "", "b", "", "c"]
