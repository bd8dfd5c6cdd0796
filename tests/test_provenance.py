"""Where videos come from: metadata of every writer, and the mark, found after what videos go through."""

import hashlib
import json
import runpy
from pathlib import Path

import av
import numpy as np
import pytest

from oneforcing_jax.data import mark
from oneforcing_jax.data.origin import Origin, read_origin, software
from oneforcing_jax.data.video import VideoWriter, write_video
from oneforcing_jax.evaluation import provenance
from oneforcing_jax.system import integrity, saved
from oneforcing_jax.toy import world as toy

STUDY = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "mark_study.py"))
encoded, resized, cropped = (STUDY[name] for name in ("encoded", "resized", "cropped"))
ORIGIN = Origin("c" * 64, "a cat, 一", 7, 2)
SAID = {
    "software": software(),
    "checkpoint": "c" * 64,
    "prompt": hashlib.sha256("a cat, 一".encode()).hexdigest(),
    "seed": 7,
    "sample": 2,
}


@pytest.fixture(scope="module")
def scenes():
    """A photograph that moves and discs before noise, uint8 [f, y, x, 3]."""
    return [STUDY["scene"](number, (160, 272), 9) for number in (8, 1)]


def found(frames, key=mark.KEY):
    return mark.detect(mark.average(frames), key)


def test_every_writer_says_how_a_video_was_made(tmp_path):
    video = np.zeros((2, 16, 16, 3), np.uint8)
    write_video(tmp_path / "a.mp4", video, 8)
    write_video(tmp_path / "b.mp4", video, 8, origin=ORIGIN)
    with VideoWriter(tmp_path / "c.mp4", 8, origin=ORIGIN) as writer:
        writer.write(video)
    assert read_origin(tmp_path / "a.mp4") == {"software": software()}
    assert read_origin(tmp_path / "b.mp4") == read_origin(tmp_path / "c.mp4") == SAID
    # As any other program reads it.
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == SAID
    toy.write_dataset(tmp_path / "toy", 1, 0)
    assert read_origin(tmp_path / "toy" / "000000.mp4") == {"software": software()}


def test_a_copy_of_the_streams_in_another_container_says_it_too(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, origin=ORIGIN)
    with av.open(str(tmp_path / "a.mp4")) as old, av.open(str(tmp_path / "b.mkv"), "w") as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert read_origin(tmp_path / "b.mkv") == SAID


@pytest.mark.parametrize(
    "comment", ["", "holiday", "[1]", '{"software": "another 1.0"}', "[" * 9999]
)
def test_other_comments_are_not_of_this_package(comment, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode(None))
    assert read_origin(tmp_path / "a.mp4") is None


def test_weights_have_a_name_with_and_without_checksums(tmp_path):
    def save(folder, value):
        for part in ("params_net", "ema_net"):
            (folder / part).mkdir(parents=True)
            (folder / part / "array").write_bytes(value + part.encode())
        return folder

    one, other = save(tmp_path / "a" / "1", b"x"), save(tmp_path / "b" / "1", b"y")
    plain = saved.identity(one.parent, "net")
    assert len(plain) == 64 and plain != saved.identity(other.parent, "net")
    assert plain != saved.identity(one.parent, "net", ema=True)
    integrity.seal(one)
    assert saved.identity(one.parent, "net") == saved.identity(one, "net") == plain
    # With checksums, no file is read.
    (one / "params_net" / "array").unlink()
    assert saved.identity(one.parent, "net") == plain


def test_the_mark_is_faint_and_survives(scenes):
    """A reduced form of tools/mark_study.py."""
    for plain in scenes:
        marked = mark.add(plain)
        error = np.square(marked.astype(float) - plain).mean()
        assert 10 * np.log10(255**2 / error) > 41.5
        file = encoded(marked, 23)
        copies = [marked, encoded(marked, 18), file]
        copies += [encoded(resized(file, scale), 23) for scale in (0.75, 1.5)]
        assert all(found(frames).marked for frames in copies)
        assert not found(plain).marked and not found(encoded(plain, 23)).marked
        assert not found(file, "another key").marked
        # Across a whole video, frames in any number.
        np.testing.assert_array_equal(mark.add(plain[:2]), marked[:2])


def test_cropped_frames_are_searched(scenes):
    shares = np.linspace(1.0, 0.8, 5)
    marked = encoded(mark.add(scenes[0]), 18)
    part = mark.average(cropped(marked, 0.9, 0.8))
    assert not mark.detect(part).marked
    searched = mark.search(part, shares=shares)
    assert searched.marked and np.allclose(searched[2:], (0.9, 0.8))
    whole = mark.search(mark.average(marked), shares=shares)
    assert whole.marked and whole[2:] == (1.0, 1.0)
    # What is not cropped has the same z in both, and chance counts for more where more is tried.
    plain = mark.detect(mark.average(marked))
    assert abs(whole.z - plain.z) < 1e-2 * plain.z
    for image, key in ((mark.average(scenes[0]), mark.KEY), (part, "another key")):
        none = mark.search(image, key, shares)
        assert not none.marked and none.z > 2.5 and none.false_alarm == 1.0


def test_without_a_mark_z_is_what_chance_says(scenes):
    image = mark.average(scenes[0])[:80, :120]
    z = np.array([mark.detect(image, f"key {i}").z for i in range(400)])
    assert abs(z.mean()) < 0.2 and 0.9 < z.std() < 1.1 and z.max() < 4.5
    bound = mark.detect(image, "key 0")
    assert bound.false_alarm == min(1.0, np.exp(-(max(bound.z, 0) ** 2) / 2))
    black = mark.detect(np.zeros((24, 24)))
    assert np.isfinite(black.z) and not black.marked


def test_the_command_prints_both(tmp_path, scenes, capsys):
    frames = mark.add(scenes[0], "secret")
    write_video(tmp_path / "a.mp4", frames, 16, crf=20, origin=ORIGIN)
    provenance.main([str(tmp_path / "a.mp4"), "--key=secret"])
    shown = capsys.readouterr().out
    assert "seed 7" in shown and f"checkpoint {'c' * 64}" in shown and "mark: found, z =" in shown
    provenance.main([str(tmp_path / "a.mp4")])
    assert "mark: not found" in capsys.readouterr().out
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / "tiny.mp4", np.zeros((2, 12, 12, 3), np.uint8), 8)
    for name, message in [
        ("gone.mp4", "no video file at"),
        ("half.mp4", "expected a readable video"),
        ("tiny.mp4", "mark: expected frames of 13 pixels or more, found 12x12"),
    ]:
        with pytest.raises(SystemExit, match=message) as caught:
            provenance.main([str(tmp_path / name)])
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_the_study_runs_and_continues(tmp_path, capsys):
    out = tmp_path / "marks.json"
    arguments = [f"--out={out}", "--scenes=1", "--toys=1", "--unmarked=2", "--searches=1"]
    out.write_text(json.dumps({"scene 0": {"psnr": 42.0, "H.264, crf 18": [9.0, 1e-9]}}))
    STUDY["main"](arguments)
    shown = capsys.readouterr().out
    assert "| scene | H.264, crf 18 | 1 of 1 | 9 | 9 | 9 |" in shown
    assert "| unmarked | unmarked | 0 of 2 |" in shown
    assert "| toy 96x96 | H.264, crf 8 | 1 of 1 |" in shown
