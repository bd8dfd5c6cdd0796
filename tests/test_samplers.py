"""Euler and UniPC against diffusers, step by step and as a whole pipeline."""

import functools

import numpy as np
import pytest
from goldens import error, transformer_of_diffusers

from oneforcing_jax import flow
from oneforcing_jax.generation import samplers
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted

CONFIG = wan.WanConfig(32, 48, 2, 2, in_dim=4, out_dim=4, text_dim=16, text_len=8, freq_dim=16)
SHAPE = (1, 2, 4, 4, 6)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps_of(sampler, x, velocity):
    """The inputs of all steps and the end, for any velocity field, in plain numpy."""
    last, earlier, before, inputs = x, 0 * x, 0 * x, [x]
    for sigma, told, correct, predict in zip(*sampler, strict=True):
        clean = x - sigma * velocity(x, told)
        memory = (x, last, earlier, before, clean)
        corrected = sum(w * m for w, m in zip(correct, memory, strict=True))
        x = sum(w * m for w, m in zip(predict, (corrected, before, clean), strict=True))
        last, earlier, before = corrected, before, clean
        inputs.append(x)
    return inputs


def field(x, t):
    return np.sin(3 * x) * (1 + t) + x


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_unipc_is_that_of_diffusers(steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    theirs.set_timesteps(steps)
    x = normal(0, 3, 5)
    expected, y = [x], torch.from_numpy(x)
    for t in theirs.timesteps:
        v = torch.from_numpy(field(y.numpy(), float(t) / 1000))
        y = theirs.step(v, t, y, return_dict=False)[0]
        expected.append(y.numpy())
    sampler = samplers.unipc(theirs.sigmas.numpy())
    np.testing.assert_allclose(1000 * sampler.told, theirs.timesteps.numpy(), atol=1e-3)
    found = steps_of(sampler, x, field)
    for ours, reference in zip(found, expected, strict=True):
        assert error(ours, reference) < 2e-5


def test_orders():
    """On a smooth flow the error of Euler falls with the step, that of UniPC with its square or faster."""
    x, grid = normal(0, 4), functools.partial(samplers.wan_grid, shift=3.0)

    def end(make, steps):
        sampler = make(grid(steps))._replace(told=grid(steps)[:-1])
        return steps_of(sampler, x, lambda x, t: np.sin(x) + t)[-1]

    exact = end(samplers.euler, 20_000)
    errors = {make: [error(end(make, n), exact) for n in (10, 40)] for make in MAKES}
    assert 2 < errors[samplers.euler][0] / errors[samplers.euler][1] < 8
    assert errors[samplers.unipc][0] / errors[samplers.unipc][1] > 12
    assert errors[samplers.unipc][1] < errors[samplers.euler][1] / 10


MAKES = (samplers.euler, samplers.unipc)


def test_grid_of_wan():
    """Wan2.1's own: 1000 levels from 0.999, of which 50, shifted, then 0."""
    grid = samplers.wan_grid(50, 5.0)
    u = np.linspace(0.999, 0, 51)
    np.testing.assert_allclose(grid, 5 * u / (1 + 4 * u))
    assert int(1000 * grid[0]) == 999 and grid[-1] == 0 and len(grid) == 51


@pytest.fixture(scope="module")
def pair():
    """A tiny transformer of diffusers and ours with its weights."""
    return transformer_of_diffusers(CONFIG, 0.05)


def test_sampling_is_the_pipeline_of_diffusers(pair):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs, params = pair
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    pipeline = diffusers.WanPipeline(None, None, None, scheduler, theirs)
    pipeline.set_progress_bar_config(disable=True)
    noise, text = normal(1, *SHAPE), normal(2, 1, CONFIG.text_len, CONFIG.text_dim)
    negative = normal(3, CONFIG.text_len, CONFIG.text_dim)
    frames, _, rows, columns = SHAPE[1:]
    expected = pipeline(
        prompt_embeds=torch.from_numpy(text),
        negative_prompt_embeds=torch.from_numpy(negative[None]),
        latents=torch.from_numpy(noise).transpose(1, 2),
        num_frames=4 * frames - 3,
        height=8 * rows,
        width=8 * columns,
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="latent",
    ).frames
    sampler = samplers.unipc(scheduler.sigmas.numpy())
    net = wan.model(CONFIG)
    found = samplers.sample(
        net, params, noise, prompted(text), prompted(negative), sampler, guidance=2.0
    )
    assert error(found, expected.transpose(1, 2).numpy()) < 1e-4
    # Guidance counts, and the prompt.
    swapped = prompted(negative[None]), prompted(text[0])
    other = samplers.sample(net, params, noise, *swapped, sampler, guidance=2.0)
    assert error(other, found) > 1e-2


def test_a_given_frame_is_told_clean_and_stays(pair):
    """Wan2.2's loop in diffusers' parts: before every step the frame is put back, and its tokens are at 0."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs, params = pair
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(3)
    noise, first = normal(1, *SHAPE), normal(4, 1, 1, *SHAPE[2:])
    text, negative = normal(2, 2, 1, CONFIG.text_len, CONFIG.text_dim)
    x, image = (torch.from_numpy(y).transpose(1, 2) for y in (noise, first))
    tokens = SHAPE[3] * SHAPE[4] // 4
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = torch.cat([image, x[:, :, 1:]], 2)
            told = torch.cat([torch.zeros(1, tokens), torch.full((1, tokens), float(t))], 1)
            v, free = (
                theirs(x, told, torch.from_numpy(words), return_dict=False)[0]
                for words in (text, negative)
            )
            x = scheduler.step(free + 3 * (v - free), t, x, return_dict=False)[0]
    expected = torch.cat([image, x[:, :, 1:]], 2).transpose(1, 2).numpy()
    sampler = samplers.unipc(scheduler.sigmas.numpy())
    given = wan.model(CONFIG), params, noise, prompted(text), prompted(negative[0]), sampler
    found = samplers.sample(*given, guidance=2.0, given=first)
    assert error(found, expected) < 1e-4
    np.testing.assert_array_equal(found[:, :1], first)
    assert error(samplers.sample(*given, guidance=2.0)[:, 1:], found[:, 1:]) > 1e-2


def test_euler_is_the_plain_loop():
    grid, x = flow.grid(7, 5.0), normal(1, 5)
    found = steps_of(samplers.euler(grid), x, field)
    for i, (now, after) in enumerate(zip(grid, grid[1:], strict=False)):
        assert error(found[i], x) < 1e-5
        x = x + np.float32(after - now) * field(x, np.float32(now))
    assert error(found[-1], x) < 1e-5


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.0], [0.9, 0.95, 0.0], [0.9, 0.1], [0.0]])
def test_levels_unipc_cannot_take(sigmas):
    with pytest.raises(
        ValueError, match="unipc: expected noise levels that fall from below 1 to 0"
    ):
        samplers.unipc(sigmas)


def test_odd_grids_are_refused():
    with pytest.raises(ValueError, match="1 step or more and a positive shift, found 0 and 5.0"):
        samplers.wan_grid(0, 5.0)
