"""Videos that are watched without a browser: the session in one process, terminals, and the command."""

import base64
import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from live import OPTIONS, make_weights
from PIL import Image
from waits import HANG

from oneforcing_jax import generate
from oneforcing_jax.data.video import read_video
from oneforcing_jax.live import display
from oneforcing_jax.live.session import DONE, ENDED, Session
from oneforcing_jax.live.studio import Wish
from oneforcing_jax.live.watching import Given, played, shown

FPS = 50.0


def picture(number=0):
    """A frame with an edge, and a colour that tells its number."""
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:, 16:] = (250, 40, 10 * (number % 25))
    return frame


def made(count, log=()):
    for number in range(count):
        yield picture(number)[None]
    list(log)


class Seen:
    """A display that keeps what it is shown."""

    def __init__(self, most=1000):
        self.frames, self.times, self.most, self.rests = [], [], most, 0

    def show(self, frame):
        self.frames.append(frame)
        self.times.append(time.monotonic())
        return len(self.frames) < self.most

    def rest(self):
        self.rests += 1


def test_frames_are_shown_at_their_times():
    seen, begun = Seen(), time.monotonic()
    shown(made(24), FPS / 2, seen)
    numbers = [int(frame[0, -1, 2].round(-1)) // 10 for frame in seen.frames]
    # A busy machine may come late for a frame; none is shown early or twice, and the last one is.
    assert numbers == sorted(set(numbers)) and numbers[-1] == 23 and len(numbers) > 1
    assert all(t - begun >= n / (FPS / 2) for n, t in zip(numbers, seen.times, strict=True))
    assert seen.rests == 1


def test_nobody_looks_any_more_and_all_is_made():
    left = made(12)
    shown(left, FPS, Seen(most=2))
    assert next(left, None) is None


def test_what_goes_wrong_in_the_making_is_raised():
    def broken():
        yield picture()[None]
        raise ValueError("no picture")

    seen = Seen()
    with pytest.raises(ValueError, match="no picture"):
        shown(broken(), FPS, seen)
    assert len(seen.frames) == 1 and seen.rests == 1


def test_a_session_is_controlled_while_it_is_watched():
    """A pause holds the picture; a stop in a pause ends the watching."""
    session = Session(Wish("", frames=1000), 60.0)
    frames = played(session, Given(FPS, made(1000)))
    for _ in range(3):
        last = next(frames)
    session.pause()
    threading.Timer(0.3, session.stop).start()
    assert [f.number - last.number for f in frames] in ([], [1])
    assert session.state == ENDED and session.reason != DONE


# What terminals are told.


def test_pictures_of_kitty_and_iterm():
    frame = picture()
    parts = re.findall("\x1b_G(.*?);(.*?)\x1b\\\\", display.kitty(frame, 8, 3))
    heads = [dict(pair.split("=") for pair in head.split(",")) for head, _ in parts]
    assert [head["m"] for head in heads] == ["1"] * (len(parts) - 1) + ["0"]
    assert heads[0] | {"m": ""} == {
        "a": "T", "f": "24", "o": "z", "s": "32", "v": "24", "c": "8", "r": "3", "i": "1", "p": "1",
        "q": "2", "C": "1", "m": "",
    }  # fmt: skip
    content = zlib.decompress(base64.b64decode("".join(part for _, part in parts)))
    np.testing.assert_array_equal(np.frombuffer(content, np.uint8).reshape(frame.shape), frame)

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(re.findall("\x1b_G", display.kitty(noise, 8, 3))) == 5

    said = display.iterm(frame, 8, 3)
    head, content = said.removeprefix("\x1b]1337;File=inline=1;").removesuffix("\a").split(":")
    file = base64.b64decode(content)
    assert head == f"size={len(file)};width=8;height=3;preserveAspectRatio=0"
    assert np.abs(np.asarray(Image.open(io.BytesIO(file)), int) - frame).mean() < 2


def drawn(said):
    """The picture that sixels draw, in percent."""
    body = said.removeprefix('\x1bPq"1;1;').removesuffix("\x1b\\")
    size, body = re.match(r"([\d;]+)(.*)", body, re.DOTALL).groups()
    width, height = map(int, size.split(";"))
    colours, image, (x, y), colour = {}, np.full((height + 6, width, 3), -1), (0, 0), None
    for token in re.findall(
        r"#\d+(?:;2;\d+;\d+;\d+)?|!\d+[?-~]|[?-~]|\$|-",
        body.split("#", 1)[0][:0] + "#" + body.split("#", 1)[1],
    ):
        if token[0] == "#":
            number, *rgb = token[1:].split(";2;")
            colour = int(number)
            if rgb:
                colours[colour] = [int(c) for c in rgb[0].split(";")]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count, bits = (int(token[1:-1]) if token[0] == "!" else 1), ord(token[-1]) - 63
            for row in range(6):
                if bits >> row & 1:
                    image[y + row, x : x + count] = colours[colour]
            x += count
    assert (image[height:] == -1).all()
    return image[:height]


def test_sixels_draw_the_picture(monkeypatch):
    monkeypatch.setattr(display, "_cell", lambda: (8, 17))
    frame = picture()
    found = drawn(display.sixel(frame, 8, 3))
    expected = np.asarray(Image.fromarray(frame).resize((64, 51), Image.Resampling.NEAREST))
    assert found.shape == (51, 64, 3) and np.abs(found * 2.55 - expected).max() < 4


@pytest.mark.skipif(not shutil.which("sixel2png"), reason="libsixel-bin is not installed")
def test_another_program_reads_the_sixels(monkeypatch, tmp_path):
    monkeypatch.setattr(display, "_cell", lambda: (8, 17))
    (tmp_path / "a.six").write_text(display.sixel(picture(), 8, 3))
    subprocess.run(["sixel2png", "-i", tmp_path / "a.six", "-o", tmp_path / "a.png"], check=True)
    found = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), int)
    expected = np.asarray(Image.fromarray(picture()).resize((64, 51), Image.Resampling.NEAREST))
    assert np.abs(found[:51] - expected).max() < 4


