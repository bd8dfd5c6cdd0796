"""Parameters of the transformer and the critic: random ones, and their shapes, dtypes and shardings."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.models.critic import Critic
from oneforcing_jax.models.wan import WanConfig, WanDiT, compute_dtype


def init(module: WanDiT | Critic, key: jax.Array) -> Any:
    """Random parameters, each in a box with the logical names of its axes.

    They are made with one clip of one token, which no mesh could split: none is in use here.
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


def read_only(abstract: Any, config: WanConfig) -> Any:
    """Abstract parameters that no update changes, in the dtypes they are used in."""
    return jax.tree_util.tree_map_with_path(
        lambda path, like: like.update(dtype=compute_dtype(path, config)), abstract
    )


def in_use(module: WanDiT | Critic, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of parameters that are only read."""
    return read_only(sharding.abstract(shapes(module), mesh), module.config)
