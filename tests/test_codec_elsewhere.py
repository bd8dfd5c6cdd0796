"""A family from one file outside the package: its codec has other channels and strides. Videos are encoded, a
student learns from them, and makes videos; plans and records ask the same file."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_encode import MAIN as ENCODE

from oneforcing_jax import families, generate, main
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.families import encoders, records
from oneforcing_jax.generation import pretrained
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import programs

FAMILY = '''
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import Family, Network, Video
from oneforcing_jax.families.codec import Call
from oneforcing_jax.models import wan
from oneforcing_jax.models.wan import WanConfig

TIME, SPACE = 2, 4


class Codec:
    """The first frame, and then pairs: colours of squares of 4x4, and how they change in a pair."""

    dtype, channels = "float32", 6

    def latent_shape(self, frames, rows, columns):
        if (frames - 1) % TIME or rows % SPACE or columns % SPACE:
            raise InputError(f"expected other sizes, found {frames} frames of {rows}x{columns}")
        return 1 + (frames - 1) // TIME, self.channels, rows // SPACE, columns // SPACE

    def video_shape(self, frames, rows, columns):
        return 1 + TIME * (frames - 1), SPACE * rows, SPACE * columns

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, video):
        *lead, frames, rows, columns, _ = video.shape
        x = jnp.asarray(video, jnp.float32).reshape(*lead, frames, rows // 4, 4, columns // 4, 4, 3)
        x = jnp.moveaxis(x.mean((-4, -2)), -1, -3) / 127.5 - 1
        x = jnp.concatenate([x[..., :1, :, :, :], x], -4)
        first, second = x[..., ::2, :, :, :], x[..., 1::2, :, :, :]
        return jnp.concatenate([(first + second) / 2, (second - first) / 2], -3)

    @functools.partial(jax.jit, static_argnums=0)
    def _pairs(self, latents):
        mean, change = latents[:, :, :3], latents[:, :, 3:]
        x = jnp.stack([mean - change, mean + change], 2).reshape(len(latents), -1, *mean.shape[2:])
        x = jnp.moveaxis(jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5), 2, -1).astype(jnp.uint8)
        return x.repeat(4, 2).repeat(4, 3)

    def stream(self):
        begun = False

        def decode(latents):
            nonlocal begun
            skipped, begun = int(not begun), True
            return self._pairs(latents)[:, skipped:]

        return decode

    def programs(self, work, shape, mesh):
        video = (*self.video_shape(shape[0], *shape[2:]), 3)
        call, given, dtype = (self._pairs, (1, *shape), jnp.float32)
        if work == "encode":
            call, given, dtype = self.encode, video, jnp.uint8
        x = jax.ShapeDtypeStruct(given, dtype, sharding=sharding.named(mesh))
        return [Call("clip", 1, call, (x,), mesh, None)]

    def digest(self):
        return "pairs"


class Words:
    """A row a word, from its letters."""

    dtype, dim, length = "float32", 8, 8

    def encode(self, prompt):
        seeds = [zlib.crc32(word.encode()) for word in prompt.split()]
        rows = [np.random.default_rng(seed).normal(size=8) for seed in seeds]
        return np.array(rows, np.float32).reshape(-1, 8)

    def check(self, prompt):
        pass

    def programs(self, devices):
        return []

    def digest(self):
        return "words"


SIZE = WanConfig(16, 16, 2, 1, 6, 6, text_dim=8, text_len=8, freq_dim=8)


def no_conversion(*_):
    raise InputError("expected weights of this family's own runs")


FAMILY = Family(
    Video(
        frames=5, rows=16, columns=24, fps=8.0, shift=2.0, steps=(1000.0,), first_steps=(1000.0, 500.0),
        sampling_steps=8, guidance=3.0, negative="",
    ),
    channels=6,
    strides=(TIME, SPACE),
    model=wan.model,
    load=lambda *_: (Codec(), Words()),
    outline=lambda *_: (Codec(), Words()),
    networks={"transformer": Network(SIZE, no_conversion, no_conversion)},
)
'''

CONFIG = """
import runpy

from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.config import section
from oneforcing_jax.training.optim import Optimiser


def get_config():
    base = runpy.run_path({base!r})
    c = base["get_config"]()
    c.family = "another.pairs"
    c.mesh.update({{"data": -1, "fsdp": 1}})
    c.latents = {{"frames": 3, "channels": 6, "rows": 4, "columns": 6}}
    c.fps = 8.0
    c.generator = section(WanConfig(16, 16, 2, 1, 6, 6, text_dim=8, text_len=8, freq_dim=8))
    for name in ("teacher", "critic", "head", "one_forcing"):
        del c[name]
    c.prompt_drop_rate, c.bell_weighting = 0.1, False
    rule = {{"model": section(Optimiser())}}
    train = base["train_stage"]("teacher_forcing", "store", 2, 8, rule, {{"model": "random"}})
    c.stages, c.run = {{"train": train}}, ("train",)
    return c