def test_half_blocks_are_two_pixels_each():
    said = display.blocks(picture(), 4, 2)
    cells = re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", said)
    colours = np.array(cells, int).reshape(2, 4, 2, 3)
    assert (colours[:, 3:] == (250, 40, 0)).all() and not colours[:, :1].any()


def test_a_display_is_chosen_by_what_is_there(monkeypatch):
    for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "_draws_sixels", lambda out: False)
    master, slave = pty.openpty()
    with os.fdopen(master, "rb"), os.fdopen(slave, "w") as terminal:
        assert display._found(terminal) == "blocks"
        for name, value, kind in (
            ("DISPLAY", ":0", "window"), ("LC_TERMINAL", "iTerm2", "iterm"), ("TERM", "xterm-kitty", "kitty"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
            assert display._found(terminal) == kind
    with pytest.raises(
        ValueError, match="--watch=sixel: expected a terminal, found a file or a pipe"
    ):
        display.make("sixel")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params):
    return make_weights(tmp_path_factory.mktemp("watch"), random_params)


def test_the_notebook_of_the_docs(weights, tmp_path):
    """Its cells in order, on a tiny model: the prompt is switched, and the file holds all frames."""
    cells = json.loads((Path(__file__).parents[1] / "docs" / "live.ipynb").read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for before, after in {
        '"../runs/toy/one_forcing"': repr(str(weights)),
        '"a circle moving left", "a square moving up"': '"a red square", "a blue circle"',
        "FRAMES = 96": "FRAMES = 64",
        "streaming.pretrained.find(CHECKPOINT).frames": "3",
        "model.settings()": "model.settings(6, (24, 32))",
    }.items():
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    ran = {}
    exec(source, ran)
    one, two = ran["session"].snapshot()["marks"]
    assert (one["prompt"], two["prompt"]) == ("a red square", "a blue circle")
    assert 32 < two["frame"] < 64 and ran["session"].reason == DONE
    (tmp_path / "video.mp4").write_bytes(ran["file"])
    assert len(read_video(tmp_path / "video.mp4")[0]) == 64


def test_the_command_shows_what_it_writes(weights, tmp_path, monkeypatch):
    """In a terminal (a pseudo one): pictures on it, the whole video in the file."""
    words = ["--watch=kitty", "--prompt=a red square", f"--out={tmp_path / 'a.mp4'}"]
    master, slave = pty.openpty()
    said = b""

    def read():
        nonlocal said
        with contextlib.suppress(OSError):  # the other side is closed
            while True:
                said += os.read(master, 65536)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        generate.main([f"--checkpoint={weights}", *OPTIONS, *words])
    reader.join(HANG)
    os.close(master)
    assert 1 <= said.count(b"a=T,f=24") <= 6 and b"video made: " in said.split(b"\x1b\\")[-1]
    assert len(read_video(tmp_path / "a.mp4")[0]) == 6
