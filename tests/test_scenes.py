"""Recordings to clips: cuts, several clips of a file, stills and repetitions, a store that continues."""

import json

import numpy as np
import pytest
from test_encode import MAIN, arguments
from test_encode import made as made  # noqa: PLC0414, a fixture

from oneforcing_jax.data import scenes
from oneforcing_jax.data.clips import Clips, read_clip
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import Clip, write_video
from oneforcing_jax.families import encoders as encoding

CLIP = Clip(4, 16, 16, 8.0)


def moving(frames, colour, step=2):
    """A bright square over a ground, which moves: uint8 [f, 64, 96, 3]."""
    video = np.full((frames, 64, 96, 3), colour, np.uint8)
    for i, frame in enumerate(video):
        left = 4 + step * i % 60
        frame[20:44, left : left + 24] = 255 - np.array(colour)
    return video


def recording(path):
    """Two clips of a scene and a rest, a still, another scene, the first again, and one too short."""
    first, other = moving(10, (40, 40, 40)), moving(4, (200, 60, 20))
    still = np.repeat(moving(1, (20, 160, 60)), 5, 0)
    write_video(path, np.concatenate([first, still, other, first[:4], moving(2, 90)]), 8, crf=8)


def test_scenes_become_clips(tmp_path):
    recording(tmp_path / "a.mp4")
    found = scenes.of(tmp_path / "a.mp4", CLIP)
    starts = [round(clip.start * 8) for clip in found]
    assert starts == [0, 4, 10, 15, 19, 23]
    assert [clip.reason.partition(",")[0] for clip in found] == [
        "", "", "expected a clip that moves", "", "", "expected a scene of 0.38 s or more",
    ]  # fmt: skip
    assert "found one that changes by 0." in found[2].reason
    assert "found 0.25 s" in found[5].reason


@pytest.mark.parametrize("rate", [8, 24])
def test_what_only_moves_has_no_cut(rate, tmp_path):
    write_video(tmp_path / "a.mp4", moving(24, (20, 90, 160), step=5), rate, crf=8)
    found = scenes.of(tmp_path / "a.mp4", CLIP)
    assert len(found) == 24 // rate * 2 and not any(clip.reason for clip in found)


def test_clips_in_turn_are_those_by_themselves(tmp_path):
    recording(tmp_path / "a.mp4")
    whole = read_clip(tmp_path / "a.mp4", Clip(24, 16, 16, 8.0))
    clips = Clips(tmp_path / "a.mp4", CLIP)
    for start in (0, 4, 10, 15, 19, 4):  # the last goes back
        np.testing.assert_array_equal(clips.read(start / 8), whole[start : start + 4])
    with pytest.raises(ValueError, match="expected 0.38 s or more .*, found 0.25 s"):
        clips.read(23 / 8)


def test_a_store_of_scenes_continues_with_its_list(made, tmp_path, capsys):
    videos = tmp_path / "v"
    videos.mkdir()
    recording(videos / "a.mp4")
    write_video(videos / "b.mp4", moving(4, (40, 40, 40)), 8, crf=8)
    rows = [{"video": name, "caption": "a red square"} for name in ("a.mp4", "b.mp4", "c.mp4")]
    captions = videos / "captions.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = arguments(
        made, f"--videos={videos}", f"--captions={captions}", f"--out={tmp_path / 's'}"
    )
    MAIN([*given, "--clips=scenes", "--shard=0/2"])
    capsys.readouterr()
    # The list is the store's: a file that is another by now changes nothing of it.
    write_video(videos / "b.mp4", moving(4, (200, 9, 90), step=9), 8, crf=8)
    said = (tmp_path / "s/samples.jsonl").read_text()
    MAIN([*given, "--clips=scenes"])
    out = capsys.readouterr().out
    assert "s: 3 of 8 samples, 5 left out" in out
    assert "a.mp4 at 2.38 s: expected a clip unlike the others, found one that differs by" in out
    assert (
        "b.mp4 at 0.00 s: expected a clip unlike the others" in out
        and "from a.mp4 at 0.00 s" in out
    )
    assert "c.mp4: expected a video of this name" in out
    assert (tmp_path / "s/samples.jsonl").read_text() == said
    store, (codec, *_) = Store.open(tmp_path / "s"), encoding.load(made)
    whole = read_clip(videos / "a.mp4", Clip(24, 16, 16, 8.0))
    for index, start in ((0, 0), (1, 4), (3, 15)):
        found = store.read(index)["latents"]
        np.testing.assert_allclose(found, codec.encode(whole[start : start + 4]), atol=1e-5)
    for change, message in (
        (["--clips=first"], "holds another store"),
        (["--clips=scenes", f"--videos={made / 'v'}"], "begun with the scenes of other videos"),
    ):
        with pytest.raises(SystemExit, match=message):
            MAIN([*given, *change])


def test_repetitions_are_found_as_by_comparing_all():
    rng, kept, others = np.random.default_rng(0), scenes._Kept(), []
    base = rng.uniform(0, 255, (6, 288))
    for number in range(300):
        looks = base[number % 6] + rng.normal(0, rng.uniform(0, 6), 288) + rng.uniform(-6, 6)
        apart = [np.abs(looks - other).mean() for other in others]
        same = bool(apart) and min(apart) < scenes._SAME
        assert bool(kept.repeats(str(number), looks)) == same
        if not same:
            others.append(looks)
    assert 20 < len(others) < 280
