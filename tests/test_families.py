"""Files of weights as people have them: taken for what they are, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import test_convert as made
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from oneforcing_jax.convert import source
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.families.wan21 import FAMILY

torch = pytest.importorskip("torch")
STEM = made.STEM
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
COMFY = "model.diffusion_model."


def convert(path: Path, **options: Any) -> Path:
    out = path.parent / "out"
    made.run(made.CONVERT, source=path, out=out, **options)
    return out


def prefixed(state: made.State, prefix: str) -> made.State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("first", [0, 1], ids=["fp16 first", "bf16 first"])
def test_halves_of_both_kinds_are_held_exactly(tmp_path: Path, first: int) -> None:
    state = made.wan_state()
    kinds = [HALVES[first], HALVES[1 - first]]
    typed = {name: value.astype(kinds["blocks.1." in name]) for name, value in state.items()}
    (tmp_path / "in").mkdir()
    save_file(typed, tmp_path / f"in/{STEM}.safetensors")
    made.write_json(tmp_path / "in/config.json", made.ORIGINAL_CONFIG)
    found = made.load(
        convert(tmp_path / "in") / "transformer", "model", FAMILY.abstract(made.TINY), "float32"
    )
    for layer in (0, 1):
        expected = typed[f"blocks.{layer}.ffn.0.weight"].T.astype(np.float32)
        np.testing.assert_array_equal(found["blocks"]["ffn"]["0"]["kernel"][layer], expected)


@pytest.mark.parametrize("prefix", [COMFY, "diffusion_model."])
def test_one_file_of_any_name_and_prefix(tmp_path: Path, prefix: str) -> None:
    state = made.wan_state("bfloat16")
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/wan2.1_t2v_1.3B_bf16.safetensors"
    save_file(prefixed(state, prefix), file)
    # A file, or the folder that holds it.
    out = convert(file if prefix == COMFY else file.parent, num_heads=2)
    found = made.load(out / "transformer", "model", FAMILY.abstract(made.TINY), "bfloat16")
    kernel = found["blocks"]["ffn"]["0"]["kernel"][1]
    assert made.bits(kernel) == made.bits(state["blocks.1.ffn.0.weight"].T)
    record = json.loads((out / "transformer/model.json").read_text())["nets"]["params_model"]
    assert record["config"]["num_heads"] == 2 and record["dtype"] == "bfloat16"


def test_a_folder_of_comfyui_holds_all_three(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    state = made.wan_state()
    made.write_sharded(folder, prefixed(state, COMFY), "wan", index=False)
    vae = _plain("encoder.conv1.weight", (4, 3, 3, 3, 3))()
    save_file(vae, folder / "wan_2.1_vae.safetensors")
    text = _plain("shared.weight", (9, 4))()
    spiece = {"spiece_model": np.zeros(9, np.uint8)}
    save_file(text | spiece, folder / "umt5_xxl_fp16.safetensors")
    save_file({"visual.proj": np.zeros(3, np.float32)}, folder / "clip_vision_h.safetensors")
    found = {part.name: part.open().shapes for part in source.parts(folder)}
    assert list(found) == list(source.PARTS)
    assert [set(shapes) for shapes in found.values()] == [set(state), set(vae), set(text)]
    save_file(state, folder / "wan_fp16.safetensors")
    with pytest.raises(SystemExit, match="expected one transformer, found wan-0.* and wan_fp16"):
        convert(folder, num_heads=2)


def _file(name: str, state: Callable[[], made.State]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file(state(), folder / name)
        return folder / name

    return make


def _quantised(dtype: str, *scales: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = {name: torch.tensor(value) for name, value in made.wan_state().items()}
        name = "blocks.0.ffn.0.weight"
        state[name] = state[name].to(getattr(torch, dtype))
        state |= {scale: torch.zeros(1) for scale in scales}
        if "scaled_fp8" in scales:
            state["scaled_fp8"] = torch.zeros(2).to(getattr(torch, dtype))
        save_torch({f"{COMFY}{k}": v for k, v in state.items()}, folder / "wan_fp8.safetensors")
        return folder

    return make


def _shards(*names: str) -> Callable[[Path], Path]:
    """The given shards with a part of the tensors each; names hold what is before ".safetensors"."""

    def make(folder: Path) -> Path:
        state = list(made.wan_state().items())
        for i, name in enumerate(names):
            save_file(dict(state[i :: len(names)]), folder / f"{name}.safetensors")
        made.write_json(folder / "config.json", made.ORIGINAL_CONFIG)
        return folder

    return make


def _sized(**change: int) -> Callable[[], made.State]:
    config = dataclasses.replace(made.TINY, **change)
    return lambda: made.tensors(wan_keys.transformer(2), FAMILY.abstract(config))


def _experts(
    *names: str, index: dict[str, Any] | None = None, give: str = "."
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).mkdir()
            save_file(made.wan_state(), folder / name / f"{STEM}.safetensors")
        if index:
            made.write_json(folder / "model_index.json", index)
        return folder / give

    return make


def _named(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in names:
            save_file(made.wan_state(), folder / name)
        return folder / names[0] if len(names) == 1 else folder

    return make


def _plain(name: str, shape: tuple[int, ...]) -> Callable[[], made.State]:
    return lambda: {name: np.zeros(shape, np.float32)}


def _gguf(folder: Path) -> Path:
    (folder / "wan-Q4_K_M.gguf").write_bytes(b"GGUF")
    return folder / "wan-Q4_K_M.gguf"


A14B = "of Wan2.2-A14B, whose two experts"
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fp8": (_quantised("float8_e4m3fn"), r"found F8_E4M3 .*blocks\.0\.ffn\.0\.weight.*in bf16 or fp16"),
    "scaled fp8": (
        _quantised("float8_e4m3fn", "scaled_fp8", "blocks.0.ffn.0.scale_weight"),
        "found scaled F8_E4M3 .*quantised",
    ),
    "newer scales": (_quantised("float8_e5m2", "blocks.0.ffn.0.weight_scale"), "found scaled F8_E5M2"),
    "int8": (_quantised("int8", "blocks.0.ffn.0.weight_scale"), "found scaled I8"),
    "gguf": (_gguf, "another kind of file of quantised weights"),
    "first of 2": (_shards(f"{STEM}-00001-of-00002"), f"found {STEM}-00002-of-00002.safetensors missing"),
    "last of 3": (
        _shards(f"{STEM}-00003-of-00003"),
        f"found {STEM}-00001-of-00003.safetensors, {STEM}-00002-of-00003.safetensors missing",
    ),
    "1 of 20": (_shards(f"{STEM}-00007-of-00020"), "expected 20 files .*00004-of-00020.*, ... missing"),
    "two versions": (
        _shards(*(f"{STEM}-{n}" for n in ("00001-of-00002", "00002-of-00002", "00002-of-00003"))),
        "expected 2 files .* found more",
    ),
    "shard of any name": (_shards("wan-1-of-2"), "found wan-2-of-2.safetensors missing"),
    "A14B of diffusers": (_experts("transformer", "transformer_2"), f"found transformer_2, {A14B}"),
    "its first": (_experts("transformer", "transformer_2", give="transformer"), f"beside it, {A14B}"),
    "its index": (
        _experts("transformer", index={"boundary_ratio": 0.875}),
        f"found boundary_ratio in model_index.json, {A14B}",
    ),
    "A14B": (_experts("high_noise_model", "low_noise_model"), f"found high_noise_model, {A14B}"),
    "its second": (
        _experts("high_noise_model", "low_noise_model", give="low_noise_model"),
        f"found low_noise_model, {A14B}",
    ),
    "A14B of ComfyUI": (
        _named("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors"),
        f"found wan2.2_t2v_high_noise_14B_fp16.safetensors, {A14B}",
    ),
    "one of them": (_named("Wan2_2-T2V-A14B-LowNoise.safetensors"), f"LowNoise.safetensors, {A14B}"),
    "image to video": (_file(f"{STEM}.safetensors", _sized(in_dim=36)), r"Wan I2V\), 36 channels in"),
    "control": (_file("control.safetensors", _sized(in_dim=32)), "32 channels in and 4 out"),
    "another VAE": (
        _file("vae.safetensors", _plain("encoder.conv1.weight", (8, 4, 3, 3, 3))),
        "found a VAE of 4 channels of pixels",
    ),
    "CLIP": (
        _file("i2v.safetensors", lambda: made.wan_state() | _plain("img_emb.proj.0.bias", (3,))()),
        "image-to-video model with CLIP",
    ),
    "VACE": (
        _file("vace.safetensors", lambda: made.wan_state() | _plain("vace_blocks.0.norm3.bias", (3,))()),
        "found VACE, which is not supported",
    ),
    "LoRA": (
        _file("lora.safetensors", _plain("diffusion_model.blocks.0.ffn.0.lora_A.weight", (4, 4))),
        "found a LoRA",
    ),
    "another": (_file("other.safetensors", _plain("unet.weight", (3,))), r"found unet\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, expected = REFUSED[case]
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit, match=expected) as failure:
        made.run(made.CONVERT, source=make(tmp_path / "in"), out=tmp_path / "out", num_heads=2)
    line = str(failure.value)
    assert line.startswith("error: ") and "\n" not in line and ";" in line
    assert not (tmp_path / "out").exists()


def test_what_the_experts_share_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    index = {"boundary_ratio": 0.9, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    folder.mkdir()
    _experts("transformer", "transformer_2", index=index)(folder)
    (folder / "vae").mkdir()
    save_file(
        _plain("encoder.conv_in.weight", (4, 3, 3, 3, 3))(), folder / f"vae/{STEM}.safetensors"
    )
    assert source.locate(str(folder), ["vae"]) == (folder, None)
    assert [part.name for part in source.parts(folder, ["vae"])] == ["vae"]


def test_experts_are_known_before_they_are_downloaded(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []

    def snapshot(repository: str, revision: Any, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        made.write_json(tmp_path / "in/model_index.json", {"boundary_ratio": 0.875})
        return str(tmp_path / "in")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for name in (
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "owner/name:sub/wan2.2_high_noise.safetensors",
    ):
        with pytest.raises(SystemExit, match=A14B):
            made.run(made.CONVERT, source=name, out=tmp_path / "out")
    assert not any("safetensors" in pattern for pattern in asked)
