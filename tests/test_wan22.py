"""Wan2.2's 5B: from a random folder of published layouts to videos, through the real commands."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, error
from PIL import Image
from safetensors.numpy import save_file
from test_convert import CONVERT, EXPORT, assert_same, load, run, tensors, write_json, write_torch
from test_wan_path import TEXT, save_tokenizer

from oneforcing_jax import families, generate
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.families import encoders, records
from oneforcing_jax.families.wan22_5b import FAMILY, SMALL, WAN_5B
from oneforcing_jax.generation import pretrained
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.vae_layers import WAN22, VAEConfig
from oneforcing_jax.models.wan import WanConfig

torch = pytest.importorskip("torch")

VAE = dataclasses.replace(WAN22, width=4, decoder_width=6)
WAN = WanConfig(32, 48, 2, 2, in_dim=48, out_dim=48, text_dim=16, text_len=12, freq_dim=256)
STEM = "diffusion_pytorch_model"


def published(folder: Path, layout: str) -> dict[str, Any]:
    """Random weights as the original or diffusers has them; tensors of transformer and VAE."""
    original = layout == "original"
    text = tensors(
        (umt5_keys.original if original else umt5_keys.transformers)(TEXT),
        FAMILY.abstract(TEXT),
        "bfloat16",
    )
    names = wan_keys.transformer if original else wan_keys.diffusers
    made = {
        "transformer": tensors(names(WAN.num_layers), FAMILY.abstract(WAN)),
        "vae": tensors(getattr(vae_keys, layout)(VAE), FAMILY.abstract(VAE)),
    }
    if original:
        folder.mkdir()
        settings = {"model_type": "ti2v", "num_heads": WAN.num_heads, "text_len": WAN.text_len}
        write_json(folder / "config.json", settings)
        save_file(made["transformer"], folder / f"{STEM}.safetensors")
        write_torch(folder / "Wan2.2_VAE.pth", made["vae"])
        write_torch(folder / "models_t5_umt5-xxl-enc-bf16.pth", text)
        save_tokenizer(folder / "google/umt5-xxl")
        return made
    index = {"expand_timesteps": True, "boundary_ratio": None}
    write_json(folder / "model_index.json", index)
    # A config.json that goes around says image_dim of tensors that the 5B has not.
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "image_dim": 1280}
    write_json(folder / "transformer/config.json", heads)
    write_json(folder / "vae/config.json", {"base_dim": 4, "decoder_base_dim": 6, "z_dim": 48})
    (folder / "text_encoder").mkdir()
    for part, state in made.items():
        save_file(state, folder / part / f"{STEM}.safetensors")
    save_file(text, folder / "text_encoder/model.safetensors")
    save_tokenizer(folder / "tokenizer")
    return made


@pytest.mark.parametrize("layout", ["original", pytest.param("diffusers", marks=pytest.mark.long)])
def test_a_folder_is_converted_and_back(tmp_path: Path, layout: str) -> None:
    made = published(tmp_path / "in", layout)
    run(CONVERT, source=tmp_path / "in", out=tmp_path / "out")
    for part, config in (("transformer", WAN), ("vae", VAE), ("text", TEXT)):
        net = records.read(tmp_path / "out" / part, "nets", "params_model")
        assert net["more"]["family"] == "wan22_5b" and net["layout"] == layout
        found = records.config_of(net, config.dtype)
        length = {"text_len": 12} if part == "transformer" else {}
        assert dataclasses.replace(found, **length) == config
    codec = load(tmp_path / "out/vae", "model", FAMILY.abstract(VAE), "float32")
    for key, leaf in getattr(vae_keys, layout)(VAE).items():
        tensor = made["vae"][key]
        back = keys.tensor(leaf, keys.get(codec, leaf.path), tensor.shape)
        assert back.dtype == tensor.dtype and back.tobytes() == tensor.tobytes(), key
    if layout == "original":
        run(EXPORT, checkpoint=tmp_path / "out/transformer", out=tmp_path / "back.pt")
        back = torch.load(tmp_path / "back.pt", weights_only=True)["generator"]
        expected = {f"model.{name}": value for name, value in made["transformer"].items()}
        assert_same(back, expected)
    source = pretrained.find(tmp_path / "out")
    assert (source.frames, source.rows, source.columns) == (31, 44, 80)
    assert source.fps == 24 and source.family is families.find("wan22_5b")


def test_sizes_are_the_published_ones() -> None:
    shapes = FAMILY.abstract(WAN_5B)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 4_999_787_712
    assert FAMILY.latents == (31, 44, 80)
    codec, _ = FAMILY.outline(np.dtype(np.float32), "tiny")
    small, _ = codec.decoder
    assert (small.channels, small.space_stride, small.time_stride) == (48, 16, 4)


def test_records_of_wan21_are_as_they_were() -> None:
    """The fingerprint of a network, which stores keep, is made of its record."""
    new = {"decoder_width", "patch", "shortcuts"}
    for older, newer in ((VAEConfig(), VAE), (TinyDecoderConfig(), SMALL)):
        said = records.describe(older)["config"]
        assert not new & said.keys()
        added = records.describe(newer)["config"].keys() - said.keys()
        assert added == new & {field.name for field in dataclasses.fields(newer)}


@pytest.mark.long
def test_a_converted_folder_makes_videos(tmp_path: Path) -> None:
    """The teacher's by the VAE, those of a student in a file by the small decoder."""
    made, out = published(tmp_path / "in", "original"), tmp_path / "out"
    write_torch(tmp_path / "taew2_2.pth", Golden("taew2_2_tiny").weights())
    student = {f"model.{name}": value for name, value in made["transformer"].items()}
    write_torch(tmp_path / "student.pt", {"generator": student})
    run(CONVERT, source=tmp_path / "in", out=out)
    run(CONVERT, source=tmp_path / "taew2_2.pth", out=out)
    run(CONVERT, source=tmp_path / "student.pt", out=out / "student", num_heads=WAN.num_heads)
    command = ["--prompt=a red", "--size=32x64", "--programs=", "--frames=9"]
    for i, options in enumerate((
        [f"--checkpoint={out}", "--teacher"],
        [f"--checkpoint={out / 'student'}", "--method=framewise", "--decoder=tiny"],
    )):  # fmt: skip
        file = tmp_path / f"{i}.mp4"
        generate.main([*command, f"--out={file}", *options])
        video, times = read_video(file)
        assert video.shape == (9, 32, 64, 3) and times.rate == 24
    codec = encoders.load(out, 12, jnp.float32).codec
    assert codec.latent_shape(9, 32, 64) == (3, 48, 2, 4)
    random = np.random.default_rng(0).integers(0, 256, (9, 32, 64, 3), np.uint8)
    latents = codec.encode(random)
    assert latents.shape == (3, 48, 2, 4) and np.isfinite(latents).all()


