"""Distribution matching (paper, section 3.2 and equation for L_DMD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The residual that normalises the gradient is never taken smaller than this.
FLOOR = 1e-6


def gradient(
    x: jax.Array, x0_fake: jax.Array, x0_real: jax.Array, made: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Normalised score difference (x0_fake - x0_real) / mean|x - x0_real|, the mean per sample.

    Args:
      x: generated latents [b, f, c, y, x].
      x0_fake, x0_real: clean latents as the fake and the (guided) real score see them.
      made: [b, f], 0 for given frames, over which the mean does not go; None: all are made.

    Returns:
      [b, f, c, y, x] float32 without gradient, 0 where a score is not finite; and the share of such values,
      which should be 0.
    """
    x, x0_fake, x0_real = (y.astype(jnp.float32) for y in (x, x0_fake, x0_real))
    residual = jnp.abs(x - x0_real).mean(range(1, x.ndim), keepdims=True)
    if made is not None:  # of given frames the residual is 0
        residual /= made.mean(1).reshape(-1, *[1] * (x.ndim - 1))
    difference = (x0_fake - x0_real) / jnp.maximum(residual, FLOOR)
    finite = jnp.isfinite(difference)
    difference = jax.lax.stop_gradient(jnp.where(finite, difference, 0.0))
    # The mean counts what is not finite: one less the mean of many ones may be a little less than nothing.
    return difference, jnp.logical_not(finite).mean()


def loss(x: jax.Array, gradient: jax.Array, frames: int) -> jax.Array:
    """0.5 mean (x - sg(x - gradient))^2 over the last `frames` frames: its gradient is `gradient` / size."""
    x, gradient = x[:, -frames:].astype(jnp.float32), gradient[:, -frames:]
    return 0.5 * jnp.square(x - jax.lax.stop_gradient(x - gradient)).mean()
