"""Videos to a store through the command line, with the toy's encoders; bad files, several processes."""

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waits import HANG

from oneforcing_jax.data.clips import read_clip
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import Clip, write_video
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import encoders as toy_encoders
from oneforcing_jax.toy import text, world
from oneforcing_jax.toy.world import TINY
from oneforcing_jax.training import loop

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "encode_videos.py"
# TINY renders 4 frames of 16x16.
SIZES = ["--config.latents.frames=4", "--config.latents.rows=4", "--config.latents.columns=4"]


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAIN = load_tool("encode_videos").main


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with videos in v/, their captions, and the encoders of their world."""
    folder = tmp_path_factory.mktemp("made")
    world.write_dataset(folder / "v", 6, 0, TINY)
    frames = np.stack([video for _, video in world.videos(16, 1, TINY)]).reshape(-1, 16, 16, 3)
    words = text.TextEncoder.train(TINY.captions())
    toy_encoders.save(folder, codecs.fit(frames), words)
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        f"--videos={folder / 'v'}",
        f"--captions={folder / 'v/captions.jsonl'}",
        f"--checkpoint={folder}",
        f"--out={folder / 's'}",
        f"--config={ROOT / 'configs/toy.py'}",
        *SIZES,
        *more,
    ]


def test_a_store_holds_what_the_encoders_give(made, capsys):
    MAIN(arguments(made))
    assert "6 of 6 samples" in capsys.readouterr().out
    store, (codec, encoder, _) = Store.open(made / "s"), encoding.load(made)
    clip = Clip(4, 16, 16, world.FPS)
    rows = [json.loads(line) for line in (made / "s/samples.jsonl").open()]
    for index in (0, 5):
        sample = store.read(index)
        video = read_clip(made / "v" / rows[index]["video"], clip)
        np.testing.assert_allclose(sample["latents"], codec.encode(video), atol=1e-5)
        words = encoder.encode(rows[index]["caption"])
        np.testing.assert_array_equal(sample["text"][: len(words)], words)
        assert not sample["text"][len(words) :].any()
    assert not store.read_shared("negative_text").any()
    # A store knows its encoders, also after both were moved.
    shutil.copytree(made, made.parent / "moved")
    assert encoding.load(made.parent / "moved/s").codec.digest() == codec.digest()


def test_bad_files_are_left_out_listed_and_tried_again(made, tmp_path, capsys):
    shutil.copytree(made / "v", tmp_path / "v")
    for name in (codecs.FILE, text.FOLDER, encoding.ENCODERS):
        (shutil.copytree if name == text.FOLDER else shutil.copy)(made / name, tmp_path / name)
    videos, captions = tmp_path / "v", tmp_path / "v/captions.jsonl"
    lines = captions.read_text().splitlines()
    (videos / "000001.mp4").write_bytes(b"")
    (videos / "000002.mp4").write_bytes((videos / "000002.mp4").read_bytes()[:700])
    write_video(videos / "000003.mp4", np.zeros((2, 16, 16, 3), np.uint8), world.FPS)
    # Another size and rate are no fault.
    big = np.repeat(np.repeat(read_clip(videos / "000004.mp4", Clip(4, 16, 16, 8)), 3, 1), 4, 2)
    write_video(videos / "000004.mp4", np.repeat(big, 2, 0), 2 * world.FPS, crf=4)
    long = json.loads(lines[5]) | {"caption": "red " * 30}
    uncaptioned = lines.pop(0)
    captions.write_text("\n".join([*lines[:-1], json.dumps(long)]) + "\n")

    MAIN(arguments(tmp_path))
    out = capsys.readouterr().out
    assert "1 of 6 samples, 5 left out" in out
    for name, reason in (
        ("000000.mp4", "expected a caption, found none"),
        ("000001.mp4", "found zero bytes"),
        ("000002.mp4", "expected a readable video"),
        ("000003.mp4", "expected 0.38 s or more"),
        ("000005.mp4", "expected 8 tokens or fewer, found 30"),
    ):
        assert any(name in line and reason in line for line in out.splitlines()), (name, out)
    before = Store.open(tmp_path / "s").read(4)["latents"]
    # Out of reach now: were it read again, the sample would be lost.
    (videos / "000004.mp4").write_bytes(b"")
    shutil.copy(made / "v/000001.mp4", videos)
    captions.write_text(uncaptioned + "\n" + captions.read_text())
    MAIN(arguments(tmp_path))
    assert "3 of 6 samples, 3 left out" in capsys.readouterr().out
    store = Store.open(tmp_path / "s")
    np.testing.assert_array_equal(store.done(), [True, True, False, False, True, False])
    np.testing.assert_array_equal(store.read(4)["latents"], before)

    captions.write_text(captions.read_text().replace(json.loads(lines[0])["caption"], "a red disc"))
    with pytest.raises(SystemExit, match="begun with other videos or captions: sample 1"):
        MAIN(arguments(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--checkpoint={0}/v", "no encoders in .*vae/ and text/"),
        ("--captions={0}/v/absent.jsonl", "no caption file"),
        ("--videos={0}/absent", "no folder of videos"),
        ("--config.latents.channels=7", "'latents.channels': expected the encoder's 12, found 7"),
        ("--config.generator.text_dim=7", "expected a network with text_dim 32, .* found 7"),
        ("--config.latents.frame=7", "did you mean 'latents.frames'"),
        ("--out={0}/v", "expected an empty folder or a store"),
        ("--out={0}/v/000000.mp4", "cannot make a store"),
    ],
)
def test_bad_arguments_are_one_line(made, change, message):
    with pytest.raises(SystemExit, match=message) as caught:
        MAIN([*arguments(made), change.format(made)])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_two_processes_fill_one_store(made, tmp_path):
    shutil.copytree(made, tmp_path / "m", ignore=shutil.ignore_patterns("s"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}

    def start(shard: str) -> subprocess.Popen:
        command = [sys.executable, str(TOOL), *arguments(tmp_path / "m", f"--shard={shard}")]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    processes = [start("0/2"), start("1/2")]
    outputs = [process.communicate(timeout=HANG)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert any("6 of 6 samples" in output for output in outputs)
    Store.open(tmp_path / "m/s").require_complete()
    with pytest.raises(SystemExit):
        MAIN(arguments(tmp_path / "m", "--shard=2/2"))


def write_lmdb(folder: Path, shape: tuple[int, ...], seed: int, **changes: bytes | None) -> None:
    """A database of the original's format, with the lmdb package alone."""
    lmdb = pytest.importorskip("lmdb")
    rng = np.random.default_rng(seed)
    content = {"latents_shape": " ".join(map(str, shape)).encode()}
    for row in range(shape[0]):
        latents = rng.standard_normal(shape[1:]).astype(np.float16)
        content[f"latents_{row}_data"] = latents.tobytes()
        content[f"prompts_{row}_data"] = TINY.captions()[row].encode()
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as rows, rows.begin(write=True) as transaction:
        for key, value in (content | changes).items():
            if value is not None:
                transaction.put(key.encode(), value)