"""
NAME = "another.pairs"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Encoded videos, and a config of two updates on them; all that is the family's lies in one file."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "another").mkdir()
    (folder / "another" / "pairs.py").write_text(FAMILY)
    base = str(configs.Path(__file__).parents[1] / "configs" / "base.py")
    (folder / "config.py").write_text(CONFIG.format(base=base))
    (folder / "v").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        squares = rng.integers(0, 256, (5, 4, 6, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        write_video(folder / "v" / f"{i}.mp4", squares, 8.0, full_chroma=True)
    rows = [json.dumps({"video": f"{i}.mp4", "caption": f"number {i}"}) for i in range(8)]
    (folder / "c.jsonl").write_text("\n".join(rows))
    encoders.say_kind(folder, NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(parts, "_trusted", set())
        # The user's config names it, and so its folder may.
        ENCODE([
            f"--videos={folder / 'v'}", f"--captions={folder / 'c.jsonl'}", f"--checkpoint={folder}",
            f"--out={folder / 'store'}", f"--config={folder / 'config.py'}", f"--trust_parts={NAME}",
        ])  # fmt: skip
        yield folder


def run_of(workdir):
    return Run.of(configs.load(workdir / "config.py"))


def test_a_store_holds_its_latents(workdir):
    store, (codec, words, _) = Store.open(workdir / "store"), encoders.load(workdir)
    assert store.fields["latents"] == ((3, 6, 4, 6), "float32")
    video, _ = read_video(workdir / "v" / "0.mp4")
    sample = store.read(0)
    np.testing.assert_allclose(sample["latents"], codec.encode(video), atol=1e-5)
    np.testing.assert_array_equal(sample["text"][:2], words.encode("number 0"))
    decode = codec.stream()
    shown = np.concatenate([decode(sample["latents"][None, [i]]) for i in range(3)], 1)[0]
    assert shown.shape == video.shape and np.abs(shown.astype(int) - video).mean() < 12


@pytest.mark.long
def test_what_it_trained_makes_videos(workdir, monkeypatch):
    main.main([f"--config={workdir / 'config.py'}", f"--workdir={workdir}"])
    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and np.isfinite(json.loads(lines[-1])["model/loss"])
    command = ["--prompt=a b", f"--checkpoint={workdir / 'train'}", "--frames=7", "--programs="]
    generate.main([*command, f"--out={workdir / 'a.mp4'}", "--size=8x16"])
    video, times = read_video(workdir / "a.mp4")
    assert video.shape == (7, 8, 16, 3) and times.rate == 8
    # One step alone is too few for the first block, and the family says how many it has.
    assert pretrained.find(workdir / "train").first_steps == (1000.0, 500.0)
    monkeypatch.setattr(parts, "_trusted", set())
    refused = (
        f"config.json: expected a part of oneforcing_jax, found '{NAME}'.*--trust_parts={NAME}"
    )
    with pytest.raises(SystemExit, match=refused):
        generate.main([*command, f"--out={workdir / 'b.mp4'}"])


def test_plans_compile_its_programs(workdir):
    run, device = run_of(workdir), jax.devices()[:1]
    (decode,) = programs.decode(run, programs.video_mesh(run, device))
    (encode,) = programs.encode(run, device)
    assert encode.readings[0].name == "encode/clip"
    assert jax.eval_shape(encode.call, *encode.arguments).shape == run.latents.shape
    assert jax.eval_shape(decode.call, *decode.arguments).shape == (1, 6, 16, 24, 3)
    with pytest.raises(ValueError, match="decoder: expected none, .* found 'tiny'"):
        programs.decode(run, decode.mesh, "tiny")
    other = dataclasses.replace(run, latents=dataclasses.replace(run.latents, channels=16))
    with pytest.raises(
        ValueError, match="'latents.channels': expected the 6 of its family's codec"
    ):
        programs.encode(other, device)


@pytest.mark.parametrize("name", ["wan21", "wan22_5b", "oneforcing_jax.toy.encoders", NAME])
def test_what_a_family_says_of_latents_is_what_its_codec_makes(name, workdir):
    family = families.find(name)
    codec, words = family.outline(np.dtype(np.float32), None)
    video, (frames, rows, columns) = family.video, family.latents
    made = codec.latent_shape(video.frames, video.rows, video.columns)
    assert made == (frames, family.channels, rows, columns)
    assert codec.video_shape(frames, rows, columns) == (video.frames, video.rows, video.columns)
    for config in family.models.values():
        assert (config.in_dim, config.text_len) == (family.channels, words.length)
        assert config.text_dim == words.dim


def test_a_network_says_its_family(workdir, tmp_path):
    """What nobody chose is the family's, and a record of before is of the first."""
    size = WanConfig(16, 16, 2, 1, 6, 6, text_dim=8, text_len=8, freq_dim=8)
    for name, expected in (
        (NAME, (5, 8.0, 2.0, (3, 4, 6))),
        ("Wan2.1", (81, 16.0, 5.0, (21, 60, 104))),
        (None, (81, 16.0, 5.0, (21, 60, 104))),
    ):
        net = records.describe(size) | {"dtype": "float32", "more": {"family": name}}
        (tmp_path / "model.json").write_text(json.dumps({"nets": {"params_generator": net}}))
        source = pretrained.find(tmp_path)
        latents = source.frames, source.rows, source.columns
        assert (source.family.video.frames, source.fps, source.shift, latents) == expected
        assert source.first_steps == source.family.video.first_steps
    with pytest.raises(
        ValueError, match=r"model.json: expected one of \['wan21', 'wan22_5b'\], .*found 'wan23'"
    ):
        families.of(net | {"more": {"family": "wan23"}}, tmp_path / "model.json")
