"""Wan's architectures read from the shapes of tensors, so that no config has to be given by hand."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from oneforcing_jax.convert import tiny_decoder as tiny_keys
from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import KeyMap
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import WAN22, VAEConfig
from oneforcing_jax.models.wan import WanConfig

Shapes = Mapping[str, tuple[int, ...]]
Config = WanConfig | VAEConfig | UMT5Config | TinyDecoderConfig
# Every published Wan model has heads of this size and reads prompts of this length.
HEAD_DIM, TEXT_LEN = 128, 512
# What the config.json of an exported student says.
CAUSAL = "causal"
# Names of the token embedding in transformers' files, which may hold it under both.
TIED = ("shared.weight", "encoder.embed_tokens.weight")
# First convolution of a VAE and its last, in the original and in diffusers.
VAE_ENDS = (
    ("encoder.conv1.weight", "decoder.head.2.weight"),
    ("encoder.conv_in.weight", "decoder.conv_out.weight"),
)
# Beginnings of names that the original files do not have.
_DIFFUSERS = ("condition_embedder.", "encoder.conv_in.", "encoder.block.")
# Our names of the fields of config.json, original and diffusers'.
_WAN_FIELDS = {
    **{field.name: field.name for field in dataclasses.fields(WanConfig)},
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
}


def _unlike(source: str, kind: str, shapes: Shapes) -> ValueError:
    found = ", ".join(list(shapes)[:3]) + (", ..." if len(shapes) > 3 else "")
    return InputError(
        f"{source}: expected the tensors of {kind}, found {len(shapes)} tensors ({found}); give a "
        "checkpoint of Wan2.1 text-to-video, of Wan2.2's 5B, or of a model distilled from it"
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered layers there are below a prefix: as many as have a tensor, whatever their numbers."""
    matches = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in shapes)
    return len({match.group(1) for match in matches if match})


def layout(shapes: Shapes) -> str:
    """Whose names these are: "original", or "diffusers" (for the text encoder: transformers)."""
    return "diffusers" if any(key.startswith(_DIFFUSERS) for key in shapes) else "original"


def wan_key_map(shapes: Shapes, prefix: str = "") -> KeyMap:
    """The key map of a transformer's tensors, in either layout."""
    layers = _count(shapes, f"{prefix}blocks.")
    if layout(shapes) == "diffusers":
        return wan_keys.diffusers(layers)
    return wan_keys.transformer(layers, prefix)


def wan(
    shapes: Shapes,
    prefix: str = "",
    source: str = "checkpoint",
    settings: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
) -> WanConfig:
    """The sizes of a transformer.

    Args:
      shapes: of its tensors, in either layout.
      prefix: before their names.
      source: named in errors.
      settings: config.json, which tells what shapes do not; where both tell, they must agree.
      num_heads: overrides both.

    Raises:
      InputError: these are not a transformer's tensors, or config.json is another's.
    """
    key_map = wan_key_map(shapes, prefix)
    names = {leaf.path: key for key, leaf in key_map.items() if leaf.layer in (None, 0)}

    def shape(*path: str) -> tuple[int, ...]:
        key = names.get(path, "")
        if len(shapes.get(key, ())) != (5 if path[0] == "patch_embedding" else 2):
            raise _unlike(source, "a Wan transformer", shapes)
        return shapes[key]

    dim, in_dim, _, patch, _ = shape("patch_embedding", "kernel")
    found: dict[str, Any] = {
        "dim": dim,
        "in_dim": in_dim,
        "patch": patch,
        "ffn_dim": shape("blocks", "ffn", "0", "kernel")[0],
        "text_dim": shape("text_embedding_0", "kernel")[1],
        "freq_dim": shape("time_embedding_0", "kernel")[1],
        "out_dim": shape("head", "kernel")[0] // patch**2,
        "num_layers": _count(shapes, f"{prefix}blocks."),
    }
    given = {_WAN_FIELDS[k]: v for k, v in (settings or {}).items() if k in _WAN_FIELDS}
    for name, value in given.items():
        if type(value) is not int or value < 1:
            raise InputError(
                f"{source}: expected in config.json a whole number of 1 or more as {name}, found "
                f"{value!r}; get the file again"
            )
    for name in found.keys() & given.keys():
        if given[name] != found[name]:
            raise InputError(
                f"{source}: config.json says {name} {given[name]}, the tensors say {found[name]}; "
                "put the model's own config.json beside its tensors"
            )
    return WanConfig(
        **found,
        num_heads=num_heads or given.get("num_heads") or _heads(dim, source),
        text_len=given.get("text_len", TEXT_LEN),
    )


def wan_settings(
    *,
    patch: int,
    num_heads: int,
    dim: int,
    in_dim: int,
    out_dim: int,
    text_dim: int,
    freq_dim: int,
    ffn_dim: int,
    num_layers: int,
) -> dict[str, Any]:
    """What the config.json of diffusers' WanTransformer3DModel says of these sizes."""
    return {
        "patch_size": [1, patch, patch],
        "num_attention_heads": num_heads,
        "attention_head_dim": dim // num_heads,
        "in_channels": in_dim,
        "out_channels": out_dim,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "added_kv_proj_dim": None,
        "image_dim": None,
        "rope_max_seq_len": 1024,
    }


