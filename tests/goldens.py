"""Recorded vectors of the original PyTorch implementations, random models of diffusers, and errors."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.models import critic, wan
from oneforcing_jax.models.model import Model
from oneforcing_jax.sharding import unbox

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """One recorded file: `config`, `inputs[name]`, `outputs[name]`, and weights by prefix."""

    def __init__(self, name: str) -> None:
        arrays = np.load(FOLDER / f"{name}.npz")
        self.config = json.loads(str(arrays["config"]))
        self.inputs = {k[3:]: jnp.asarray(arrays[k]) for k in arrays.files if k.startswith("in/")}
        self.outputs = {k[4:]: arrays[k] for k in arrays.files if k.startswith("out/")}
        self._weights = {k[8:]: arrays[k] for k in arrays.files if k.startswith("weights/")}

    def weights(self, prefix: str = "") -> dict[str, np.ndarray]:
        return {k[len(prefix) :]: v for k, v in self._weights.items() if k.startswith(prefix)}

    def gradients(self) -> dict[str, np.ndarray]:
        return {k[5:]: v for k, v in self.outputs.items() if k.startswith("grad/")}

    def model(self, name: str = "model", prefix: str = "") -> tuple[wan.WanConfig, Any]:
        """Config and parameters of a transformer."""
        config = wan_config(self.config[name])
        tensors = {k: v for k, v in self.weights(prefix).items() if k.startswith("model.")}
        key_map = keys_wan.transformer(config.num_layers, "model.")
        return config, jax.tree.map(
            jnp.asarray, keys.load(key_map, tensors, abstract(wan.model(config)))
        )

    def critic(self, name: str, prefix: str) -> tuple[Model, Any]:
        """The critic and its parameters."""
        head = critic.HeadConfig(tuple(self.config["gan"]["layers"]), self.config["gan"]["ffn"])
        net = critic.model(wan_config(self.config[name]), head)
        key_map = keys_wan.critic(net.config.num_layers, len(head.layers))
        return net, jax.tree.map(
            jnp.asarray, keys.load(key_map, self.weights(prefix), abstract(net))
        )


def dump(
    key_map: keys.KeyMap, params: Any, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The inverse of `keys.load`: PyTorch tensors of the given shapes."""
    return {
        key: keys.tensor(leaf, keys.get(params, leaf.path), shapes[key])
        for key, leaf in key_map.items()
    }


def wan_config(config: dict[str, Any]) -> wan.WanConfig:
    names = (
        "dim",
        "ffn_dim",
        "num_heads",
        "num_layers",
        "in_dim",
        "out_dim",
        "text_dim",
        "text_len",
        "freq_dim",
    )
    return wan.WanConfig(**{name: config[name] for name in names})


@functools.lru_cache(maxsize=64)
def abstract(net: Model) -> Any:
    """Shapes of a network's parameters."""
    return unbox(net.shapes)


def error(found: Any, expected: Any) -> float:
    """Relative L2 distance."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12))


@functools.cache
def allowed(limit: float) -> float:
    """The error that is allowed where `limit` is on a CPU: accelerators add in other orders."""
    return limit if jax.default_backend() == "cpu" else 10 * limit


# Of networks in bfloat16, whose numbers have 8 bits.
ROUNDED = 0.02


def in_bfloat16(config: wan.WanConfig, params: Any) -> tuple[wan.WanConfig, Any]:
    """A transformer as it is used, with the kernels that an accelerator has for it."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    return dataclasses.replace(config, dtype=jnp.bfloat16), rounded


def transformer_of_diffusers(config, noise):
    """A random transformer of diffusers, every parameter moved by `noise`, and its weights as ours."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(
        patch_size=(1, config.patch, config.patch),
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    key_map = keys_wan.diffusers(config.num_layers)
    assert set(key_map) == set(state)
    return theirs, keys.load(key_map, state, abstract(wan.model(config)))
