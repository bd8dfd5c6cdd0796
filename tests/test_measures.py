"""Measures of videos: against closed forms and computations of their own, on hand-made files; bad input."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from scipy import linalg, ndimage

from oneforcing_jax.data.video import frames_of, read_video, write_video
from oneforcing_jax.evaluation import frechet, measures, pixels
from oneforcing_jax.evaluation.pixels import Parts


def texture(rows=96, columns=128, seed=0):
    """A blurred pattern with contrast everywhere, uint8 [y, x, 3]."""
    noise = np.random.default_rng(seed).normal(size=(rows, columns, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0), mode="wrap")
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving(step, frames=8, noise=0.0, seed=0):
    """A texture that moves by `step` (down, right) pixels a frame."""
    rng, image = np.random.default_rng(seed), texture(seed=seed)
    video = np.stack([np.roll(image, (t * step[0], t * step[1]), (0, 1)) for t in range(frames)])
    return np.clip(video + noise * rng.normal(size=video.shape), 0, 255).astype(np.uint8)


def write(path, video, crf=4):
    path.parent.mkdir(exist_ok=True)
    write_video(path, video, 8, crf=crf, full_chroma=True)


def test_values_of_frames_that_are_known():
    grey = np.full((16, 20, 3), 100, np.uint8)
    assert pixels.of_frame(grey, grey[..., 0]) == (0.0, 0.0, 100.0)
    red = np.zeros((16, 20, 3), np.uint8)
    red[..., 0] = 200
    assert pixels.of_frame(red, red[..., 0])[1] == 1.0
    # The Laplacian of a checkerboard of levels 0 and c is +-4c inside.
    board = (np.indices((64, 64)).sum(0) % 2 * 50).astype(np.uint8)
    sharpness = pixels.of_frame(np.repeat(board[..., None], 3, -1), board)[0]
    assert abs(sharpness / 200**2 - 1) < 0.05
    change, motion, _ = pixels.of_pair(grey, grey + 4, (grey[..., 0], grey[..., 0] + 4))
    assert change == 4.0 and motion < 1e-3


@pytest.mark.parametrize("step", [(0, 0), (0, 1), (2, 1), (-3, 4)])
def test_motion_that_is_known(step, tmp_path):
    write(tmp_path / "a.mp4", moving(step))
    found = pixels.series(tmp_path / "a.mp4")
    speed = np.hypot(*step)
    np.testing.assert_allclose(found["motion"], speed, atol=0.02 + 0.06 * speed)
    # VBench: 1 - mean absolute difference of neighbours / 255, here computed on the decoded frames.
    video = read_video(tmp_path / "a.mp4")[0].astype(float)
    values = pixels.summary(tmp_path, found, Parts())
    expected = (255 - np.abs(np.diff(video, axis=0)).mean()) / 255
    assert abs(values["temporal_flickering"] - expected) < 1e-6


def test_the_fastest_part_is_seen_where_little_moves(tmp_path):
    still = np.repeat(texture()[None], 4, 0)
    still[:, 30:60, 40:70] = moving((0, 3), 4, seed=1)[:, 30:60, 40:70]
    write(tmp_path / "a.mp4", still)
    values = pixels.summary(tmp_path, pixels.series(tmp_path / "a.mp4"), Parts())
    assert values["motion"] < 0.5 and values["motion_top"] > 2.0


def test_drift_and_jumps_of_known_series(tmp_path):
    frames = 13
    found = {name: list(range(frames)) for name in pixels.OF_FRAMES}
    found |= {name: [1.0] * (frames - 1) for name in pixels.OF_PAIRS}
    # Blocks of 1, then 4 frames: pairs 0, 4 and 8 lie across boundaries.
    found["change"] = [3.0 if i % 4 == 0 else 2.0 for i in range(frames - 1)]
    values = pixels.summary(tmp_path, found, Parts(window=2, block=4, first_block=1))
    assert values["sharpness_drift"] == 11.0 and values["motion_drift"] == 0.0
    assert values["jump"] == 3.0 and values["jump_ratio"] == 1.5
    # Counted from elsewhere, the same jumps lie within blocks as well.
    assert pixels.summary(tmp_path, found, Parts(block=4))["jump_ratio"] < 1
    still = found | {"change": [0.0] * (frames - 1)}
    assert pixels.summary(tmp_path, still, Parts(block=4))["jump_ratio"] is None
    with pytest.raises(
        ValueError, match="expected 14 frames or more for two windows of 7, found 13"
    ):
        pixels.summary(tmp_path, found, Parts(window=7))
    with pytest.raises(ValueError, match="expected two blocks or more, of 16 .*, found 13 frames"):
        pixels.summary(tmp_path, found, Parts(block=16))


def test_psnr_and_ssim_are_what_others_compute(tmp_path):
    for name, noise in (("a", 0.0), ("b", 12.0)):
        write(tmp_path / f"{name}.mp4", moving((1, 1), 3, noise))
    a, b = (read_video(tmp_path / f"{name}.mp4")[0].astype(float) for name in "ab")
    found = pixels.likeness(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert abs(found["psnr"] - 20 * np.log10(255 / np.sqrt(np.square(a - b).mean()))) < 1e-4

    def smooth(x):
        return ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)

    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = smooth(a), smooth(b)
    va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    maps = (2 * ma * mb + one) * (2 * cov + two) / ((ma**2 + mb**2 + one) * (va + vb + two))
    assert abs(found["ssim"] - maps[:, 5:-5, 5:-5].mean()) < 1e-6
    flat = [np.full((16, 16, 3), level, np.uint8) for level in (80, 90)]
    assert abs(pixels.ssim(*flat) - (2 * 80 * 90 + one) / (80**2 + 90**2 + one)) < 1e-9
    assert pixels.likeness(tmp_path / "a.mp4", tmp_path / "a.mp4") == {"psnr": None, "ssim": 1.0}


def test_frechet_distances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (500, 1)), rng.normal(4, 3, (400, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert abs(frechet.distance(a, b) - expected) < 1e-9
    # More features than videos, too: covariances without full rank.
    for n, d in ((300, 6), (12, 20)):
        a, b = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(size=(n + 5, d)) + 1
        one, two = np.cov(a.T), np.cov(b.T)
        root = np.trace(linalg.sqrtm(one @ two).real)
        expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + two) - 2 * root
        assert abs(frechet.distance(a, b) / expected - 1) < 1e-4
        assert frechet.distance(a, a) < 1e-6


def test_long_videos_are_read_frame_by_frame(tmp_path):
    video = np.zeros((300, 96, 96, 3), np.uint8)
    write(tmp_path / "a.mp4", video)
    tracemalloc.start()
    try:
        assert sum(1 for _ in frames_of(tmp_path / "a.mp4")) == 300
        assert tracemalloc.get_traced_memory()[1] < video.nbytes / 30
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of videos and files of features, most of them bad in some way; they are only read."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        for name, noise in (("real", 0.0), ("noisy", 10.0)):
            write(folder / name / f"{i}.mp4", moving((0, 1 + i), 8, noise, seed=i))
    for name in ("fewer", "longer", "larger"):
        shutil.copytree(folder / "real", folder / name)
    (folder / "fewer" / "1.mp4").unlink()
    write(folder / "longer" / "0.mp4", moving((0, 1), 9))
    write(folder / "larger" / "0.mp4", np.pad(moving((0, 1)), ((0, 0), (0, 0), (1, 1), (0, 0))))
    write(folder / "one" / "0.mp4", moving((0, 1), 1))
    write(folder / "tiny" / "0.mp4", moving((0, 1))[:, :8, :8])
    for name in ("empty", "text"):
        (folder / name).mkdir()
    (folder / "text" / "0.mp4").write_text("not a video")
    (folder / "text.npy").write_text("not an array")
    values = np.arange(40.0).reshape(10, 4)
    arrays = {"good": values, "wide": np.ones((9, 5)), "flat": np.ones(9), "nan": values.copy()}
    arrays["nan"][3, 1] = np.nan
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture
def folders(clips, tmp_path):
    """Real videos, and noisy ones of the same names, to change."""
    for name in ("real", "noisy"):
        shutil.copytree(clips / name, tmp_path / name)
    return tmp_path


def test_the_command_reports_draws_and_continues(folders, capsys):
    out, real, noisy = folders / "m.json", folders / "real", folders / "noisy"
    rng = np.random.default_rng(0)
    for name in ("f.npy", "g.npy", "r.npy"):
        np.save(folders / name, rng.normal(size=(10, 4)))
    whole = (noisy / "1.mp4").read_bytes()
    (noisy / "1.mp4").write_bytes(whole[: len(whole) // 2])
    arguments = [str(real), str(noisy), f"--against={real}", f"--out={out}", "--block=4"]
    with pytest.raises(SystemExit, match="1.mp4: expected a readable video"):
        measures.main(arguments)
    # What was measured is there, and is not measured again.
    kept = json.loads(out.read_text())
    kept["rows"][str(noisy)]["0.mp4"]["series"]["luminance"] = [77.0] * 8
    out.write_text(json.dumps(kept))
    (noisy / "1.mp4").write_bytes(whole)
    features = [str(folders / "f.npy"), str(folders / "g.npy")]
    measures.main([*arguments, f"--real_features={folders / 'r.npy'}", "--features", *features])
    found = json.loads(out.read_text())["folders"]
    same, other = found[str(real)], found[str(noisy)]
    assert other["videos"]["0.mp4"]["luminance"] == 77.0
    assert same["means"]["psnr"]["mean"] is None and same["means"]["ssim"]["mean"] == 1.0
    # Noise of 10 levels, but for what clips at the ends and H.264 takes away: 28 dB.
    assert abs(other["means"]["psnr"]["mean"] - 28.1) < 1.5
    assert (
        other["means"]["temporal_flickering"]["mean"] < same["means"]["temporal_flickering"]["mean"]
    )
    assert (
        abs(same["means"]["motion"]["mean"] - 1.5) < 0.1 and same["means"]["motion"]["videos"] == 2
    )
    assert other["frechet"]["videos"] == 10 and other["frechet"]["distance"] > 0
    assert "jump_ratio" in same["means"] and "motion" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "expected a folder of videos, found none at"),
        (["empty"], "expected videos .*, found none"),
        (["real", "--against=empty"], "expected videos .*, found none"),
        (["real", "--against=fewer"], "videos of the same names as in .*found '1.mp4' in one"),
        (["real", "--against=longer"], "expected as many frames in both, found more than 8 in .*longer"),
        (["real", "--against=larger"], "expected frames of one size, found 96x128 and 96x130"),
        (["text"], "0.mp4: expected a readable video"),
        (["one"], "expected 2 frames or more, found one"),
        (["tiny"], "expected frames of 12x12 or larger, found 8x8"),
        (["real", "--window=5"], "expected 10 frames or more for two windows of 5, found 8"),
        (["real", "--window=0"], "--window: expected a whole number of 1 or more"),
        (["real", "--out=gone/m.json"], "cannot write gone/m.json"),
        (["real", "--block=1"], "--block: expected 2 frames or more, found 1"),
        (["real", "--block=8"], "expected two blocks or more, of 8 and then 8 frames, found 8"),
        (["real", "--first_block=1"], "--first_block: expected --block with it"),
        (["real", "--features", "good.npy"], "expected one file for each of 1 folders"),
        (["real", "--features", "gone.npy", "--real_features=good.npy"], "found nothing at .*gone.npy"),
        (["real", "--features", "text.npy", "--real_features=good.npy"], "file of numbers, found another"),
        (["real", "--features", "wide.npy", "--real_features=good.npy"], "one width, found 5 and 4"),
        (["real", "--features", "flat.npy", "--real_features=good.npy"], r"2 videos or more, found \[9\]"),
        (["real", "--features", "nan.npy", "--real_features=good.npy"], "finite features, found 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, message, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(clips)
    with pytest.raises(SystemExit, match=message) as caught:
        measures.main([f"--out={tmp_path / 'm.json'}", *arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
