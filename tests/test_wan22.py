"""Wan2.2's 5B: from a random folder of published layouts to videos, through the real commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden
from safetensors.numpy import save_file
from test_convert import CONVERT, EXPORT, assert_same, load, run, tensors, write_json, write_torch
from test_wan_path import TEXT, save_tokenizer

from oneforcing_jax import families, generate
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.data.video import read_video
from oneforcing_jax.families import encoders, records
from oneforcing_jax.families.wan22_5b import FAMILY, SMALL, WAN_5B
from oneforcing_jax.generation import pretrained
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
