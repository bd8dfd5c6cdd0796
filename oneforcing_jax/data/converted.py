"""Networks as tools/convert_wan.py writes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from oneforcing_jax import sharding
from oneforcing_jax.convert import sizes
from oneforcing_jax.convert.sizes import MODEL
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.models import tiny_decoder
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system import checkpoint, places
from oneforcing_jax.system.files import MORE, VERSION, read_versioned


def net(
    folder: Path, mesh: Any, kind: type[sizes.Config], init: Any, dtype: Any = None
) -> tuple[Any, Any, str]:
    """Config, parameters and fingerprint of one network.

    Args:
      folder: of the network.
      mesh: on which its parameters are laid by their logical axes.
      kind: of the network that is expected.
      init: (config, key) to boxed parameters.
      dtype: of its arithmetic; None: as its weights are stored.
    """
    config: Any = described(folder, kind)
    stored = config.dtype
    config = dataclasses.replace(config, dtype=dtype or stored)
    boxed = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored, sharding=leaf.sharding),
        sharding.abstract(boxed, mesh),
    )
    params = checkpoint.load_net(folder, "model", shapes)
    return config, params, fingerprint(folder)


def described(folder: Path, kind: type[sizes.Config]) -> sizes.Config:
    """The config of one network in the dtype of its weights.

    Raises:
      InputError: its record is damaged, or of another network.
    """
    found = sizes.read(folder, "nets", "params_model")
    if found.get("dtype") not in DTYPES:
        raise InputError(
            f"{folder / MODEL}: expected a dtype among {sorted(DTYPES)}, found {found.get('dtype')!r}; "
            "convert it again"
        )
    config = sizes.config_of(found, DTYPES[found["dtype"]])
    if not isinstance(config, kind):
        raise InputError(
            f"{folder / MODEL}: expected a network of {kind.__name__}, found one of "
            f"{type(config).__name__}; put each network into the folder of its name, or convert it again"
        )
    return config


def fingerprint(folder: Path) -> str:
    """A short name of a network, from its record as releases before versions wrote it: stores keep it."""
    record = read_versioned(folder / MODEL)
    content = places.read(folder / MODEL)
    if record.pop(VERSION, None) is not None:
        content = json.dumps(_without_more(record), indent=1).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _without_more(record: dict[str, Any]) -> dict[str, Any]:
    nets = {
        item: {k: v for k, v in net.items() if k != MORE} for item, net in record["nets"].items()
    }
    return {name: value for name, value in record.items() if name != MORE} | {"nets": nets}


def tiny(folder: Path, mesh: Any, dtype: Any, codec: VAEConfig) -> tuple[Any, Any]:
    """Config and parameters of the tiny decoder for the latents of a VAE; see `net`.

    Raises:
      MissingInput, InputError: there is none, or one for other latents.
    """
    if not (folder / MODEL).is_file():
        raise MissingInput(
            f"decoder: expected {folder} as tools/convert_wan.py makes it, found none; run it with "
            f"--source taew2_1.pth --out {folder.parent}"
        )
    config, params, _ = net(folder, mesh, TinyDecoderConfig, tiny_decoder.init_params, dtype)
    expected, found = ((c.channels, c.time_stride, c.space_stride) for c in (codec, config))
    if expected != found:
        raise InputError(
            f"decoder: expected {folder} to take latents of {expected[0]} channels with strides "
            f"{expected[1:]} as the VAE does, found {found[0]} and {found[1:]}; convert taew2_1.pth"
        )
    return config, params
