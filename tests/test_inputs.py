"""Pictures of every kind, and arrays from files that lie, are damaged or hold what is not finite."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from oneforcing_jax.data.images import read_image
from oneforcing_jax.generation import recordings

RED, SIZE = (200, 30, 40), (6, 4)


def grey(bits):
    return (
        np.linspace(0, 2**bits - 1, 24).reshape(4, 6).astype(np.uint8 if bits == 8 else np.uint16)
    )


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_colours_of_every_mode(tmp_path):
    plain = Image.new("RGB", SIZE, RED)
    for mode, name in (("RGB", "a.png"), ("P", "b.png"), ("CMYK", "c.tif"), ("RGB", "d.bmp")):
        image = plain.quantize() if mode == "P" else plain.convert(mode)
        shown = read_image(saved(tmp_path / name, image))
        assert shown.shape == (1, 4, 6, 3) and shown.dtype == np.uint8
        assert np.abs(shown.astype(int) - RED).max() <= 2, mode
    eight = read_image(saved(tmp_path / "e.png", Image.fromarray(grey(8))))
    sixteen = read_image(saved(tmp_path / "f.png", Image.fromarray(grey(16))))
    assert np.abs(sixteen.astype(int) - eight).max() <= 1 and np.ptp(sixteen) == 255
    one_bit = read_image(saved(tmp_path / "g.png", Image.fromarray(grey(8)).convert("1")))
    assert set(np.unique(one_bit)) == {0, 255}


def test_transparency_lies_on_white_and_is_said(tmp_path):
    said = []
    clear = Image.new("RGBA", SIZE, (*RED, 0))
    for name, image in (
        ("a.png", clear),
        ("b.png", clear.convert("LA")),
        ("c.png", clear.quantize()),
    ):
        shown = read_image(saved(tmp_path / name, image), said.append)
        assert (shown == 255).all(), name
    assert len(said) == 3 and said[0].endswith("a.png: transparent, laid on white")


def test_turned_and_animated_pictures(tmp_path):
    said, image = [], Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    assert read_image(saved(tmp_path / "a.png", image, exif=exif)).shape == (1, 6, 4, 3)
    frames = [Image.new("RGB", SIZE, c) for c in ("red", "blue", "green")]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    shown = read_image(tmp_path / "b.gif", said.append)
    assert (shown[0, 0, 0] == (255, 0, 0)).all() and said[0].endswith(
        "the first of its 3 frames is taken"
    )


def test_a_header_of_unlikely_size_is_not_believed(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "big.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ValueError, match="expected an image") as caught:
        read_image(tmp_path / "big.png")
    assert "\n" not in str(caught.value)


def noise(path, array=None, **more):
    array = np.zeros((1, 2, 3, 4, 4), np.float32) if array is None else array
    np.savez(path, noise=array, **more)
    return path


def read(path):
    return recordings.read_noise(path, 1, (2, 3, 4, 4), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path, value):
    array = np.zeros((1, 2, 3, 4, 4), np.float32)
    array[0, 1, 2, 3, 3] = value
    with pytest.raises(ValueError, match="finite numbers in noise, found 1 that are not"):
        read(noise(tmp_path / "n.npz", array))
    np.save(tmp_path / "e.npy", array[0, 1])
    with pytest.raises(ValueError, match="finite numbers in prompt_embeds, found 1 that are not"):
        recordings.read_embeddings(tmp_path / "e.npy", (3, 4, 4))


def test_damaged_archives_are_one_line(tmp_path):
    whole = noise(tmp_path / "n.npz", np.random.default_rng(0).normal(size=(1, 2, 3, 4, 4)))
    assert read(whole)[0].dtype == np.float32
    content, rng = whole.read_bytes(), np.random.default_rng(1)
    for i in range(60):
        broken = bytearray(content)
        if i % 2:
            del broken[rng.integers(len(broken)) :]
        else:
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.npz").write_bytes(broken)
        try:
            found, _ = read(tmp_path / "b.npz")
        except ValueError as error:
            assert "b.npz" in str(error) and "\n" not in str(error)
        else:  # a bit that no array depends on
            np.testing.assert_array_equal(found, read(whole)[0])


def test_a_claimed_size_is_compared_before_it_is_read(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    with (tmp_path / "n.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(
        ValueError, match=r"expected arrays prompt_embeds \[1, 4, 4\], found .*1000000"
    ):
        recordings.read_embeddings(tmp_path / "n.npy", (1, 4, 4))
