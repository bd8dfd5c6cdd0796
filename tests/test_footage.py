"""Videos of people's devices: how they lie on the screen, when frames are shown, which stream it is."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from oneforcing_jax.data.clips import read_clip
from oneforcing_jax.data.playable import playable
from oneforcing_jax.data.video import Clip, at_rate, frames_of, measured, read_video
from oneforcing_jax.errors import InputError

# Red, green / blue, white.
CORNERS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
RATES = (12, 16, 24, Fraction(30000, 1001), 60)


def written(path, frames, rate=16, stamps=None, base=None, aspect=None, codec="libx264", **options):
    """A video; `stamps` are the frames' time stamps in units of `base` seconds."""
    with av.open(str(path), "w", options=options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        if aspect:
            stream.sample_aspect_ratio = aspect
        if base:
            stream.codec_context.time_base = base
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (stamps[i] if stamps else i), base or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def with_matrix(path, a, b, c, d):
    """Replaces the display matrix of a track in an mp4 file."""
    whole = path.read_bytes()
    unit = bytes.fromhex(
        "00010000000000000000000000000000000100000000000000000000000000004000 0000"
    )
    at = whole.index(unit, whole.index(b"tkhd"))
    numbers = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(
        whole[:at] + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers) + whole[at + 36 :]
    )


@pytest.mark.parametrize("aspect", [None, Fraction(3, 2), Fraction(2, 3)])
@pytest.mark.parametrize(("turned", "right", "down"), itertools.product((0, 1), (1, -1), (1, -1)))
def test_all_eight_orientations(tmp_path, turned, right, down, aspect):
    file, image = tmp_path / "v.mp4", CORNERS.repeat(24, 0).repeat(24, 1)[:, :36]
    written(file, [image] * 3, aspect=aspect, crf="1")
    with_matrix(file, *((0, down, right, 0) if turned else (right, 0, 0, down)))
    expected = CORNERS.swapaxes(0, 1) if turned else CORNERS
    expected = expected[::down, ::right]
    rows, columns = (48, 54) if aspect == Fraction(3, 2) else (72, 36) if aspect else (48, 36)
    size = (columns, rows) if turned else (rows, columns)
    shown = read_video(file)[0]
    assert shown.shape == (3, *size, 3) and measured(file) == Clip(3, *size, 16)
    # Green and white are narrower before a mirror: the corners themselves are looked at.
    ends = np.ix_((3, size[0] - 4), (3, size[1] - 4))
    assert np.abs(shown[0][ends].astype(int) - expected).max() <= 8
    clip = read_clip(file, Clip(2, 2 * size[0], 2 * size[1], 16))
    ends = np.ix_((6, 2 * size[0] - 7), (6, 2 * size[1] - 7))
    assert np.abs(clip[0][ends].astype(int) - expected).max() <= 8
    assert next(frames_of(file)).shape == (*size, 3)
    (tmp_path / "again.mp4").write_bytes(playable(file))
    again = read_video(tmp_path / "again.mp4")[0]
    assert again.shape == (3, 2 * size[0], 2 * size[1], 3)
    assert np.abs(again[0][ends].astype(int) - expected).max() <= 40


@pytest.mark.parametrize("aspect", [Fraction(*pair) for pair in ((3, 2), (64, 45), (8, 9), (1, 2))])
def test_a_circle_is_round(tmp_path, aspect):
    y, x = np.mgrid[:60, :90] - np.array([29.5, 44.5])[:, None, None]
    image = np.uint8(255) * (np.hypot(y, x * float(aspect)) < 22)[..., None].repeat(3, -1)
    written(tmp_path / "v.mp4", [image] * 9, aspect=aspect, crf="1")
    shown = read_video(tmp_path / "v.mp4")[0]
    clip = read_clip(tmp_path / "v.mp4", Clip(5, 120, 120, 16))
    for frame in (shown[0], clip[0]):
        light = frame.mean(-1) > 128
        high, wide = light.any(1).sum(), light.any(0).sum()
        assert abs(int(high) - int(wide)) <= 2 and high >= 40


