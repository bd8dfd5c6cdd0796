"""Adversarial losses on logits [b] (paper, equations 5 and 6) and penalties on their slope."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import softplus


def generator(fake: jax.Array) -> jax.Array:
    """Non-saturating: mean softplus(-D(fake)), equation 5."""
    return softplus(-fake).mean()


def discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Logistic: mean softplus(-D(real)) + mean softplus(D(fake)), equation 6."""
    return softplus(-real).mean() + softplus(fake).mean()


def relativistic_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """mean softplus(D(real) - D(fake))."""
    return softplus(real - fake).mean()


def relativistic_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """mean softplus(D(fake) - D(real))."""
    return softplus(fake - real).mean()


def apt_penalty(logit: jax.Array, perturbed: jax.Array) -> jax.Array:
    """The approximated R1 of adversarial post-training: mean (D(x) - D(x + sigma n))^2.

    On real samples this is R1, on generated ones R2.
    """
    return jnp.square(logit - perturbed).mean()


def finite_difference_penalty(logit: jax.Array, perturbed: jax.Array, sigma: float) -> jax.Array:
    """0.5 mean ((D(x + sigma n) - D(x)) / sigma)^2, an estimate of half the squared slope."""
    return 0.5 * jnp.square((perturbed - logit) / sigma).mean()
