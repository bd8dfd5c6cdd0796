"""What files of tensors are, by their names and shapes; what is not supported is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from oneforcing_jax.convert.sizes import VAE_ENDS
from oneforcing_jax.convert.tiny_decoder import TELLING as TINY_FIRST
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.vae_layers import WAN22
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system.files import read_record

Shapes = Mapping[str, tuple[int, ...]]
# A tensor of each model that the others lack, in the original's names and in those of other libraries.
_PATCHES = "patch_embedding.weight"
_VAE = tuple(first for first, _ in VAE_ENDS)
_TEXT = ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight")
# Families whose files are taken, by the channels that a VAE reads, and by those that the others read.
_PIXELS, _LATENTS = {3: "wan21", 3 * WAN22.patch**2: "wan22_5b"}, {48: "wan22_5b"}
# Folders of the two experts in the original and in diffusers, and files of ComfyUI.
_EXPERT = re.compile(
    r"(high|low)_noise_model|transformer_2|.*(high|low)[ _-]?noise.*\.(safetensors|gguf)",
    re.IGNORECASE,
)
# In names of tensors that no text-to-video model has.
_MARKS = {
    "a LoRA, which changes another model": r"\.lora[._]|^lora_|\.diff$",
    "VACE": r"vace_blocks\.",
    "Wan's image-to-video model with CLIP": r"(^|\.)(img_emb|image_embedder)\.",
}
_SUPPORTED = "give a text-to-video model of Wan2.1 or Wan2.2's 5B, or one distilled from them"


def kind(shapes: Mapping[str, object]) -> str:
    """Which model has these tensors: "transformer", "vae", "text", "tiny", or "" for another."""
    if TINY_FIRST in shapes:
        return "tiny"
    if any(name in shapes for name in _VAE):
        return "vae"
    if any(name in shapes for name in _TEXT):
        return "text"
    return "transformer" if any(name.endswith(_PATCHES) for name in shapes) else ""


def family(shapes: Shapes) -> str | None:
    """Which family's files have these tensors; None for a text encoder, which families share."""
    name = next((key for key in shapes if key in (*_VAE, TINY_FIRST) or key.endswith(_PATCHES)), "")
    first = shapes.get(name, ())
    if len(first) < 4:
        return None
    return _PIXELS.get(first[1]) if name in _VAE else _LATENTS.get(first[1], "wan21")


def prefix(shapes: Shapes) -> str:
    """What ComfyUI and others put before every name of a transformer, such as "model.diffusion_model."."""
    found = [name.removesuffix(_PATCHES) for name in shapes if name.endswith(_PATCHES)]
    return next((name for name in found if name.endswith(".")), "") if "" not in found else ""


def check_tensors(shapes: Shapes, source: str) -> None:
    """Refuses tensors of known models that are not supported.

    Raises:
      InputError: names the model.
    """
    first = next((shapes[name] for name in _VAE if name in shapes), ())
    found = [model for model, mark in _MARKS.items() if any(re.search(mark, key) for key in shapes)]
    if kind(shapes) == "vae" and len(first) == 5 and first[1] not in _PIXELS:
        found.append(f"a VAE of {first[1]} channels of pixels")
    if found:
        raise InputError(f"{source}: found {found[0]}, which is not supported; {_SUPPORTED}")


def check_config(config: WanConfig, source: str) -> None:
    """Refuses transformers whose inputs are others than noisy latents.

    Raises:
      InputError: names the model, or its channels.
    """
    if config.in_dim != config.out_dim:
        model = "an image-to-video or control model" + " (Wan I2V)" * (config.in_dim == 36)
        channels = f"{config.in_dim} channels in and {config.out_dim} out"
        raise InputError(
            f"{source}: found {model}, {channels}, which is not supported; {_SUPPORTED}"
        )


def check_experts(path: Path) -> None:
    """Refuses two transformers, each for a part of the noise levels, and one of them alone.

    Raises:
      InputError: names Wan2.2-A14B, and what tells it.
    """
    folder = path if path.is_dir() else path.parent
    inner = {file.name for file in folder.iterdir()} if path.is_dir() else set()
    told = [name for name in sorted({path.name, folder.name} | inner) if _EXPERT.fullmatch(name)]
    if folder.name == "transformer" and (folder.parent / "transformer_2").exists():
        told.append("transformer_2 beside it")
    index = path / "model_index.json"
    if index.is_file() and read_record(index).get("boundary_ratio") is not None:
        told.append(f"boundary_ratio in {index.name}")
    if told:
        raise InputError(
            f"{path}: expected one transformer, found {told[0]}, of Wan2.2-A14B, whose two experts share "
            f"the noise levels, which is not supported; {_SUPPORTED} (--only=vae,text takes the rest)"
        )
