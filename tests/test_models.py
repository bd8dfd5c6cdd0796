"""The transformer in all its roles against recorded vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import ROUNDED, Golden, abstract, allowed, error, in_bfloat16, wan_config

from oneforcing_jax import flow
from oneforcing_jax.causal import structures
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.models import rope, wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.shapes import flat

TOLERANCE = 2e-4


def nearest_in_table(sigma):
    """The level with which the recording turns flow to x0: the nearest entry of a 1000-entry table."""
    table = Golden("schedule").outputs["sigmas_shift5"]
    return jnp.asarray(table[abs(table - sigma[..., None]).argmin(-1)], jnp.float32)


def test_rotary_angles_of_a_stream_of_days():
    """Turns of any frame number, and of a key that is moved, against float64."""
    frames, (head, theta) = np.array([0, 7, 4095, 4096, 10**6 + 1, 2**30]), (32, 10000.0)
    part = 2 * (head // 6)
    frequencies = theta ** (-np.arange(0, head - 2 * part, 2) / (head - 2 * part))
    found = rope.rotations(jnp.asarray(frames), 1, 1, head, theta)[:, 0, : len(frequencies)]
    expected = np.exp(1j * frames[:, None] * frequencies)
    assert np.abs(np.exp(1j * np.asarray(found, np.float64)) - expected)[:-1].max() < 2e-4
    assert np.abs(np.exp(1j * np.asarray(found, np.float64)) - expected).max() < 0.1
    moved = rope.later(jnp.int32(10**6), head, theta)
    assert (
        error(jnp.exp(1j * (found[0] + moved[: len(frequencies)])), np.exp(1j * 1e6 * frequencies))
        < 1e-3
    )
    assert not moved[len(frequencies) :].any()


@pytest.mark.gpu
def test_bidirectional():
    golden = Golden("wan_bidirectional")
    net, params = golden.critic("model", "")
    latents, text = golden.inputs["latent"], prompted(golden.inputs["prompt_embeds"])
    sigma = golden.inputs["timestep"][:, 0] / 1000
    scores = jax.jit(net.apply)(params, latents, sigma, text)
    assert error(scores.flow, golden.outputs["flow"]) < TOLERANCE
    recorded = flow.x0_from_flow(latents, scores.flow, nearest_in_table(sigma))
    assert error(recorded, golden.outputs["x0"]) < TOLERANCE
    assert error(scores.logit, golden.outputs["logit"][:, 0]) < TOLERANCE

    def loss(latents):
        logit = net.apply(params, latents, sigma, text, want_flow=False).logit
        return jax.nn.softplus(-logit).mean()

    gradient = jax.jit(jax.grad(loss))(latents)
    assert error(gradient, golden.outputs["grad_x_of_softplus_neg_logit"]) < 1e-3


@pytest.mark.gpu
def test_every_layer():
    golden = Golden("wan_bidirectional")
    config, params = golden.model()
    latents, text = golden.inputs["latent"], prompted(golden.inputs["prompt_embeds"])
    sigma = golden.inputs["timestep"][:, 0] / 1000

    def tap(index, tokens, state):
        return state.at[index].set(flat(tokens))

    empty = jnp.zeros((config.num_layers, *golden.outputs["block0"].shape))
    forward = functools.partial(wan.model(config).apply, tap=tap)
    tapped = jax.jit(forward)(params, latents, sigma, text, tapped=empty).tapped
    for i in range(config.num_layers):
        assert error(tapped[i], golden.outputs[f"block{i}"]) < TOLERANCE


@pytest.mark.gpu
def test_a_noise_level_for_every_frame():
    """Wan2.2's 5B with a first frame that is clean, with one level, and with any."""
    golden = Golden("wan22_ti2v_tiny")
    config = wan_config(golden.config["model"])
    net, given = wan.model(config), golden.inputs
    params = keys.load(keys_wan.transformer(config.num_layers), golden.weights(), abstract(net))
    (b, f, *_), text = given["latent"].shape, prompted(given["prompt_embeds"])

    def tap(index, tokens, state):
        return state.at[index].set(flat(tokens))

    empty = jnp.zeros((config.num_layers, *golden.outputs["block0"].shape))
    forward = jax.jit(functools.partial(net.apply, tap=tap))
    for timestep, name in (
        (given["timestep_first_clean"].reshape(b, f, -1)[..., 0], "flow"),
        (jnp.tile(given["timestep"][:, None], (1, f)), "flow_text_only"),
        (given["timestep_frames"], "flow_frames"),
    ):
        found = forward(params, given["latent"], timestep / 1000, text, tapped=empty)
        assert error(found.flow, golden.outputs[name]) < allowed(1e-5), name
        for i in range(config.num_layers * (name == "flow")):
            assert error(found.tapped[i], golden.outputs[f"block{i}"]) < allowed(1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "rounded", [False, pytest.param(True, marks=pytest.mark.long)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("name", ["wan_causal_framewise", "wan_causal_chunkwise"])
def test_causal_clip(name, rounded):
    golden = Golden(name)
    config, params = in_bfloat16(*golden.model()) if rounded else golden.model()
    tolerance = ROUNDED if rounded else TOLERANCE
    apply = functools.partial(wan.model(config).apply, params)
    noisy, clean, text = (golden.inputs[k] for k in ("noise", "clean", "prompt_embeds"))
    text = prompted(text)
    sigma = golden.inputs["timestep"] / 1000
    frames, size = noisy.shape[1], golden.config["num_frame_per_block"]
    layout = (size,) * (frames // size)

    attend = structures.structured(structures.block_causal(layout))
    v = jax.jit(lambda x: apply(x, sigma, text, attend=attend).flow)(noisy)
    assert error(v, golden.outputs["flow_diffusion_forcing"]) < tolerance

    attend = structures.structured(structures.teacher_forcing(layout))
    both = jnp.tile(jnp.arange(frames), 2)
    pair, level = (
        jnp.concatenate([clean, noisy], 1),
        jnp.concatenate([jnp.zeros_like(sigma), sigma], 1),
    )
    v = jax.jit(lambda x: apply(x, level, text, frames=both, attend=attend).flow)(pair)[:, frames:]
    assert error(v, golden.outputs["flow_teacher_forcing"]) < tolerance
    x0 = flow.x0_from_flow(noisy, v, nearest_in_table(sigma))
    assert error(x0, golden.outputs["x0_teacher_forcing"]) < tolerance
