"""One update of generator and critic against recorded losses and every parameter gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, allowed, error

from oneforcing_jax import flow
from oneforcing_jax.causal.plan import ClipDraws, make_plan
from oneforcing_jax.causal.sequential import sequential
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.methods import own_rollout
from oneforcing_jax.methods.distillation import (
    CriticDraws,
    Distillation,
    GeneratorDraws,
    Penalty,
    Settings,
)
from oneforcing_jax.models import wan

TOLERANCE = 5e-3
MULTISTEP = ("_multistep", "_multistep_chunkwise")


def method(golden, **changes):
    c = golden.config
    critic, critic_params = golden.critic("fake_score", "fake_score/")
    generator, generator_params = golden.model("generator", "generator/")
    teacher, teacher_params = generator, None
    if "real_score/model.head.head.bias" in golden.weights():
        teacher, teacher_params = golden.model("real_score", "real_score/")
    penalties = {}
    if "r1_weight" in c:
        penalties = {
            "r1": Penalty(c["r1_weight"], c["r1_sigma"], c["r1_loss_type"]),
            "r2": Penalty(c["r2_weight"], c["r2_sigma"], "finite_difference"),
        }
    settings = Settings(
        gradient_blocks=c["gradient_num_blocks"] or 0,
        context_sigma=c["context_sigma"],
        guidance=c["guidance_scale"],
        gan_generator_weight=c["gan_g_weight"],
        gan_discriminator_weight=c["gan_d_weight"],
        **penalties,
    )
    made = Distillation(
        wan.model(generator),
        wan.model(teacher),
        critic,
        make_plan(
            c["num_frames"],
            c["num_frame_per_block"],
            c.get("denoising_steps", [1000]),
            c["timestep_shift"],
        ),
        dataclasses.replace(settings, **changes),
        c["timestep_shift"],
    )
    return made, generator_params, critic_params, teacher_params


def draws_and_batch(golden):
    i, shift = golden.inputs, golden.config["timestep_shift"]
    size = golden.config["num_frame_per_block"]
    blocks = range(i["exit_step"].size)

    def joined(name):
        rows = [i.get(f"{name[0]}{k}{name[1]}") for k in blocks]
        like = (1, size, *i["rollout_noise"].shape[2:])
        # Nothing was drawn for steps after the exit; what is not finite there shows that they do not run.
        return jnp.concatenate(
            [jnp.full(like, jnp.nan) if x is None else x.reshape(like) for x in rows], 1
        )

    steps = len(golden.config.get("denoising_steps", [1000]))
    renoise = [joined(("renoise", f"_{k}")) for k in range(steps - 1)]
    noise = ClipDraws(
        i["rollout_noise"],
        joined(("context_noise", "")),
        jnp.stack(renoise, 1) if renoise else None,
        i["exit_step"][:1] if renoise else None,
    )

    def sigma(name):
        return flow.critic_sigma(i[f"{name}_timestep_raw"][:, 0], shift)

    batch = {
        "text": i["prompt_embeds"],
        "negative": i["negative_prompt_embeds"],
        "latents": i["real_latent"],
    }
    return i, sigma, noise, batch


def recorded_gradients(golden, key_map, like):
    return keys.load(key_map, golden.gradients(), jax.tree.map(np.asarray, like))


def assert_gradients(found, expected):
    total = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    worst = jax.tree.map(
        lambda a, b: float(np.linalg.norm(np.asarray(a) - b) / total), found, expected
    )
    whole = np.sqrt(sum(x * x for x in jax.tree.leaves(worst)))
    assert whole < TOLERANCE, whole
    for path, expected_leaf in jax.tree_util.tree_leaves_with_path(expected):
        leaf = keys.get(found, tuple(k.key for k in path))
        if np.linalg.norm(expected_leaf) > 1e-4 * total:
            assert error(leaf, expected_leaf) < 3 * TOLERANCE, (path, error(leaf, expected_leaf))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "train_generator",
        "train_generator_multistep_chunkwise",
        pytest.param("train_generator_chunkwise", marks=pytest.mark.long),
        pytest.param("train_generator_multistep", marks=pytest.mark.long),
    ],
)
def test_generator_update(name, monkeypatch):
    golden = Golden(name)
    m, params, critic, teacher = method(golden)
    i, sigma, noise, batch = draws_and_batch(golden)
    draws = GeneratorDraws(noise, sigma("dmd"), i["dmd_noise"], sigma("gan"), i["gan_fake_noise"])
    replayed, seen = own_rollout.differentiable, {}

    def loss(params, change, critic, teacher):
        """The loss; its slope in `change`, which is 0, is that in the student's latents."""

        def changed(*arguments):
            seen["latents"] = replayed(*arguments)
            return seen["latents"] + change

        monkeypatch.setattr(own_rollout, "differentiable", changed)
        value, metrics = own_rollout.generator_loss(m, params, critic, teacher, batch, draws)
        return value, (metrics, seen.pop("latents"))

    update = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (metrics, latents)), (gradients, slope) = update(
        params, jnp.zeros_like(noise.start), critic, teacher
    )
    out = golden.outputs
    assert error(value, out["loss"]) < TOLERANCE
    assert error(metrics["dmd_loss"], out["dmd_loss"]) < TOLERANCE
    assert (
        error(metrics["gan_loss"] * m.settings.gan_generator_weight, out["gan_g_loss"]) < TOLERANCE
    )
    assert error(metrics["fake_logit"], out["gan_fake_logit"][0, 0]) < TOLERANCE
    key_map = keys_wan.transformer(m.generator.config.num_layers, "model.")
    recorded = recorded_gradients(golden, key_map, params)
    assert_gradients(gradients, recorded)

    if name == "train_generator_multistep_chunkwise":
        return  # its blocks one by one add nothing to those of the framewise recordings
    # Block by block: the same latents, hence the same losses, and the recorded gradients again.
    mode = m.settings.context_gradient

    @jax.jit
    def block_by_block(params, slope):
        def latents(params):
            g = m.student(params)
            return sequential(g, noise, m.generator.condition(batch), m.plan, m.first, mode)

        again, pull = jax.vjp(latents, params)
        return again, pull(slope)[0]

    again, gradients = block_by_block(params, slope)
    assert error(again, latents) < allowed(1e-5)
    assert_gradients(gradients, recorded)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("train_critic", "in_turn"),
        ("train_critic_chunkwise", "together"),
        *((f"train_critic{kind}", "together") for kind in MULTISTEP),
    ],
)
def test_critic_update(name, clips):
    golden = Golden(name)
    m, params, critic, _ = method(golden, critic_clips=clips)
    i, sigma, noise, batch = draws_and_batch(golden)
    zero = jnp.zeros_like(i["critic_noise"])
    draws = CriticDraws(
        noise,
        sigma("critic"),
        i["critic_noise"],
        sigma("gan"),
        i["gan_shared_noise"],
        i.get("r1_noise", zero),
        i.get("r2_noise", zero),
    )

    def loss(critic, params):
        return own_rollout.critic_loss(m, critic, params, batch, draws)

    (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(critic, params)
    out = golden.outputs
    assert error(value, out["loss"]) < TOLERANCE
    assert error(metrics["denoise_loss"], out["denoising_loss"]) < TOLERANCE
    assert (
        error(metrics["gan_loss"] * m.settings.gan_discriminator_weight, out["gan_d_loss"])
        < TOLERANCE
    )
    for name in ("fake_logit", "real_logit"):
        assert error(metrics[name], out[f"gan_{name}"][0, 0]) < TOLERANCE
    # The recording reports the finite difference without the factor 0.5 that its total loss applies.
    for name, penalty, factor in (("r1", m.settings.r1, 1.0), ("r2", m.settings.r2, 2.0)):
        if penalty.weight:
            assert error(factor * metrics[name] * penalty.weight, out[f"{name}_loss"]) < TOLERANCE
    key_map = keys_wan.critic(m.critic.config.num_layers, len(critic["registers"]))
    assert_gradients(gradients, recorded_gradients(golden, key_map, critic))
