"""Pixels against a reference in float64: formats, ranges, matrices, places of colour, sizes; and pictures."""

import itertools
import re
import subprocess

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageCms

from oneforcing_jax.data import colour
from oneforcing_jax.data.clips import read_clip
from oneforcing_jax.data.images import fit, read_image
from oneforcing_jax.data.resize import resized
from oneforcing_jax.data.video import Clip, read_video, write_video

WEIGHTS = {5: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}


def gradient(rows=36, columns=52):
    """Natural light: sums of slow waves, [y, x, 3] of 0..1."""
    rng, made = np.random.default_rng(0), np.zeros((rows, columns, 3))
    y, x = np.mgrid[:rows, :columns]
    for _ in range(6):
        fy, fx, phase = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12), rng.uniform(0, 6, 3)
        made += np.sin(fy * y[..., None] + fx * x[..., None] + phase)
    return (made - made.min()) / np.ptp(made)


def bars(rows=36, columns=48):
    """The eight corners of the cube, side by side."""
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    return np.broadcast_to(corners.repeat(columns // 8, 0), (rows, columns, 3))


def stored(image, layout, full, matrix, site=(0.5, 0.0)):
    """Planes of a picture [y, x, 3] of 0..1, and the same picture as those planes say it, 0..255."""
    red, blue = WEIGHTS[matrix]
    light = image @ [red, 1 - red - blue, blue]
    planes = [
        light,
        (image[..., 2] - light) / (2 - 2 * blue),
        (image[..., 0] - light) / (2 - 2 * red),
    ]
    bits = int(re.search(r"p(\d*)", layout)[1] or 8)
    unit, most = 1 << (bits - 8), (1 << bits) - 1
    down, across = {"444": (1, 1), "422": (1, 2), "420": (2, 2)}[layout[3:6]]
    made, back = [], []
    for i, plane in enumerate(planes):
        swing, zero = (most, 0 if i == 0 else 128 * unit) if full else (
            (219 if i == 0 else 224) * unit, (16 if i == 0 else 128) * unit)  # fmt: skip
        at = [np.arange(n, dtype=float) for n in plane.shape]
        if i:
            at = [np.arange(n // s) * s + (s > 1) * o
                  for n, s, o in zip(plane.shape, (down, across), site, strict=True)]  # fmt: skip
        samples = np.rint(bilinear(plane, *at) * swing + zero)
        made.append(samples.clip(0, most))
        # Back at every pixel: a pixel p lies at (p - o) / s of the samples.
        whole = [np.arange(n, dtype=float) for n in plane.shape]
        if i:
            whole = [(w - (s > 1) * o) / s
                     for w, s, o in zip(whole, (down, across), site, strict=True)]  # fmt: skip
        back.append((bilinear(made[-1], *whole) - zero) / swing)
    light, b, r = back
    shown = np.stack([light + (2 - 2 * red) * r, light, light + (2 - 2 * blue) * b], -1)
    shown[..., 1] = (light - red * shown[..., 0] - blue * shown[..., 2]) / (1 - red - blue)
    return made, 255 * shown.clip(0, 1)


def bilinear(plane, rows, columns):
    for axis, at in ((0, rows), (1, columns)):
        at = at.clip(0, plane.shape[axis] - 1)
        low = np.minimum(at.astype(int), plane.shape[axis] - 2)
        share = np.expand_dims(at - low, 1 - axis)
        plane = np.take(plane, low, axis) * (1 - share) + np.take(plane, low + 1, axis) * share
    return plane


def bicubic(image, rows, columns):
    """Antialiased, as Pillow does it in single precision."""
    bands = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    made = [np.asarray(b.resize((columns, rows), Image.Resampling.BICUBIC)) for b in bands]
    return np.stack(made, -1).clip(0, 255)


def frame_of(planes, layout, full, matrix):
    rows, columns = planes[0].shape
    frame = av.VideoFrame(columns, rows, layout)
    for plane, samples in zip(frame.planes, planes, strict=True):
        wide = np.zeros((plane.height, plane.line_size // (1 + ("p1" in layout))),
                        np.uint16 if "p1" in layout else np.uint8)  # fmt: skip
        wide[:, : samples.shape[1]] = samples
        plane.update(wide.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


LAYOUTS = [f"yuv{sub}p{bits}" for sub in ("420", "422", "444") for bits in ("", "10le", "12le")]


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_format_is_what_it_says(layout, full, matrix):
    converter = VideoReformatter()
    for image in (gradient(), bars()):
        planes, right = stored(image, layout, full, matrix)
        rows, columns = right.shape[:2]
        edges = np.abs(np.diff(image, axis=1, prepend=image[:, :1])).max((0, 2)) > 0.5
        flat = ~(edges | np.roll(edges, -1) | np.roll(edges, -2) | np.roll(edges, 1))
        for size in ((rows, columns), (18, 26), (25, 31), (50, 80)):
            frame = frame_of(planes, layout, full, matrix)
            found, clear = colour.rgb(frame, *size, colour.LEFT, converter)
            wrong = np.abs(found - bicubic(right, *size))
            if "444" not in layout and image.shape[1] == 48:
                wrong = wrong[:, flat] if size == (rows, columns) else wrong[:1, :1]
            assert not clear and wrong.max() <= 1.0, (size, wrong.max())


@pytest.mark.parametrize(
    ("site", "offsets"),
    [(colour.LEFT, (0.5, 0)), (colour.CENTRE, (0.5, 0.5)), (colour.TOP_LEFT, (0, 0))],
)
def test_colour_lies_where_the_file_says(tmp_path, site, offsets):
    planes, right = stored(gradient(), "yuv420p", False, 1, offsets)
    found, _ = colour.rgb(
        frame_of(planes, "yuv420p", False, 1), *right.shape[:2], site, VideoReformatter()
    )
    assert np.abs(found - right).max() <= 1
    for codec, option in (("libx264", "x264-params"), ("libx265", "x265-params")):
        # On a busy machine x265 has not always written its headers when an mp4 file wants them.
        file = tmp_path / ("v.mp4" if codec == "libx264" else "v.ts")
        lossless = "qp=0" if codec == "libx264" else "lossless=1:log-level=none"
        options = {option: f"chromaloc={colour.SITES.index(site)}:{lossless}:colormatrix=bt709"}
        encoded(file, codec, options, [frame_of(planes, "yuv420p", False, 1)] * 2)
        assert np.abs(read_video(file)[0][0] - right).max() <= 1


def encoded(path, codec, options, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16, options=options)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        for i, frame in enumerate(frames):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("layout", ["nv12", "p010le", "yuyv422", "uyvy422", "nv16", "yuv420p10be"])
def test_packed_formats_are_their_planes(layout):
    planar = (
        "yuv42"
        + ("2" if "422" in layout or "16" in layout else "0")
        + "p"
        + "10le" * ("10" in layout)
    )
    planes, right = stored(gradient(), planar, False, 1)
    packed = VideoReformatter().reformat(
        frame_of(planes, planar, False, 1), format=layout, interpolation=16, threads=1
    )
    for _ in range(200):  # threads that quarrel about a row do it now and then
        found, _ = colour.rgb(packed, *right.shape[:2], colour.LEFT, VideoReformatter())
        assert np.abs(found - right).max() <= 1


@pytest.mark.parametrize("layout", ["rgb24", "bgr24", "argb", "gbrp", "rgb48le", "gray", "pal8"])
def test_what_is_rgb_or_grey_stays_as_it_is(layout):
    image = np.rint(255 * bars()).astype(np.uint8)
    if layout == "gray":
        image = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (36, 48, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    if layout == "gray":
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[..., 0]), format="gray")
    elif layout == "pal8":
        indices = np.rint(image / 255 @ [4, 2, 1]).astype(np.uint8)
        table = np.zeros((256, 4), np.uint8)
        table[:8, 0], table[:8, 1:] = 255, image[0, ::6]
        frame = av.VideoFrame.from_ndarray((indices, table), format="pal8")
    elif layout != "rgb24":
        frame = VideoReformatter().reformat(frame, format=layout, threads=1)
    found, _ = colour.rgb(frame, 36, 48, colour.LEFT, VideoReformatter())
    assert np.abs(found.astype(int) - image).max() <= 1


@pytest.mark.parametrize(("rows", "columns"), [(36, 48), (720, 1280), (1280, 720), (576, 720)])
def test_what_says_no_matrix_is_taken_as_players_do(rows, columns):
    matrix = 1 if columns >= 1280 or rows > 576 else 5
    planes, right = stored(bars(rows, columns), "yuv444p", False, matrix)
    frame = frame_of(planes, "yuv444p", False, 2)
    found, _ = colour.rgb(frame, rows, columns, colour.LEFT, VideoReformatter())
    assert np.abs(found - right).max() <= 1


def test_a_picture_and_a_video_are_read_alike(tmp_path):
    image = np.rint(255 * gradient(120, 208)).astype(np.uint8)
    write_video(tmp_path / "v.mp4", np.stack([image] * 3), 16, crf=0, full_chroma=True)
    Image.fromarray(image).save(tmp_path / "i.png")
    for rows, columns in ((60, 104), (48, 48), (200, 300)):
        clip = read_clip(tmp_path / "v.mp4", Clip(2, rows, columns, 16))
        still = fit(read_image(tmp_path / "i.png"), rows, columns)
        assert np.abs(clip[0].astype(int) - still[0]).max() <= 2
        if rows == 60:
            assert np.abs(still[0] - bicubic(image, rows, columns)).max() <= 1
    for level in (0, 16, 128, 235, 255):
        grey = np.full((2, 120, 208, 3), level, np.uint8)
        write_video(tmp_path / "g.mp4", grey, 16, crf=0)
        assert (
            np.abs(read_clip(tmp_path / "g.mp4", Clip(2, 60, 104, 16)).astype(int) - level).max()
            <= 1
        )


def test_resizing_is_that_of_pillow_at_any_size():
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = rng.integers(1, 140, 2), rng.integers(1, 140, 2)
        image = rng.integers(0, 256, (*before, 3), np.uint8)
        assert np.abs(resized(image, *after) - bicubic(image, *after)).max() <= 0.51


def test_transparent_videos_lie_on_white_and_it_is_said(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (32, 48, 4), np.uint8)
    rgba[..., 3] = 0
    rgba[8:24, 8:24] = (255, 0, 0, 255)
    said = []
    for name, codec, layout in (("a.mov", "qtrle", "argb"), ("b.mov", "png", "rgba"),
                                ("c.mkv", "ffv1", "yuva444p")):  # fmt: skip
        frame = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(rgba, format="rgba"), format=layout, threads=1
        )
        encoded(tmp_path / name, codec, {}, [frame] * 2)
        shown = read_video(tmp_path / name, said.append)[0]
        assert np.abs(shown[:, 8:24, 8:24].astype(int) - (255, 0, 0)).max() <= 2, name
        shown[:, 8:24, 8:24] = 255
        assert shown.min() >= 254, name
    assert len(said) == 3 and said[0].endswith("a.mov: transparent, laid on white")
    with av.open(str(tmp_path / "d.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuva420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="found: transparency that its decoder does not give"):
        read_video(tmp_path / "d.webm")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"x264-params": "transfer=smpte2084"}, r"high dynamic range \(PQ\)"),
        ({"x264-params": "transfer=arib-std-b67"}, r"high dynamic range \(HLG\)"),
        ({"x264-params": "colormatrix=ycgco"}, "the colour matrix 8"),
        ({"x264-params": "interlaced=1"}, "interlaced frames"),
    ],
)
def test_what_has_no_one_look_is_left_out_with_its_reason(tmp_path, options, reason):
    planes, _ = stored(gradient(64, 64), "yuv420p", False, 1)
    frames = [frame_of(planes, "yuv420p", False, 2) for _ in range(3)]
    encoded(tmp_path / "a.mp4", "libx264", options, frames)
    for read in (read_video, lambda path: read_clip(path, Clip(1, 32, 32, 16))):
        with pytest.raises(ValueError, match=reason) as caught:
            read(tmp_path / "a.mp4")
        assert str(tmp_path / "a.mp4") in str(caught.value) and "\n" not in str(caught.value)


def test_colour_profiles_of_pictures_are_applied(tmp_path):
    wide = ImageCms.createProfile("LAB")
    assert wide  # littleCMS is there
    plain, said = Image.new("RGB", (8, 8), (60, 200, 90)), []
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (
        ("own.png", display_p3(srgb)),
        ("same.png", srgb),
        ("bad.png", srgb[:200]),
    ):
        plain.save(tmp_path / name, icc_profile=profile)
    assert np.abs(read_image(tmp_path / "own.png")[0, 0, 0].astype(int) - (0, 205, 73)).max() <= 2
    assert np.abs(read_image(tmp_path / "same.png")[0, 0, 0].astype(int) - (60, 200, 90)).max() <= 1
    assert (read_image(tmp_path / "bad.png", said.append)[0, 0, 0] == (60, 200, 90)).all()
    assert "its colour profile is damaged" in said[0]


def display_p3(srgb):
    """The profile of sRGB with the primaries of Display P3, adapted to D50."""
    made = bytearray(srgb)
    primaries = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
                 b"bXYZ": (0.15710, 0.06657, 0.78407)}  # fmt: skip
    count = int.from_bytes(made[128:132], "big")
    for i in range(count):
        entry = made[132 + 12 * i : 144 + 12 * i]
        if bytes(entry[:4]) in primaries:
            start = int.from_bytes(entry[4:8], "big") + 8
            fixed = (round(v * 65536) for v in primaries[bytes(entry[:4])])
            made[start : start + 12] = b"".join(v.to_bytes(4, "big", signed=True) for v in fixed)
    return bytes(made)


