"""Parameters of the transformer and the critic: random ones, shapes, dtypes, shardings."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.models.critic import Critic
from oneforcing_jax.models.wan import WanConfig, WanDiT

# Names that begin so belong to what computes in float32.
_WIDE = ("time_", "classifier", "norm")


def init(module: WanDiT | Critic, key: jax.Array) -> Any:
    """Random parameters, each in a box with the logical names of its axes.

    They are made with one clip of one token, which no mesh could split, so no mesh is in use here.
    """
    c = module.config
    latents = jnp.zeros((1, 1, c.in_dim, c.patch, c.patch))
    text = jnp.zeros((1, c.text_len, c.text_dim))
    with sharding.no_mesh():
        return module.init(key, latents, jnp.zeros(1), text)["params"]


@functools.cache
def shapes(module: WanDiT | Critic) -> Any:
    """Shapes of the parameters, in their boxes."""
    return jax.eval_shape(lambda: init(module, jax.random.key(0)))


def compute_dtype(path: Any, config: WanConfig) -> Any:
    """The dtype that a parameter is used in: `config.dtype` for matrices and biases of linear layers, but
    float32 for those of the time embedding and of the critic's classifier, and for all others."""
    names = [part.key for part in path]
    wide = names[-1] not in ("kernel", "bias") or any(n.startswith(_WIDE) for n in names)
    return jnp.float32 if wide else config.dtype


def in_compute_dtype(params: Any, config: WanConfig, trained: bool = False) -> Any:
    """Casts parameters once; otherwise each layer of each forward would cast them again. Biases that are
    `trained` stay as they are: their gradients are sums over all tokens of all forwards."""

    def one(path: Any, x: jax.Array) -> jax.Array:
        kept = trained and path[-1].key != "kernel"
        return x if kept else x.astype(compute_dtype(path, config))

    return jax.tree_util.tree_map_with_path(one, params)


def unstacked(params: Any) -> Any:
    """Parameters whose layers lie apart, from stacked ones."""
    layers = len(params["blocks"]["modulation"])
    return params | {
        "blocks": tuple(jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(layers))
    }


def read_only(abstract: Any, config: WanConfig) -> Any:
    """Abstract parameters that no update changes, in the dtypes they are used in."""
    return jax.tree_util.tree_map_with_path(
        lambda path, like: like.update(dtype=compute_dtype(path, config)), abstract
    )


def in_use(module: WanDiT | Critic, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of parameters that are only read."""
    return read_only(sharding.abstract(shapes(module), mesh), module.config)