def importing(made: Path, source: Path, out: Path) -> list[str]:
    return [f"--lmdb={source}", f"--checkpoint={made}", f"--out={out}"]


@pytest.mark.parametrize("steps", [(), (3,)], ids=["clips", "trajectories"])
def test_lmdb_rows_come_over(made, tmp_path, steps, capsys):
    sizes = (2, 12, 4, 4)
    for part in range(2):
        write_lmdb(tmp_path / f"data/{part}", (3, *steps, *sizes), part)
    load_tool("import_lmdb").main(importing(made, tmp_path / "data", tmp_path / "s"))
    assert "6 of 6 samples" in capsys.readouterr().out
    store, encoder = Store.open(tmp_path / "s"), encoding.load(tmp_path / "s").text
    rng = np.random.default_rng(1)
    for index in range(3, 6):
        expected = rng.standard_normal((*steps, *sizes)).astype(np.float16)
        sample, words = store.read(index), encoder.encode(TINY.captions()[index - 3])
        np.testing.assert_array_equal(sample["text"][: len(words)], words)
        np.testing.assert_array_equal(sample["latents"], expected[-1] if steps else expected)
        if steps:
            np.testing.assert_array_equal(sample["trajectory"], expected[:-1])
    assert not store.read_shared("negative_text").any()