def _heads(dim: int, source: str) -> int:
    if dim % HEAD_DIM:
        raise InputError(
            f"{source}: expected a config.json with the number of heads, or a width of heads of "
            f"{HEAD_DIM}, found none and width {dim}; pass --num_heads"
        )
    return dim // HEAD_DIM


def head(shapes: Shapes, source: str = "checkpoint") -> HeadConfig | None:
    """The adversarial head of a critic; None for a plain transformer.

    The tensors do not say which layers are tapped, so `layers` are 0, 1, 2, ..., as many as there are.
    """
    taps, ffn = _count(shapes, "_gan_ca_blocks."), "_gan_ca_blocks.0.ffn.0.weight"
    if not any(key.startswith(("_gan_ca_blocks.", "_register_tokens.")) for key in shapes):
        return None
    if len(shapes.get(ffn, ())) != 2:
        raise _unlike(source, "a critic", shapes)
    return HeadConfig(tuple(range(taps)), shapes[ffn][0])


def vae_config(
    shapes: Shapes, source: str = "checkpoint", settings: Mapping[str, Any] | None = None
) -> tuple[VAEConfig, KeyMap]:
    """The sizes of a VAE and the key map of its layout.

    The scheme of its stages is that of its release, which the patches of its pixels tell, unless config.json
    tells another.
    """
    s = settings or {}
    diffusers = layout(shapes) == "diffusers"
    first, last = (shapes.get(name, ()) for name in VAE_ENDS[diffusers])
    newer = len(first) == 5 and first[1] == 3 * WAN22.patch**2
    if len(first) != 5 or (newer and len(last) != 5):
        raise _unlike(source, "the VAE of Wan2.1 or Wan2.2", shapes)
    config = VAEConfig(width=first[0])
    if newer:
        config = dataclasses.replace(WAN22, width=first[0], decoder_width=last[1])
    given = {
        "multipliers": s.get("dim_mult"),
        "blocks": s.get("num_res_blocks"),
        "time_downsample": s.get("temperal_downsample"),
        "mean": s.get("latents_mean"),
        "std": s.get("latents_std"),
    }
    config = _replace(config, {name: v for name, v in given.items() if v is not None})
    return config, (vae_keys.diffusers if diffusers else vae_keys.original)(config)


def text_config(
    shapes: Shapes, source: str = "checkpoint", settings: Mapping[str, Any] | None = None
) -> tuple[UMT5Config, KeyMap]:
    """The sizes of a UMT5 encoder and the key map of its layout, with the first name of `TIED`."""
    diffusers = layout(shapes) == "diffusers"
    embedding = next((name for name in TIED if name in shapes), TIED[0])
    # The names of the first layer do not depend on the sizes that are looked for.
    probe = UMT5Config(layers=1)
    table = umt5_keys.transformers(probe, embedding) if diffusers else umt5_keys.original(probe)
    names = {leaf.path: key for key, leaf in table.items()}

    def shape(*path: str) -> tuple[int, ...]:
        if len(shapes.get(names[path], ())) != 2:
            raise _unlike(source, "the UMT5 encoder", shapes)
        return shapes[names[path]]

    vocab, width = shape("embedding")
    buckets, heads = shape("layers", "attention", "bias")
    config = UMT5Config(
        vocab=vocab,
        width=width,
        attention_width=shape("layers", "attention", "q")[0],
        mlp=shape("layers", "mlp", "gate")[0],
        heads=heads,
        buckets=buckets,
        layers=_count(shapes, "encoder.block." if diffusers else "blocks."),
        max_distance=(settings or {}).get("relative_attention_max_distance", 128),
    )
    if diffusers:
        return config, umt5_keys.transformers(config, embedding)
    return config, umt5_keys.original(config)


def tiny_config(
    shapes: Shapes, source: str = "checkpoint", settings: Mapping[str, Any] | None = None
) -> tuple[TinyDecoderConfig, KeyMap]:
    """The sizes of a tiny decoder and its key map."""
    like = TinyDecoderConfig()
    table = tiny_keys.published(like)
    names = {leaf.path: key for key, leaf in table.items()}

    def shape(*path: str) -> tuple[int, ...]:
        if len(shapes.get(names[path], ())) != 4:
            raise _unlike(source, "Wan's tiny autoencoder", shapes)
        return shapes[names[path]]

    stages = range(len(like.time_upsample))
    first, grown = shape("conv_in", "kernel"), [shape(f"ups_{i}", "grow_kernel") for i in stages]
    config = TinyDecoderConfig(
        channels=first[1],
        widths=(first[0], *(shape(f"ups_{i}", "kernel")[0] for i in stages)),
        time_upsample=tuple(out > width for out, width, *_ in grown),
        patch=max(1, math.isqrt(shape("conv_out", "kernel")[0] // 3)),
    )
    return config, table


def is_causal(settings: Mapping[str, Any]) -> bool:
    """Whether config.json says that a transformer makes videos block by block: in our own exports, and by its
    class in others."""
    return bool(settings.get(CAUSAL)) or "Causal" in str(settings.get("_class_name"))


def _replace(config: Any, fields: Mapping[str, Any]) -> Any:
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return dataclasses.replace(config, **tuples)
