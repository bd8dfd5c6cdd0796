"""Layers that are alike, one after the other: how they run, and what of them the backward pass recomputes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from oneforcing_jax.models import kernels

KeyValue = tuple[jax.Array, jax.Array]
# What `attend` reads beside queries, keys and values, and what it gives back, layer by layer: a cache, a
# stored context, or None.
Memory = Any
Attend = Callable[[jax.Array, jax.Array, jax.Array, Memory], tuple[jax.Array, Memory]]
# tap(layer number, tokens [b, f, n, d], state) -> state
Tap = Callable[[jax.Array, jax.Array, Any], Any]

REMAT = ("none", "full", "attention", "dots", "offload")
_INPUT = "layer_input"


def run(layer: Callable[..., Any], carry: Any, count: int, *per_layer: Any) -> Any:
    """Runs layers: a scan where the first tree of `per_layer` is stacked, a loop where it is a tuple."""
    if not isinstance(per_layer[0], tuple):
        return jax.lax.scan(layer, carry, (*per_layer, jnp.arange(count)))
    new = []
    for i in range(count):
        carry, made = layer(carry, (*(x if x is None else x[i] for x in per_layer), jnp.int32(i)))
        new.append(made)
    return carry, tuple(new)


def recomputed(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A layer of which the backward pass recomputes what `remat`, out of REMAT, says.

    Args:
      layer: called as layer((x, rest of the carry), what belongs to this layer).
    """
    if remat == "none":
        return layer

    def named(carry: Any, per_layer: Any) -> Any:
        x, rest = carry
        return layer((checkpoint_name(x, _INPUT), rest), per_layer)

    return jax.checkpoint(named, policy=_policy(remat), prevent_cse=False)


def _policy(remat: str) -> Any:
    policies = jax.checkpoint_policies
    if remat == "attention":
        return kernels.chosen().keeps
    if remat == "dots":
        return policies.dots_with_no_batch_dims_saveable
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return None
