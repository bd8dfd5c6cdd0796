"""The stages before distillation against recorded vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from goldens import Golden, error
from jax.flatten_util import ravel_pytree

from oneforcing_jax import flow
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.methods import AVERAGE, causal_consistency, causal_ode, teacher_forcing
from oneforcing_jax.methods.flow_matching import FlowDraws
from oneforcing_jax.models import wan


def check(golden, update, params, key_map, batch, draws, nets=None, loss=1e-3, gradient=1e-3):
    """Loss and every gradient of an update against those recorded."""
    value, gradients = jax.jit(
        jax.value_and_grad(lambda p: update.loss(p, nets or {}, batch, draws)[0])
    )(params)
    assert error(value, golden.outputs["loss"]) < loss
    recorded = keys.load(key_map, golden.gradients(), jax.tree.map(np.asarray, params))
    assert error(ravel_pytree(gradients)[0], ravel_pytree(recorded)[0]) < gradient


def test_causal_ode_regression():
    golden = Golden("stage_causal_ode")
    config, params = golden.model()
    rows, sigma = golden.inputs["trajectory"], golden.inputs["timestep"][0] / 1000
    # The recording keeps the end point and then the real clip, the context.
    batch = {
        "trajectory": rows[:, :-1],
        "latents": rows[:, -1],
        "text": golden.inputs["prompt_embeds"],
    }
    picked = golden.config["picked_step"]
    levels = [0.0] * (rows.shape[1] - 2)
    levels[picked] = float(sigma[0])
    update = causal_ode.regression(wan.model(config), (1,) * rows.shape[2], tuple(levels))
    key_map = keys_wan.transformer(config.num_layers, "model.")
    check(golden, update, params, key_map, batch, jnp.array([picked]))


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
        wan.model(config), layout, sigmas, c["guidance_scale"] - 1
    )
    batch = {"latents": i["clean"], "text": i["prompt_embeds"]}
    batch["negative"] = i["negative_prompt_embeds"][0]
    draws = causal_consistency.Draws(jnp.array([c["index"]]), i["noise"])
    nets = {"model": student, "teacher": teacher, AVERAGE: average}

    key_map = keys_wan.transformer(config.num_layers, "model.")
    check(golden, update, student, key_map, batch, draws, nets, loss=2e-4)


def test_teacher_forcing():
    golden = Golden("stage_teacher_forcing")
    config, params = golden.model()
    i, shift = golden.inputs, golden.config["timestep_shift"]
    grid = jnp.asarray(flow.grid(flow.TRAIN_STEPS, shift)[:-1])
    assert error(flow.bell_weight(grid, shift), golden.outputs["all_weights"]) < 1e-4
    layout = (1,) * i["clean"].shape[1]
    update = teacher_forcing.causal(wan.model(config), layout, shift, 0.0, bell=True)
    text = i["prompt_embeds"]
    batch = {"latents": i["clean"], "text": text, "negative": jnp.zeros_like(text[0])}
    draws = FlowDraws(i["timestep"] / 1000, i["noise"], jnp.array([False]))
    key_map = keys_wan.transformer(config.num_layers, "model.")
    check(golden, update, params, key_map, batch, draws)
