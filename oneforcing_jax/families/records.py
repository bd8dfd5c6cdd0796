"""Networks in folders, as tools/convert_wan.py writes them: what a record says, and the weights beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import families, sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.setup import ranges
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system import integrity, places, saved
from oneforcing_jax.system.files import MORE, VERSION, has_checksum, read_versioned

# A converted network has the first beside it, which says what it is, and a text encoder also its tokenizer.
MODEL, TOKENIZER = "model.json", "tokenizer"
# The only checkpoint of a converted network.
STEP = "0"
# What is made one by one is never as many as a record may claim.
_MOST = {"blocks": 100, "layers": 1000, "num_layers": 1000}
_ARITHMETIC = {"dtype", "remat"}
# Sizes that later releases have. Where they are as they always were, records do not say them: what is
# converted again has the record, and so the fingerprint, that it had.
_LATER = {
    "VAEConfig": ("decoder_width", "patch", "shortcuts"),
    "TinyDecoderConfig": ("patch",),
}


def read(folder: Path, *keys: str) -> dict[str, Any]:
    """What the record of a converted folder says below some keys, compared with what was written.

    Raises:
      InputError: it is damaged, of a newer form, or lacks the checksums that were written with it.
    """
    file = folder / MODEL
    found = read_versioned(file, *keys)
    known = has_checksum(file)
    if known and not any(integrity.is_sealed(place) for place in (folder, folder / STEP)):
        raise InputError(
            f"{folder}: expected the {integrity.SUMS} of its conversion, found none; restore it from a copy, "
            "or convert again"
        )
    verify(folder, MODEL)
    if not known and not integrity.is_sealed(folder):
        integrity.say(file, integrity.OLD)
    return found


def verify(folder: Path, name: str) -> None:
    """Compares a file or folder in a converted one with its checksums, unless it came later: a tokenizer may.

    Raises:
      InputError: it is damaged.
    """
    known = integrity.known(folder) if integrity.is_sealed(folder) else ()
    if any(file == name or file.startswith(f"{name}/") for file in known):
        integrity.verify(folder, name)


def describe(config: Any, head: HeadConfig | None = None) -> dict[str, Any]:
    """The architecture as JSON: the fields of the config, without those of its arithmetic."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _ARITHMETIC}
    fields = {k: v for k, v in fields.items() if _later(config).get(k, ...) != v}
    record = {"kind": type(config).__name__, "config": fields}
    if head:
        record["head"] = {"taps": len(head.layers), "ffn_dim": head.ffn_dim}
    return record


def _later(config: Any) -> dict[str, Any]:
    """The fields of a config that came later, as they were before."""
    names = _LATER.get(type(config).__name__, ())
    return {
        field.name: field.default for field in dataclasses.fields(config) if field.name in names
    }


def config_of(net: Mapping[str, Any], dtype: Any = jnp.float32, file: Path = Path(MODEL)) -> Any:
    """The inverse of `describe`, with a compute dtype; the record names the family that knows the sizes.

    Args:
      net: the network's part of the record.
      dtype: of the computation.
      file: that record.

    Raises:
      InputError: a family, a kind or sizes that this release does not know.
    """
    family = families.of(net, file)
    published = [network.config for network in family.networks.values()]
    kinds = {type(config).__name__: config for config in published}
    try:
        like, fields = kinds[net["kind"]], dict(net["config"])
        for name, value in fields.items():
            if not fits(getattr(like, name), value, _MOST.get(name, 2**31)):
                raise ValueError(f"{name} {str(value)[:60]}")
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return dataclasses.replace(like, **_later(like) | tuples | {"dtype": dtype})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{MODEL}: expected a network of {', '.join(kinds)}, found another, or sizes that are not known "
            f"here ({error}); use the release that wrote it, or convert it again"
        ) from None


def fits(like: Any, value: Any, most: int) -> bool:
    """Whether a field of a record can stand for one like another: a count below `most`, a number, a switch,
    or several of them."""
    if isinstance(like, tuple):
        few = isinstance(value, list | tuple) and len(value) < 1000
        return few and all(fits(like[0], inner, most) for inner in value)
    if type(like) is int:
        return type(value) is int and 0 < value < most
    if type(like) is float:
        return type(value) in (int, float) and abs(value) < ranges.MOST
    return type(value) is type(like)


def net(folder: Path, mesh: Any, kind: type, init: Any, dtype: Any = None) -> tuple[Any, Any, str]:
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
    params = saved.load_net(folder, "model", shapes)
    return config, params, fingerprint(folder)


def described(folder: Path, kind: type) -> Any:
    """The config of one network in the dtype of its weights.

    Raises:
      InputError: its record is damaged, or of another network.
    """
    found = read(folder, "nets", "params_model")
    if found.get("dtype") not in DTYPES:
        raise InputError(
            f"{folder / MODEL}: expected a dtype among {sorted(DTYPES)}, found {found.get('dtype')!r}; "
            "convert it again"
        )
    config = config_of(found, DTYPES[found["dtype"]], folder / MODEL)
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
