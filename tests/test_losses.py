"""What a score that is not finite does to distribution matching: it is left out, counted, and rings."""

import jax.numpy as jnp
import numpy as np

from oneforcing_jax.losses import dmd
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


def test_they_ring():
    watch = alarms.Watch([{"generator/dmd_replaced": 0.0}])
    assert not watch.look({"generator/dmd_replaced": 0.0})
    (text,) = watch.look({"generator/dmd_replaced": 0.25})
    assert text.startswith("0.25 of the values of a score are not finite")
