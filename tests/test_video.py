"""Video and caption files: what comes back, and every bad input as one clear line."""

import re
import wave

import numpy as np
import pytest

from oneforcing_jax.data.captions import pair, read_captions
from oneforcing_jax.data.clips import read_clip
from oneforcing_jax.data.video import (
    Clip,
    VideoWriter,
    read_video,
    write_video,
)


def moving_square(frames: int = 6, rows: int = 32, columns: int = 48) -> np.ndarray:
    video = np.zeros((frames, rows, columns, 3), np.uint8)
    for frame in range(frames):
        video[frame, 8:20, 4 + 4 * frame : 16 + 4 * frame] = (230, 40, 60)
    return video


def mean_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("full_chroma", [False, True])
def test_round_trip_keeps_frames_and_rate(tmp_path, full_chroma):
    video = moving_square()
    write_video(tmp_path / "a.mp4", video, 12.5, crf=4, full_chroma=full_chroma)
    back, times = read_video(tmp_path / "a.mp4")
    assert back.dtype == np.uint8 and back.shape == video.shape
    assert times.rate == 12.5 and times.end == pytest.approx(len(video) / 12.5)
    assert mean_error(back, video) < 1.5


def test_full_chroma_keeps_colour_at_odd_sizes(tmp_path):
    video = moving_square(rows=31, columns=45)
    write_video(tmp_path / "a.mp4", video, 8, crf=0, full_chroma=True)
    assert mean_error(read_video(tmp_path / "a.mp4")[0], video) < 0.5


def test_equal_frames_give_equal_bytes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), np.uint8)
    for i in range(20):
        write_video(tmp_path / f"{i}.mp4", frames, 16.0)
    assert len({(tmp_path / f"{i}.mp4").read_bytes() for i in range(20)}) == 1


def test_streaming_equals_one_write(tmp_path):
    video = moving_square()
    write_video(tmp_path / "one.mp4", video, 8)
    with VideoWriter(tmp_path / "many.mp4", 8) as writer:
        for part in (video[:1], video[1:1], video[1:]):
            writer.write(part)
    np.testing.assert_array_equal(
        read_video(tmp_path / "one.mp4")[0], read_video(tmp_path / "many.mp4")[0]
    )


def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    video = moving_square()
    write_video(tmp_path / "a.mp4", video, 8)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.write(video[:2])
        raise KeyboardInterrupt
    writer = VideoWriter(tmp_path / "a.mp4", 8)
    with pytest.raises(ValueError, match="frames of 32x48 as before, found 16x16"), writer:
        writer.write(video)
        writer.write(video[:, :16, :16])
    with pytest.raises(ValueError, match="expected frames, found none"):
        write_video(tmp_path / "a.mp4", video[:0], 8)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("frames", "fps", "crf", "message"),
    [
        (np.zeros((2, 15, 16, 3), np.uint8), 8, 18, "even sizes for yuv420p, found 15x16"),
        (np.zeros((2, 16, 16, 3), np.float32), 8, 18, r"found float32 \[2, 16, 16, 3\]"),
        (np.zeros((2, 16, 16), np.uint8), 8, 18, r"expected frames uint8 \[f, y, x, 3\]"),
        (np.zeros((2, 16, 16, 3), np.uint8), 0, 18, "frames per second, found 0"),
        (np.zeros((2, 16, 16, 3), np.uint8), 8, 52, "crf in 0..51, found 52"),
    ],
)
def test_bad_frames_are_one_line(tmp_path, frames, fps, crf, message):
    with pytest.raises(ValueError, match=message) as caught:
        write_video(tmp_path / "a.mp4", frames, fps, crf=crf)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_targets_are_one_line(tmp_path):
    for target in (tmp_path / "absent" / "a.mp4", tmp_path):
        with pytest.raises(ValueError, match=f"cannot write {re.escape(str(target))}") as caught:
            write_video(target, moving_square(), 8)
        assert "\n" not in str(caught.value)