def test_bad_lmdb_rows_are_left_out_and_bad_files_are_one_line(made, tmp_path, capsys):
    main, shape = load_tool("import_lmdb").main, (5, 2, 12, 4, 4)
    nan = np.full(shape[1:], np.nan, np.float16).tobytes()
    write_lmdb(
        tmp_path / "data", shape, 0, latents_0_data=None, prompts_1_data=None,
        latents_2_data=nan, latents_3_data=nan[:-2],
    )  # fmt: skip
    main(importing(made, tmp_path / "data", tmp_path / "s"))
    out = capsys.readouterr().out
    assert "1 of 5 samples, 4 left out" in out
    for row, reason in enumerate(
        ("the key latents_0_data", "the key prompts_1_data", "finite", "768 bytes .* found 766")
    ):
        assert any(f"row {row}: " in x and re.search(reason, x) for x in out.splitlines()), out
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/data.mdb").write_bytes(b"x" * 5000)
    write_lmdb(tmp_path / "cut", shape, 0)
    whole = (tmp_path / "cut/data.mdb").read_bytes()
    (tmp_path / "cut/data.mdb").write_bytes(whole[:9000])
    write_lmdb(tmp_path / "claims", shape, 0, latents_shape=b"100000 2 12 4 4")
    write_lmdb(tmp_path / "shapeless", shape, 0, latents_shape=None)
    write_lmdb(tmp_path / "wan", (5, 2, 16, 4, 4), 0)
    write_lmdb(tmp_path / "flat", shape, 0, latents_shape=b"5 384")
    for name, message in (
        ("none", "a folder with data.mdb, found none"),
        ("broken", "expected an LMDB, found: "),
        ("cut", "expected [0-9]+ bytes, found 9000; it was cut"),
        ("claims", "expected 76800000 bytes or more .* found a file of"),
        ("shapeless", "the key latents_shape, found none"),
        ("flat", "5 or 6 sizes"),
        ("wan", "expected latents of 12 channels, as the codec of .* found 16"),
    ):
        with pytest.raises(SystemExit, match=message) as caught:
            main(importing(made, tmp_path / name, tmp_path / f"{name}_store"))
        assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_a_full_disk_keeps_what_is_written_and_the_same_command_continues(made, tmp_path):
    shutil.copytree(made, tmp_path / "m", ignore=shutil.ignore_patterns("s"))
    MAIN(arguments(tmp_path / "m", "--shard=0/2"))
    before = Store.open(tmp_path / "m/s").done()
    # No file may grow over 2 KB, as latents do: EFBIG where a full disk gives ENOSPC.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(SystemExit, match="sample 1 was not written: .*too large") as caught:
            MAIN(arguments(tmp_path / "m"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(Store.open(tmp_path / "m/s").done(), before)
    MAIN(arguments(tmp_path / "m"))
    assert Store.open(tmp_path / "m/s").done().all()


def test_stores_say_how_their_pixels_were_read(made, tmp_path, capsys):
    """One of before goes on being one: whole it is left as it is, else it is refused."""

    def of_before(name: str) -> Path:
        meta = tmp_path / name / "meta.json"
        said = json.loads(meta.read_text())
        assert said["attributes"].pop("pixels") == 2
        meta.write_text(json.dumps(said))
        return meta

    MAIN([*arguments(made), f"--out={tmp_path / 'whole'}"])
    meta = of_before("whole")
    before = meta.read_text()
    MAIN([*arguments(made), f"--out={tmp_path / 'whole'}"])
    assert meta.read_text() == before
    capsys.readouterr()
    loop._store(tmp_path / "whole", {"latents": (4, 12, 4, 4)})
    assert re.search(r"whole: made by a version that read .* darker", capsys.readouterr().out)
    MAIN([*arguments(made), f"--out={tmp_path / 'half'}", "--shard=0/2"])
    of_before("half")
    with pytest.raises(SystemExit, match="half: begun by a version that read other pixels"):
        MAIN([*arguments(made), f"--out={tmp_path / 'half'}"])
