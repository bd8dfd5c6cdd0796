"""Losses against closed forms; what a score that is not finite does: it is left out, counted, and rings."""

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.losses import dmd, gan
from oneforcing_jax.models import critic as critics
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.training import alarms


def test_values_that_are_not_finite_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    x, fake, real = (jnp.asarray(rng.normal(size=(2, 1, 1, 2, 2))) for _ in range(3))
    gradient, replaced = dmd.gradient(x, fake, real)
    assert replaced == 0 and np.isfinite(gradient).all()
    broken, replaced = dmd.gradient(x, fake.at[1, 0, 0, 0, 0].set(jnp.inf), real)
    assert replaced == 1 / 8 and broken[1, 0, 0, 0, 0] == 0
    np.testing.assert_array_equal(broken.ravel()[5:], gradient.ravel()[5:])
    # A teacher's value spoils the mean that all of its sample are divided by.
    broken, replaced = dmd.gradient(x, fake, real.at[0, 0, 0, 0, 0].set(jnp.nan))
    assert replaced == 1 / 2 and not broken[0].any() and broken[1].any()


def test_penalties_are_those_of_a_quadratic():
    """D(x) = x A x / 2 + b x: over normal n the difference by sigma has the mean square |A x + b|^2 + sigma^2
    (2 tr A^2 + (tr A)^2) / 4, of which R1 is half the first term."""
    rng, sigma, size = np.random.default_rng(0), 0.5, 4
    a, b, x = rng.normal(size=(size, size)), rng.normal(size=size), rng.normal(size=size)
    a = (a + a.T) / 2

    def logit(x):
        return np.einsum("bi,ij,bj->b", x, a, x) / 2 + x @ b

    real = np.tile(x, (400_000, 1))
    given = logit(real), logit(real + sigma * rng.normal(size=real.shape))
    slope = np.square(a @ x + b).sum()
    mean = slope + sigma**2 * (2 * np.trace(a @ a) + np.trace(a) ** 2) / 4
    assert abs(gan.finite_difference_penalty(*given, sigma) / (mean / 2) - 1) < 0.02
    assert abs(gan.apt_penalty(*given) / (sigma**2 * mean) - 1) < 0.02
    # The smaller the step, the nearer to R1.
    near = logit(real), logit(real + 0.01 * rng.normal(size=real.shape))
    assert abs(gan.finite_difference_penalty(*near, 0.01) / (slope / 2) - 1) < 0.02


def test_the_penalty_of_the_critic_is_its_slope(random_params):
    """By automatic differentiation: along the noise, half the squared slope of the head's logit."""
    config = WanConfig(24, 32, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)
    critic, rng = critics.model(config, HeadConfig((1,), 16)), np.random.default_rng(0)
    params = random_params(critic)
    x, noise = jnp.asarray(rng.normal(size=(2, 2, 3, 2, 4, 2)), jnp.float32)
    text = jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)

    def logit(x):
        return critic.apply(params, x, jnp.full(2, 0.5), prompted(text), want_flow=False).logit

    def both(x, step):
        values, slopes = jax.jvp(logit, (x,), (noise,))
        found = gan.finite_difference_penalty(values, logit(x + step * noise), step)
        return found / (0.5 * jnp.square(slopes).mean()), slopes

    run = jax.jit(both)
    (far, slopes), (near, _) = run(x, 0.1), run(x, 0.01)
    assert jnp.abs(slopes).min() > 1e-3
    assert abs(near - 1) < 0.05 and abs(near - 1) < abs(far - 1)


def test_they_ring():
    watch = alarms.Watch([{"generator/dmd_replaced": 0.0}])
    assert not watch.look({"generator/dmd_replaced": 0.0})
    (text,) = watch.look({"generator/dmd_replaced": 0.25})
    assert text.startswith("0.25 of the values of a score are not finite")