def numbered(count):
    """Frames that show their number: sixteens on the left, ones on the right."""
    frames = np.zeros((count, 24, 40, 3), np.uint8)
    frames[:, :, :20] = (np.arange(count) // 16 * 16)[:, None, None, None]
    frames[:, :, 20:] = (np.arange(count) % 16 * 16)[:, None, None, None]
    return frames


def numbers(frames):
    left, right = (frames[:, 8:16, at : at + 8].mean((1, 2, 3)) / 16 for at in (4, 28))
    assert max(np.abs(v - np.rint(v)).max() for v in (left, right)) < 0.3
    return (16 * np.rint(left) + np.rint(right)).astype(int)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("fps", [8, 16, 24])
def test_steady_rates_are_sampled_as_a_player_shows_them(tmp_path, rate, fps):
    written(tmp_path / "v.mp4", numbered(40), rate, crf="0")
    video, times = read_video(tmp_path / "v.mp4")
    assert times.rate == pytest.approx(float(rate)) and times.end == pytest.approx(40 / rate)
    at = at_rate(video, times, fps)
    right = np.floor(np.arange(len(at)) / fps * float(rate) + 0.6e-3 * float(rate))
    np.testing.assert_array_equal(numbers(at), right)
    assert abs(len(at) / fps - 40 / rate) < 1 / fps
    clip = read_clip(tmp_path / "v.mp4", Clip(5, 24, 40, fps))
    np.testing.assert_array_equal(clip, at[:5])


VARIABLE = {
    "phone": [*range(0, 2000, 33), *range(2000, 4000, 100)],
    "screen": [0, 100, 200, 3800, 3900],
    "slides": [0, 1500, 1600, 4000],
    "late": [0, *(33 * i + (7 * i) % 20 for i in range(1, 100))],
}


@pytest.mark.parametrize("kind", VARIABLE)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_rates_are_sampled_by_time(tmp_path, kind, container):
    stamps, file = VARIABLE[kind], tmp_path / f"v.{container}"
    written(file, numbered(len(stamps)), 30, stamps, Fraction(1, 1000), crf="0")
    at = at_rate(*read_video(file), 16)
    known = np.array([*stamps, 2 * stamps[-1] - stamps[-2]]) / 1000
    # A quarter of a frame of the header's rate is forgiven.
    early, late = (known[numbers(at) + end] - np.arange(len(at)) / 16 for end in (0, 1))
    assert early.max() <= 0.25 / 30 and late.min() >= -0.25 / 30
    assert len(at) / 16 == pytest.approx(known[-1], abs=1 / 16)
    count = min(len(at), 33)
    np.testing.assert_array_equal(read_clip(file, Clip(count, 24, 40, 16)), at[:count])


@pytest.mark.parametrize("tick", [None, 1, 11])
@pytest.mark.parametrize("rate", [10, 16, 25])
def test_rates_that_count_ticks_are_no_rates(tmp_path, tick, rate):
    """WebM as browsers write it: time stamps that tremble, and no duration of a frame or one of a tick."""
    file, rng = tmp_path / "v.webm", np.random.default_rng(0)
    stamps = [round(1000 * i / rate + (i and rng.uniform(-10, 10))) for i in range(20)]
    options = {"codec": "libvpx-vp9", "crf": "10", "b": "0"}
    written(file, numbered(20), 1000, stamps, Fraction(1, 1000), **options)
    whole = file.read_bytes()
    at = whole.find(b"\x23\xe3\x83")  # DefaultDuration: voided, or in nanoseconds
    assert at > 0
    size = whole[at + 3] & 0x7F
    element = bytes([0xEC, 0x80 | (2 + size)]) + bytes(2 + size)
    if tick:
        element = whole[at : at + 4] + (tick * 90_909).to_bytes(size, "big")
    file.write_bytes(whole[:at] + element + whole[at + 4 + size :])
    video, times = read_video(file)
    assert times.rate == pytest.approx(rate, rel=0.01)
    at = at_rate(video, times, rate)
    assert len(at) == 20 and np.abs(numbers(at) - np.arange(20)).max() <= (rate == 25)
    np.testing.assert_array_equal(read_clip(file, Clip(20, 24, 40, rate)), at)


@pytest.mark.parametrize("jump", [5, 3600, -1])
def test_time_stamps_that_jump_are_said(tmp_path, jump):
    """A recording of a broadcast: one second, then other time stamps."""
    parts = []
    for start in (10, 11 + jump):
        part = io.BytesIO()
        with av.open(part, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(25):
                frame = av.VideoFrame.from_ndarray(
                    np.full((48, 64, 3), 9 * i, np.uint8), format="rgb24"
                )
                frame.pts, frame.time_base = 25 * start + i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(part.getvalue())
    (tmp_path / "whole.ts").write_bytes(parts[0])
    assert len(read_video(tmp_path / "whole.ts")[0]) == 25
    (tmp_path / "v.ts").write_bytes(parts[0] + parts[1])
    for read in (read_video, lambda path: read_clip(path, Clip(40, 48, 64, 25))):
        with pytest.raises(ValueError, match="time stamps that jump by .* s at ") as caught:
            read(tmp_path / "v.ts")
        assert "\n" not in str(caught.value)


def test_an_unknown_codec_is_one_line(tmp_path):
    file = tmp_path / "v.mp4"
    written(file, numbered(3))
    file.write_bytes(file.read_bytes().replace(b"avc1", b"zzz9"))
    for read in (read_video, measured, playable):
        with pytest.raises(InputError, match="v.mp4.*found: a codec that FFmpeg does not know"):
            read(file)


def test_a_cover_picture_is_not_the_video(tmp_path):
    file, cover = tmp_path / "v.mp4", io.BytesIO()
    written(file, numbered(32), crf="0")
    Image.new("RGB", (64, 64), "red").save(cover, "jpeg")
    picture = box(b"covr", box(b"data", bytes([0, 0, 0, 13, 0, 0, 0, 0]) + cover.getvalue()))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", picture)))
    whole = file.read_bytes()
    at = whole.index(b"moov") - 4
    size = int.from_bytes(whole[at : at + 4], "big")
    moov = whole[at + 8 : at + size]
    file.write_bytes(whole[:at] + box(b"moov", tags + moov) + whole[at + size :])
    with av.open(str(file)) as container:
        assert len(container.streams.video) == 2
    video, times = read_video(file)
    assert video.shape == (32, 24, 40, 3) and times.rate == 16
    assert read_clip(file, Clip(5, 24, 40, 16)).shape == (5, 24, 40, 3)
    assert len(playable(file)) > 500


def box(name, content):
    return (8 + len(content)).to_bytes(4, "big") + name + content
