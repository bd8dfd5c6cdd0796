"""Published files as the models of diffusers and transformers that they were published for, in float32.

Where files have the names of diffusers, nothing of ours is between them and the model but the reader of
files. The original's names are brought to diffusers' by our key maps.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from oneforcing_jax import families
from oneforcing_jax.convert import refused, sizes
from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import Tensors
from oneforcing_jax.convert.source import Part
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system import room

# Bytes of a number in float32, and of one in the file beside it while it is read.
_BYTES = 4


def model(part: Part) -> Any:
    """The model that the files of one part are of, ready to be called.

    Raises:
      InputError: files that do not fit it, or too little memory.
    """
    import torch

    tensors = part.open()
    family = families.find(refused.family(tensors.shapes) or families.FIRST)
    config, table = family.networks[part.name].read(tensors.shapes, str(part), part.settings)
    needed = _BYTES * sum(float(np.prod(tensors.shapes[name])) for name in table if name in tensors)
    room.check_memory(
        f"{part} in float32", needed, "verify it on a machine with more, or the others with --only"
    )
    # In files of the original nothing says what diffusers' config does, but what our reader found.
    settings = part.settings if sizes.layout(tensors.shapes) == "diffusers" else {}
    with torch.device("meta"):
        made = empty(part.name, config, settings)
    state = _state(part, config, table, tensors)
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    state |= {tied: state[sizes.TIED[0]] for tied in sizes.TIED if tied in shapes}
    wrong = sorted(shapes.keys() ^ state.keys())
    wrong = wrong or [name for name in shapes if _long(shapes[name]) != _long(state[name].shape)]
    if wrong:
        raise InputError(
            f"{part}: expected the tensors of {type(made).__name__}, found others ({', '.join(wrong[:4])}); "
            "give the folder of a Wan model or of its diffusers version"
        )
    made.load_state_dict({k: v.reshape(shapes[k]) for k, v in state.items()}, assign=True)
    if any(buffer.is_meta for buffer in made.buffers()):
        # Tables of positions, which no file holds; they do not depend on the number of layers.
        small = empty(part.name, config, {**settings, "num_layers": 1})
        for name, buffer in small.named_buffers():
            owner, _, last = name.rpartition(".")
            setattr(made.get_submodule(owner), last, buffer)
    gc.collect()
    return made.requires_grad_(False).eval()


def _long(shape: Iterable[int]) -> list[int]:
    """A shape without its axes of 1, which files of one network may have or not."""
    return [size for size in shape if size != 1]


def _state(part: Part, config: Any, table: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Every tensor in float32, under the names of diffusers or transformers."""
    import torch

    names = {leaf: name for name, leaf in key_map(config).items()}
    state = {}
    for name, leaf in table.items():
        if name not in tensors:
            raise InputError(f"{part}: expected a tensor {name}, found none; get the file again")
        state[names[leaf]] = torch.from_numpy(np.array(tensors[name], np.float32))
    tensors.close()
    return state


def key_map(config: Any) -> Mapping[str, Any]:
    """The key map of a network in the names of diffusers or transformers."""
    if isinstance(config, WanConfig):
        return wan_keys.diffusers(config.num_layers)
    if isinstance(config, VAEConfig):
        return vae_keys.diffusers(config)
    return umt5_keys.transformers(config, sizes.TIED[0])


def empty(name: str, config: Any, settings: Mapping[str, Any]) -> Any:
    """A model with any weights: of its own config.json, as far as there is one, or of our sizes."""
    given = {key: value for key, value in settings.items() if not key.startswith("_")}
    if name == "text":
        import transformers

        return transformers.UMT5EncoderModel(
            transformers.UMT5Config(**(_text(config) | _but(given)))
        )
    import diffusers

    if name == "vae":
        return diffusers.AutoencoderKLWan.from_config(_vae(config) | given)
    return diffusers.WanTransformer3DModel.from_config(_transformer(config) | given)


def _but(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of transformers without those that say how a file was written."""
    files = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")
    return {key: value for key, value in given.items() if key not in files}


def _text(config: UMT5Config) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "d_model": config.width,
        "d_kv": config.attention_width // config.heads,
        "d_ff": config.mlp,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": "gated-gelu",
    }


def _vae(config: VAEConfig) -> dict[str, Any]:
    return {
        "base_dim": config.width,
        "z_dim": config.channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "temperal_downsample": list(config.time_downsample),
        "latents_mean": list(config.mean),
        "latents_std": list(config.std),
        **newer_vae(config),
    }


def newer_vae(config: VAEConfig) -> dict[str, Any]:
    """What the config of diffusers' AutoencoderKLWan says of Wan2.2 alone."""
    if not config.shortcuts:
        return {}
    return {
        "decoder_base_dim": config.decoder_width or config.width,
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "patch_size": config.patch,
        "is_residual": True,
        "scale_factor_spatial": config.space_stride,
    }


def _transformer(config: WanConfig) -> dict[str, Any]:
    names = inspect.signature(sizes.wan_settings).parameters
    return sizes.wan_settings(**{name: getattr(config, name) for name in names})
