"""Consistency distillation (paper, equation 1)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (x [b, f, c, y, x], noise level [b, f]) -> like x
OfNoisy = Callable[[jax.Array, jax.Array], jax.Array]


def loss(
    student: OfNoisy,
    target: OfNoisy,
    teacher: OfNoisy,
    x: jax.Array,
    now: jax.Array,
    after: jax.Array,
) -> jax.Array:
    """mean (f(x, now) - sg(f_target(x + (after - now) v(x, now), after)))^2: an Euler step lies between.

    Args:
      student, target: give clean latents.
      teacher: gives the flow v.
      x: [b, f, c, y, x], noisy at `now`.
      now, after: noise levels [b, f], `after` the lower; at 0 the target is its own input.
    """
    step = (after - now)[..., None, None, None]
    ahead = jax.lax.stop_gradient(x + step * teacher(x, now))
    end = jax.lax.stop_gradient(target(ahead, after))
    return jnp.square(student(x, now).astype(jnp.float32) - end).mean()
