"""The stages before distillation against recorded vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens import Golden, error
from jax.flatten_util import ravel_pytree

from oneforcing_jax import flow
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.losses import denoise
from oneforcing_jax.methods import AVERAGE, causal_consistency
from oneforcing_jax.methods.flow_matching import teacher_forced
from oneforcing_jax.models.wan import WanDiT


def run(golden, clean, noisy, sigma):
    config, params = golden.model()
    layout = (1,) * clean.shape[1]
    text = golden.inputs["prompt_embeds"]
    forward = jax.jit(lambda p, *x: teacher_forced(WanDiT(config), p, *x, text, layout))
    return forward(params, clean, noisy, sigma)


def test_causal_ode_regression():
    golden = Golden("stage_causal_ode")
    rows, sigma = golden.inputs["trajectory"], golden.inputs["timestep"] / 1000
    x = rows[:, golden.config["picked_step"]]
    # The recording keeps the end point and then the real clip, the context.
    end, clean = rows[:, -2], rows[:, -1]
    x0 = flow.x0_from_flow(x, run(golden, clean, x, sigma), sigma)
    assert error(x0, golden.outputs["pred"]) < 1e-3
    assert error(jnp.square(x0 - end).mean(), golden.outputs["loss"]) < 1e-3


def test_causal_consistency():
    """Loss, and every gradient of the student. Guidance is recorded as uncond + s (cond - uncond), and the
    recording's noise levels are the nearest of a table, which makes most of the distance."""
    golden = Golden("stage_causal_cd")
    c = golden.config
    config, student = golden.model(prefix="student/")
    teacher, average = (golden.model(prefix=f"{net}/")[1] for net in ("teacher", "ema"))
    i, sigmas = golden.inputs, flow.grid(c["num_steps"], c["timestep_shift"])
    layout = (c["num_frame_per_block"],) * i["clean"].shape[1]
    update = causal_consistency.distillation(
        WanDiT(config), layout, sigmas, c["guidance_scale"] - 1
    )
    batch = {"latents": i["clean"], "text": i["prompt_embeds"]}
    batch["negative"] = i["negative_prompt_embeds"][0]
    draws = causal_consistency.Draws(jnp.array([c["index"]]), i["noise"])
    nets = {"model": student, "teacher": teacher, AVERAGE: average}

    def loss(params):
        return update.loss(params, nets, batch, draws)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(student)
    assert error(value, golden.outputs["loss"]) < 2e-4
    key_map = keys_wan.transformer(config.num_layers, "model.")
    recorded = keys.load(key_map, golden.gradients(), jax.tree.map(np.asarray, student))
    assert error(ravel_pytree(gradients)[0], ravel_pytree(recorded)[0]) < 1e-3


def test_teacher_forcing_loss():
    golden = Golden("stage_teacher_forcing")
    clean, noise = golden.inputs["clean"], golden.inputs["noise"]
    sigma = golden.inputs["timestep"] / 1000
    v = run(golden, clean, flow.add_noise(clean, noise, sigma), sigma)
    assert error(v, golden.outputs["flow"]) < 1e-3
    weighted = denoise.loss(v, clean, noise, jnp.asarray(golden.outputs["weight"]))
    assert error(weighted, golden.outputs["loss"]) < 1e-3
    assert np.isfinite(denoise.loss(v, clean, noise))
