"""Flow matching with a shifted schedule (paper, appendix A).

Time is carried as sigma, the noise level in [0, 1]; the network's timestep is 1000 sigma. There are no
tables: sigma is analytic in the timestep, and step lists are warped where they enter. The corruption is
x_t = (1 - sigma) x0 + sigma eps, and the network predicts the flow v = eps - x0.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.errors import InputError

TRAIN_STEPS = 1000


def warp(u: jax.typing.ArrayLike, shift: float) -> jax.Array:
    """sigma = k u / (1 + (k - 1) u): the noise level at unwarped time `u` in [0, 1]."""
    u = jnp.asarray(u)
    return shift * u / (1 + (shift - 1) * u)


def warp_steps(steps: Sequence[float], shift: float) -> tuple[float, ...]:
    """Noise levels of a step list given in unwarped timesteps, [1000, 750, 500, 250] for example.

    Raises:
      InputError: a list that is empty, leaves (0, 1000] or does not fall.
    """
    falls = all(a > b for a, b in zip(steps, steps[1:], strict=False))
    if not steps or not falls or not 0 < min(steps) <= max(steps) <= TRAIN_STEPS:
        raise InputError(
            f"step list: expected falling timesteps in (0, {TRAIN_STEPS}], found {list(steps)}"
        )
    return tuple(float(shift * s / (TRAIN_STEPS + (shift - 1) * s)) for s in steps)


def grid(num_steps: int, shift: float) -> np.ndarray:
    """Noise levels of an `num_steps`-step sampler, [num_steps + 1] from 1 down to 0."""
    u = np.linspace(1.0, 0.0, num_steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def critic_sigma(
    timestep: jax.Array, shift: float, low: float = 20.0, high: float = 980.0
) -> jax.Array:
    """Noise level of the DMD, critic and adversarial losses for an integer timestep in [0, 1000)."""
    sigma = warp(timestep / TRAIN_STEPS, shift)
    return jnp.clip(sigma, low / TRAIN_STEPS, high / TRAIN_STEPS)


def sample_critic_sigma(key: jax.Array, batch: int, shift: float) -> jax.Array:
    """[b] noise levels, one for a whole clip."""
    return critic_sigma(jax.random.randint(key, (batch,), 0, TRAIN_STEPS), shift)


def bell_weight(sigma: jax.Array, shift: float) -> jax.Array:
    """Weight of the loss at a noise level in the original's first stage: exp(-2 (sigma - 1/2)^2) less its
    value at 0 and 1, with mean 1 over the training schedule."""

    def bell(sigma: jax.typing.ArrayLike) -> jax.Array:
        return jnp.exp(-2 * jnp.square(jnp.asarray(sigma) - 0.5)) - jnp.exp(-0.5)

    return bell(sigma) / bell(grid(TRAIN_STEPS, shift)[:-1]).mean()


def _like(sigma: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
    """`sigma` (scalar, [b] or [b, f]) with trailing axes, to broadcast against [b, f, c, y, x]."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim else sigma


def add_noise(x0: jax.Array, noise: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """x_t = (1 - sigma) x0 + sigma eps."""
    s = _like(sigma, x0)
    return (1 - s) * x0 + s * noise


def x0_from_flow(x_t: jax.Array, flow: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """x0 = x_t - sigma v."""
    return x_t - _like(sigma, x_t) * flow


def guide(conditional: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance as the paper counts it: cond + s (cond - uncond)."""
    return conditional + scale * (conditional - unconditional)
