"""The noise schedule and its algebra against recorded vectors."""

import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, error

from oneforcing_jax import flow

GOLDEN = Golden("schedule")
OUT = GOLDEN.outputs
SHIFT = GOLDEN.config["shift"]


def nearest(timesteps):
    """The level at which the recording works: the nearest entry of its table of timesteps."""
    where = abs(OUT["timesteps_shift5"] - np.asarray(timesteps)[:, None]).argmin(-1)
    return jnp.asarray(OUT["sigmas_shift5"][where], jnp.float32)


@pytest.mark.parametrize("shift", [5, 8])
def test_levels(shift):
    table = OUT[f"sigmas_shift{shift}"]
    u = 1 - np.arange(len(table)) / flow.TRAIN_STEPS
    np.testing.assert_allclose(flow.warp(u, float(shift)), table, atol=2e-7)
    np.testing.assert_allclose(flow.grid(len(table), float(shift))[:-1], table, atol=2e-7)
    np.testing.assert_allclose(OUT[f"timesteps_shift{shift}"], 1000 * table, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("one", [1000]), ("two", [1000, 500]), ("ffe", [1000, 750, 500, 250])],
)
def test_step_lists(name, steps):
    found = flow.warp_steps(steps, SHIFT)
    assert all(type(sigma) is float for sigma in found)
    np.testing.assert_allclose(1000 * np.array(found), OUT[f"warped_{name}"], atol=1e-4)


def test_grid_of_the_ode():
    levels = flow.grid(48, SHIFT)
    np.testing.assert_allclose(levels[:-1], OUT["sigmas_48steps"], atol=2e-7)
    assert levels[-1] == 0


def test_critic_levels():
    found = 1000 * flow.critic_sigma(jnp.asarray(OUT["critic_raw"]), SHIFT)
    np.testing.assert_allclose(found, OUT["critic_timestep"], atol=1e-4)
    # The recording has both ends of the clamp.
    assert found.min() == 20 and found.max() == 980


def test_algebra():
    x0, noise, v, timesteps = (GOLDEN.inputs[k] for k in ("x0", "noise", "flow", "timestep"))
    sigma = nearest(timesteps)
    x_t = flow.add_noise(x0, noise, sigma)
    assert error(x_t, OUT["add_noise"]) < 1e-6
    assert error(flow.x0_from_flow(x_t, v, sigma), OUT["x0_from_flow"]) < 1e-6


def test_levels_without_a_table():
    """Levels of drawn timesteps are entries of the table; only the clamped ends lie between."""
    x0, noise, timesteps = (GOLDEN.inputs[k] for k in ("x0", "noise", "timestep"))
    sigma = flow.critic_sigma(jnp.asarray(OUT["critic_raw"]), SHIFT)
    found = flow.add_noise(x0, noise, sigma)
    clamped = np.isin(np.asarray(timesteps), [20, 980])
    assert clamped.any() and not clamped.all()
    assert error(found[~clamped], OUT["add_noise"][~clamped]) < 1e-6
    # At shift 5 the table's steps at the ends are 0.005 (low) and 0.0004 (high) apart.
    gap = np.abs(np.asarray(sigma - nearest(timesteps)))
    assert 0 < gap[clamped].max() < 0.0025


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_noise_is_taken_out_again(shape):
    x0, noise = np.random.default_rng(0).normal(size=(2, 2, 3, 1, 4, 5)).astype(np.float32)
    sigma = np.random.default_rng(1).uniform(0.2, 1, shape).astype(np.float32)
    x_t = flow.add_noise(x0, noise, sigma)
    assert error(flow.x0_from_flow(x_t, noise - x0, sigma), x0) < 1e-6
    # One level a clip or a frame, not a row of pixels.
    level = np.broadcast_to(sigma.reshape(sigma.shape + (1,) * (5 - sigma.ndim)), x0.shape)
    np.testing.assert_allclose(x_t, (1 - level) * x0 + level * noise, atol=1e-6)


def test_guidance_counts_from_the_conditional():
    one, two = jnp.float32(1), jnp.float32(2)
    assert flow.guide(two, one, 0.0) == 2
    assert flow.guide(two, one, 5.0) == 7


@pytest.mark.parametrize("steps", [[], [500, 1000], [1000, 1000], [1001], [1000, 0], [500, -1]])
def test_odd_step_lists_are_refused(steps):
    with pytest.raises(ValueError, match=r"falling timesteps in \(0, 1000\], found \["):
        flow.warp_steps(steps, SHIFT)