@pytest.mark.parametrize(("array", "name"), [(np.float32(0.5), "a.tif"), (np.int32(128), "b.tif")])
def test_numbers_without_a_white_are_refused(tmp_path, array, name):
    Image.fromarray(np.full((4, 4), array)).save(tmp_path / name)
    with pytest.raises(ValueError, match="expected 8 or 16 bits, found (float|32-bit) numbers"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic", "found HEIC; convert it"),
        (b"\xff\x0a" + bytes(20), "found JPEG XL; convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "found JPEG XL; convert it"),
        (b"<svg xmlns='x'/>", "found a drawing or document"),
        (b"\0\0\0\x18ftypisom", "found a video"),
        (b"words", "found another file"),
    ],
)
def test_files_that_are_no_pictures_are_named(tmp_path, content, said):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_image(tmp_path / "a.png")


def test_a_cut_picture_is_said_to_be_cut(tmp_path):
    for kind in ("jpeg", "png", "webp"):
        file = tmp_path / f"a.{kind}"
        Image.fromarray(np.rint(255 * gradient()).astype(np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(ValueError, match="expected a whole image, found one that is cut"):
            read_image(file)


@pytest.mark.long
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p10le", "yuv444p12le"])
def test_the_reference_is_that_of_another_library(tmp_path, layout, matrix):
    """zscale of Debian's ffmpeg, which computes in floating point."""
    names = {5: "470bg", 1: "709", 9: "2020_ncl"}
    for full, image in itertools.product((False, True), (gradient(), bars())):
        planes, right = stored(image, layout, full, matrix)
        rows, columns = right.shape[:2]
        raw = b"".join(
            p.astype(np.uint16 if "p1" in layout else np.uint8).tobytes() for p in planes
        )
        span = "full" if full else "limited"
        given = f"min={names[matrix]}:rin={span}:cin=left"
        scale = f"zscale={given}:m=gbr:r=full:filter=bilinear,format=gbrpf32le"
        made = subprocess.run(
            ["ffmpeg", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", layout, "-s",
             f"{columns}x{rows}", "-i", "-", "-vf", scale, "-f", "rawvideo", "-"],
            input=raw, capture_output=True, check=True,
        ).stdout  # fmt: skip
        green, blue, red = np.frombuffer(made, "<f4").reshape(3, rows, columns) * 255
        wrong = np.abs(np.stack([red, green, blue], -1).clip(0, 255) - right)
        assert wrong.max() <= 0.5, (full, wrong.max())