def test_unreadable_videos_are_one_line_that_names_the_file(tmp_path):
    write_video(tmp_path / "whole.mp4", moving_square(), 8)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    reasons = {
        "cut.mp4": "readable video",
        "empty.mp4": "zero bytes",
        "text.mp4": "readable video",
        "sound.mp4": "no video stream",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_video(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent.mp4"):
        read_video(tmp_path / "absent.mp4")


def test_captions_of_both_formats(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"video": "1.mp4", "caption": " a, b "}\n\n{"video": "2.mp4", "caption": "c"}\n'
    )
    (tmp_path / "a.csv").write_text('\ufeffvideo,caption\n1.mp4,"a, b"\n2.mp4,c\n')
    for name in ("a.jsonl", "a.csv"):
        assert read_captions(tmp_path / name) == {"1.mp4": "a, b", "2.mp4": "c"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"video": "1.mp4", "caption": "a"}\n{"video": "2.mp4"}\n', r":2: .*'caption'"),
        ("a.jsonl", '{"video": "1.mp4", "caption": "  "}\n', ":1: .*empty"),
        ("a.jsonl", '{"video": "1.mp4", "caption": 3}\n', ":1: .*int 3"),
        ("a.jsonl", '{"video": "1.mp4", "cap\n', ":1: .*bad JSON"),
        ("a.jsonl", '["1.mp4", "a"]\n', ":1: .*object, found list"),
        (
            "a.jsonl",
            '{"video": "1", "caption": "a"}\n{"video": "1", "caption": "b"}\n',
            ":2: .*once",
        ),
        ("a.jsonl", "\n", "found none"),
        ("a.csv", "file,caption\n1.mp4,a\n", ":1: .*header video,caption"),
        ("a.csv", "video,caption\n1.mp4,a\n2.mp4,\n", ":3: .*empty"),
        ("a.csv", "video,caption\n1.mp4\n", ":2: .*'caption', found none"),
        ("a.csv", "video,caption\n1.mp4,a, b\n", ":2: .*double quotes"),
        ("a.txt", "1.mp4 a\n", r"\.jsonl or \.csv, found '\.txt'"),
    ],
)
def test_bad_captions_are_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_captions(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_pairs_hold_every_name(tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("video,caption\nb.mp4,second\na.mp4,first\nd.mp4,last\n")
    for name in ("a.mp4", "b.mp4", "c.MOV", ".e.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [found[:3] for found in pair(tmp_path, captions)] == [
        ("a.mp4", tmp_path / "a.mp4", "first"),
        ("b.mp4", tmp_path / "b.mp4", "second"),
        ("c.MOV", tmp_path / "c.MOV", None),
        ("d.mp4", None, "last"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected videos .*, found none"):
        pair(tmp_path / "empty", captions)
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        pair(tmp_path / "absent", captions)
    with pytest.raises(FileNotFoundError, match="no caption file"):
        pair(tmp_path, tmp_path / "absent.csv")


def numbered(path, count: int, fps: float, rows: int = 24, columns: int = 40) -> None:
    """A video whose frame k is grey of level 8 k."""
    levels = (8 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    write_video(path, np.broadcast_to(levels, (count, rows, columns, 3)), fps, crf=0)


@pytest.mark.parametrize(
    ("fps", "wanted", "expected"),
    [
        (16, 16, [0, 1, 2, 3, 4]),
        (8, 16, [0, 0, 1, 1, 2]),
        (24, 16, [0, 1, 3, 4, 6]),
        (30, 10, [0, 3, 6, 9, 12]),
        (30000 / 1001, 16, [0, 1, 3, 5, 7]),
    ],
)
def test_clips_show_what_a_player_shows(tmp_path, fps, wanted, expected):
    numbered(tmp_path / "v.mp4", 16, fps)
    clip = read_clip(tmp_path / "v.mp4", Clip(5, 24, 40, wanted))
    assert clip.shape == (5, 24, 40, 3)
    np.testing.assert_allclose(clip.mean((1, 2, 3)) / 8, expected, atol=0.2)


def test_clips_are_covered_and_cut_in_the_middle(tmp_path):
    # White on the left and right ends, grey in the middle: a cut of both ends leaves grey.
    frames = np.full((5, 32, 96, 3), 128, np.uint8)
    frames[:, :, :30] = frames[:, :, 66:] = 255
    write_video(tmp_path / "wide.mp4", frames, 16, crf=4)
    clip = read_clip(tmp_path / "wide.mp4", Clip(5, 16, 16, 16))
    assert clip.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(clip.astype(int), 128, atol=4)
    write_video(tmp_path / "tall.mp4", frames.swapaxes(1, 2), 16, crf=4)
    clip = read_clip(tmp_path / "tall.mp4", Clip(5, 48, 48, 16))
    np.testing.assert_allclose(clip.astype(int), 128, atol=4)


def test_short_videos_are_one_line(tmp_path):
    numbered(tmp_path / "v.mp4", 10, 8)
    longest = read_clip(tmp_path / "v.mp4", Clip(21, 24, 40, 16))
    np.testing.assert_allclose(longest[-4:].mean((1, 2, 3)) / 8, [8, 9, 9, 9], atol=0.2)
    with pytest.raises(ValueError, match=r"1.31 s or more .22 frames, 16 a .*found 1.25 s") as e:
        read_clip(tmp_path / "v.mp4", Clip(22, 24, 40, 16))
    assert "\n" not in str(e.value)
