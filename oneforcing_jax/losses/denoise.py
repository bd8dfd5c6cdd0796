"""Flow matching (paper, equation 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def loss(
    flow: jax.Array, x0: jax.Array, noise: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """mean (v - (eps - x0))^2.

    Args:
      flow, x0, noise: [b, f, c, y, x].
      weight: [b, f], of each frame's mean; None: 1.
    """
    squared = jnp.square(flow.astype(jnp.float32) - (noise - x0))
    return (squared if weight is None else squared * weight[..., None, None, None]).mean()