ROOT = Path(__file__).parents[1]
# The sizes of these weights, of clips of 9 frames of 32x64, and of a run of two iterations a stage.
SIZES = [
    *(f"{net}.{field}={getattr(WAN, field)}"
      for net in ("generator", "teacher", "critic")
      for field in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len")),
    "head.layers=(1,)", "head.ffn_dim=16", "one_forcing.gradient_blocks=2",
    "latents.frames=3", "latents.rows=2", "latents.columns=4", "ode.steps=2", "ode.kept=(0,1)",
    "stages.ode_pairs.count=2", "stages.ode_pairs.batch=2", "stages.one_forcing.samples.every=0",
    *(f"stages.{stage}.{field}=2" for stage in ("teacher_forcing", "causal_ode", "one_forcing")
      for field in ("iterations", "batch")),
    "stages.teacher_forcing.microbatch=0", "stages.causal_ode.microbatch=0",
    "one_forcing.generator_every=1",
]  # fmt: skip


@pytest.mark.long
def test_a_folder_becomes_a_student_that_diffusers_computes(tmp_path: Path) -> None:
    """Converted, encoded, trained in all stages, shown with and without an image, and given back."""
    diffusers = pytest.importorskip("diffusers")
    published(tmp_path / "in", "diffusers")
    weights, videos = tmp_path / "out", tmp_path / "videos"
    run(CONVERT, source=tmp_path / "in", out=weights)
    videos.mkdir()
    random, lines = np.random.default_rng(0), []
    for i in range(2):
        write_video(videos / f"{i}.mp4", random.integers(0, 256, (9, 32, 64, 3), np.uint8), 24)
        lines.append(json.dumps({"video": f"{i}.mp4", "caption": "a red"}))
    (videos / "captions.jsonl").write_text("\n".join(lines))
    store, work = tmp_path / "store", tmp_path / "work"
    start = f"{weights / 'transformer'}:model"
    reads = ("teacher_forcing", "ode_pairs", "one_forcing")
    fields = [
        *SIZES, *(f"stages.{stage}.data={store}" for stage in reads),
        f"stages.teacher_forcing.init.model={start}",
        *(f"stages.one_forcing.init.{net}={start}" for net in ("critic", "teacher")),
    ]  # fmt: skip
    overrides = [f"--config.{field}" for field in fields]
    config = f"--config={ROOT / 'configs/wan22_5b_framewise.py'}"

    def command(*arguments: str) -> None:
        flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
        done = subprocess.run(
            [sys.executable, "-m", "oneforcing_jax.cli", *arguments],
            env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    command(
        "encode", f"--videos={videos}", f"--captions={videos / 'captions.jsonl'}",
        f"--checkpoint={weights}", f"--out={store}", config, *overrides,
    )  # fmt: skip
    command("train", config, f"--workdir={work}", *overrides)
    student = work / "one_forcing"
    Image.fromarray(read_video(videos / "0.mp4")[0][0]).save(tmp_path / "first.png")
    first = f"--image={tmp_path / 'first.png'}"
    for name, more in {
        "text": [f"--checkpoint={student}"],
        "image": [f"--checkpoint={student}", first],
        "teacher": [f"--checkpoint={weights}", "--teacher", "--sampling_steps=2", first],
    }.items():
        size = ["--frames=9", "--size=32x64"] if name == "teacher" else []
        out = f"--out={tmp_path / name}.mp4"
        generate.main([*more, *size, "--prompt=a red", "--save_latents", "--programs=", out])
        assert read_video(tmp_path / f"{name}.mp4")[0].shape == (9, 32, 64, 3)
    made = {name: np.load(tmp_path / f"{name}.npy") for name in ("text", "image", "teacher")}
    kept = Store.open(store).read(0)["latents"]
    for name in ("image", "teacher"):
        assert error(made[name][0], kept[0]) < 0.02
    assert error(made["image"][1:], made["text"][1:]) > 0.01

    run(EXPORT, checkpoint=student, layout="diffusers", num_heads=2, out=tmp_path / "back")
    theirs = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "back")
    source = pretrained.find(student, dtype="float32")
    x, text = (
        jnp.asarray(kept, jnp.float32)[None],
        random.normal(size=(1, 12, 16)).astype(np.float32),
    )
    sigma, tokens = np.float32([[0, 0.5, 0.5]]), WAN.frame_tokens(2, 4)
    told = torch.from_numpy(1000 * np.repeat(sigma, tokens, 1))
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(np.array(x)).transpose(1, 2), told, torch.from_numpy(text),
            return_dict=False,
        )[0]  # fmt: skip
    found = source.model.apply(source.params(None), x, sigma, prompted(text)).flow
    assert error(found, expected.transpose(1, 2).numpy()) < 1e-4
