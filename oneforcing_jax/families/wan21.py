"""Wan2.1 text to video: 1.3B and 14B, their VAE with its tiny decoder, and UMT5-XXL."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from oneforcing_jax.convert import refused, sizes
from oneforcing_jax.convert.keys import KeyMap
from oneforcing_jax.convert.tiny_decoder import ENCODER
from oneforcing_jax.families import Family, Network, Video, records
from oneforcing_jax.families.records import TOKENIZER
from oneforcing_jax.families.wan_codec import WanCodec, tiny
from oneforcing_jax.families.wan_text import WanText, load_tokenizer, mesh_of
from oneforcing_jax.models import critic, tiny_decoder, umt5, vae, wan
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.models.wan import WanConfig

WAN_1_3B = WanConfig(
    dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_dim=16, out_dim=16,
    text_dim=4096, text_len=sizes.TEXT_LEN, freq_dim=256,
)  # fmt: skip
WAN_14B = dataclasses.replace(WAN_1_3B, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
VIDEO = Video(
    frames=81,
    rows=480,
    columns=832,
    fps=16.0,
    shift=5.0,
    steps=(1000.0,),
    # The paper's first block (its section on generation): the others build on it.
    first_steps=(1000.0, 750.0, 500.0, 250.0),
    sampling_steps=50,
    guidance=5.0,
    # As published, before cleaning (which makes its commas half-width).
    negative=(
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
        "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
        "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
    ),
)
# The name of its decoder for previews, and of the folder that holds it beside vae/ and text/.
TINY = "tiny"


def load(
    folder: Path, text_len: int | None, dtype: Any, mesh: Any, decoder: str | None, weights: bool
) -> tuple[WanCodec, WanText]:
    """What tools/convert_wan.py wrote: vae/ and text/, and the decoder beside them."""
    length = text_len or sizes.TEXT_LEN
    if not weights:
        return _described(folder, length, decoder)
    every = mesh_of(records.described(folder / "text", UMT5Config), jax.local_devices())
    config, params, fingerprint = records.net(
        folder / "vae", mesh or every, VAEConfig, vae.init_params, dtype
    )
    small = tiny(folder / decoder, mesh or every, dtype, config) if decoder else None
    codec = WanCodec(config, params, fingerprint, small)
    records.verify(folder / "text", TOKENIZER)
    tokenizer = load_tokenizer(folder / "text" / TOKENIZER)
    text, reader = folder / "text", records.described(folder / "text", UMT5Config)

    def words(mesh: Any) -> Any:
        return records.net(text, mesh, UMT5Config, umt5.init_params)[1]

    return codec, WanText(reader, words, tokenizer, length, records.fingerprint(text))


def _described(folder: Path, length: int, decoder: str | None) -> tuple[WanCodec, WanText]:
    """Both without weights; the digest of the codec is also that of its decoder."""
    config = records.described(folder / "vae", VAEConfig)
    both = [records.fingerprint(folder / part) for part in ("vae", decoder) if part]
    words = records.fingerprint(folder / "text")
    reader = records.described(folder / "text", UMT5Config)
    return WanCodec(config, None, "+".join(both)), WanText(reader, None, None, length, words)


def outline(
    codec: VAEConfig, small: TinyDecoderConfig, dtype: Any, decoder: str | None = None
) -> tuple[WanCodec, WanText]:
    """Both without weights: the published text encoder, and a codec of these sizes."""
    other = (dataclasses.replace(small, dtype=dtype), None) if decoder else None
    made = WanCodec(dataclasses.replace(codec, dtype=dtype), None, decoder=other)
    return made, WanText(UMT5Config(), None, None, sizes.TEXT_LEN)


def _init(config: WanConfig, key: jax.Array, head: HeadConfig | None = None) -> Any:
    return (critic.model(config, head) if head else wan.model(config)).init(key)


def _transformer(
    shapes: sizes.Shapes,
    source: str,
    settings: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    prefix: str = "",
) -> tuple[WanConfig, KeyMap]:
    config = sizes.wan(shapes, prefix, source, settings, num_heads)
    refused.check_config(config, source)
    return config, sizes.wan_key_map(shapes, prefix)


FAMILY = Family(
    video=VIDEO,
    channels=16,
    strides=(4, 8),
    model=wan.model,
    load=load,
    outline=functools.partial(outline, VAEConfig(), TinyDecoderConfig()),
    decoders=(TINY,),
    models={"1.3b": WAN_1_3B, "14b": WAN_14B},
    networks={
        "transformer": Network(WAN_1_3B, _init, _transformer),
        "vae": Network(VAEConfig(), vae.init_params, sizes.vae_config),
        "text": Network(UMT5Config(), umt5.init_params, sizes.text_config, sizes.TIED),
        TINY: Network(
            TinyDecoderConfig(),
            tiny_decoder.init_params,
            sizes.tiny_config,
            (ENCODER,),
        ),
    },
    students={"framewise": 1, "chunkwise": 3},
)
