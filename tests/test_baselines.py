"""The methods that One-Forcing is compared with: their terms by the written equations, and how they train."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_steps
from goldens import error
from jax.flatten_util import ravel_pytree
from test_steps import make_trainer, needs_eight

from oneforcing_jax import flow
from oneforcing_jax.causal.plan import Block, make_plan, with_one_more_step
from oneforcing_jax.causal.sequential import sequential
from oneforcing_jax.errors import InputError
from oneforcing_jax.losses import consistency
from oneforcing_jax.methods import (
    Method,
    Network,
    Sampled,
    causal_consistency,
    distillation,
    flow_matching,
    one_forcing,
    own_rollout,
)
from oneforcing_jax.methods.distillation import Distillation, Settings
from oneforcing_jax.models import critic as critics
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run

CONFIG = WanConfig(16, 16, 2, 1, in_dim=2, out_dim=2, text_dim=8, text_len=8, freq_dim=8)
SHIFT = 5.0


# The written equations.


def test_consistency_is_equation_1():
    """On scalars, where the teacher's step and both ends are written out; gradient to the student alone."""
    x, now, after = jnp.full((1, 1, 1, 1, 1), 0.7), jnp.array([[0.8]]), jnp.array([[0.6]])
    student, target, teacher = 0.3, 0.5, -0.4

    def found(student, target, teacher):
        ends = [lambda x, s, k=k: k * x + s[..., None, None, None] for k in (student, target)]
        return consistency.loss(*ends, lambda x, s: teacher * x, x, now, after)

    def written(student):
        ahead = 0.7 + (0.6 - 0.8) * teacher * 0.7
        return (student * 0.7 + 0.8 - (target * ahead + 0.6)) ** 2

    value, slopes = jax.value_and_grad(found, argnums=(0, 1, 2))(student, target, teacher)
    np.testing.assert_allclose(value, written(student), rtol=1e-4)
    np.testing.assert_allclose(slopes, (jax.grad(written)(student), 0, 0), rtol=1e-4)


def toy(sigmas_of_rows=(), **settings):
    """A tiny distillation of two blocks, a batch for it, and parameters of its networks."""
    made = Distillation(
        wan.model(CONFIG),
        wan.model(CONFIG),
        critics.model(CONFIG, HeadConfig((0,), 16)),
        make_plan(2, 1, [1000], SHIFT),
        Settings(context_sigma=0.1, **settings),
        SHIFT,
        sigmas_of_rows,
    )
    rng = np.random.default_rng(0)
    shapes = {"latents": (2, 2, 2, 4, 4), "text": (2, 8, 8), "trajectory": (2, 3, 2, 2, 4, 4)}
    return made, {name: jnp.float32(rng.normal(size=s)) for name, s in shapes.items()}


@pytest.mark.long
def test_self_distillation_takes_longer_clips_for_real(random_params):
    """ASD: L_D of the student's clips in one step, and of its own in two from the same noise."""
    m, batch = toy(real="self", relativistic=True, gan_discriminator_weight=2.0)
    assert m.longer == (Block(1, flow.warp_steps([1000, 500], SHIFT)),) * 2
    (made,) = {b.sigmas for b in with_one_more_step(make_plan(1, 1, [1000, 750, 500], 1.0), 1.0)}
    np.testing.assert_allclose(made, (1.0, 0.75, 0.5, 0.25))
    generator, critic = random_params(m.generator), random_params(m.critic, 1)
    draws = distillation.draw_critic(m, jax.random.key(0), batch["latents"].shape)
    assert draws.real.start is draws.rollout.start

    def clip(noise, plan):
        return sequential(
            m.student(generator), noise, m.generator.condition(batch), plan, 0, "stop"
        )

    def written(critic):
        fake, real = clip(draws.rollout, m.plan), clip(draws.real, m.longer)
        noises = [draws.denoise_noise, draws.gan_noise, draws.gan_noise]
        sigmas = jnp.concatenate([draws.denoise_sigma, draws.gan_sigma, draws.gan_sigma])
        level, noise = sigmas[:, None, None, None, None], jnp.concatenate(noises)
        noisy = (1 - level) * jnp.concatenate([fake, fake, real]) + level * noise
        text = jnp.tile(batch["text"], (3, 1, 1))
        out = m.critic.apply(critic, noisy, sigmas, prompted(text))
        gap = out.logit[2:4] - out.logit[4:]
        denoising = jnp.square(out.flow[:2] - (draws.denoise_noise - fake)).mean()
        return denoising + 2 * jnp.log1p(jnp.exp(gap)).mean()

    def found(critic):
        return own_rollout.critic_loss(m, critic, generator, batch, draws)[0]

    expected, found = (jax.jit(jax.value_and_grad(f))(critic) for f in (written, found))
    assert error(found[0], expected[0]) < 1e-5
    assert error(*(ravel_pytree(x[1])[0] for x in (found, expected))) < 1e-4
    # The generator's relativistic loss sees such clips too, and only then.
    draw = functools.partial(
        distillation.draw_generator, key=jax.random.key(0), shape=batch["latents"].shape
    )
    assert draw(m).real is not None
    plain = dataclasses.replace(m, settings=dataclasses.replace(m.settings, relativistic=False))
    assert draw(plain).real is None


def test_forward_kl_is_equation_10(random_params):
    """The student from the row at its own noise level, against the end point; nothing else is computed."""
    m, batch = toy((0.5, 1.0), dmd_weight=0.0, gan_generator_weight=0.0, forward_kl_weight=3.0)
    assert m.rows == (1,) and "teacher" not in one_forcing.networks(m)
    params = random_params(m.generator)
    draws = distillation.draw_generator(m, jax.random.key(0), batch["latents"].shape)

    def written(params):
        x, level = batch["trajectory"][:, 1], jnp.ones((2, 2))
        v = flow_matching.teacher_forced(
            m.generator, params, batch["latents"], x, level, m.generator.condition(batch), (1, 1)
        )
        return 3 * jnp.square(x - v - batch["trajectory"][:, -1]).mean()

    def found(params):
        return own_rollout.generator_loss(m, params, {}, {}, batch, draws)

    expected = jax.jit(jax.value_and_grad(written))(params)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(found, has_aux=True))(params)
    assert error(value, expected[0]) < 1e-5 and set(metrics) == {"forward_kl_loss", "loss"}
    assert error(ravel_pytree(gradient)[0], ravel_pytree(expected[1])[0]) < 1e-4


def test_a_given_block_is_seen_clean_and_takes_no_loss(random_params):
    """Critic's and generator's losses of the other frame alone, where all clips are given the first."""
    m, batch = toy(given_rate=1.0, gan_generator_weight=0.0, gan_discriminator_weight=0.0)
    generator, critic, teacher = (random_params(net, i) for i, net in enumerate(
        (m.generator, m.critic, m.teacher)))  # fmt: skip
    shape, latents = batch["latents"].shape, batch["latents"]
    batch["negative"] = jnp.zeros((8, 8))
    condition = m.generator.condition(batch)
    draws = distillation.draw_critic(m, jax.random.key(0), shape)
    assert draws.rollout.given.all()

    def student(noise):
        """Its second frame, after the data's first."""
        seen, one = flow.add_noise(latents, noise.context, 0.1), jnp.ones((2, 2))
        given = m.generator, generator, seen, noise.start, one, condition, (1, 1)
        return noise.start[:, 1] - flow_matching.teacher_forced(*given)[:, 1]

    def noisy(x, noise, level):
        second = (1 - level[:, None, None, None]) * x + level[:, None, None, None] * noise[:, 1]
        levels = jnp.stack([jnp.zeros(2), level], 1)
        return jnp.stack([latents[:, 0], second], 1), levels

    def denoising(critic):
        x, level = student(draws.rollout), draws.denoise_sigma
        out = m.critic.apply(critic, *noisy(x, draws.denoise_noise, level), condition)
        return jnp.square(out.flow[:, 1] - (draws.denoise_noise[:, 1] - x)).sum() / latents.size

    value, _ = jax.jit(own_rollout.critic_loss, static_argnums=0)(
        m, critic, generator, batch, draws
    )
    assert error(value, jax.jit(denoising)(critic)) < 1e-5

    draws = distillation.draw_generator(m, jax.random.key(1), shape)

    @jax.jit
    def matching():
        x, level = student(draws.rollout), draws.dmd_sigma
        seen = noisy(x, draws.dmd_noise, level)

        def clean(net, params, text):
            v = net.apply(params, *seen, prompted(text)).flow[:, 1]
            return seen[0][:, 1] - level[:, None, None, None] * v

        fake, nothing = clean(m.critic, critic, batch["text"]), jnp.zeros((2, 8, 8))
        real, free = clean(m.teacher, teacher, batch["text"]), clean(m.teacher, teacher, nothing)
        real = real + 5 * (real - free)
        gradient = (fake - real) / jnp.abs(x - real).mean((1, 2, 3), keepdims=True)
        return 0.5 * jnp.square(gradient).sum() / latents.size

    value, _ = jax.jit(own_rollout.generator_loss, static_argnums=0)(
        m, generator, critic, teacher, batch, draws
    )
    assert error(value, matching()) < 1e-4


# What a config says.


def described(**changes):
    """The record that configs/noise.py describes, with changed settings."""
    config = configs.load("configs/noise.py")
    config.one_forcing.update(changes)
    run = Run.of(config)
    return one_forcing.described(run.view(one_forcing.Config), run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real": "selves"}, "real: expected one of .'data', 'self'., found 'selves'"),
        ({"dmd_weight": 0.0, "gan_generator_weight": 0.0}, "a loss of the generator, found"),
        ({"forward_kl_weight": 1.0}, r"a section 'ode' that keeps a row .* found rows at \[\]"),
        ({"given_rate": 1.5}, "given_rate"),
    ],
)
def test_odd_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        described(**changes)


def test_work_is_that_of_the_terms():
    """Operations of a branch come and go with it, and a random exit halves the steps after the first."""
    plain = one_forcing.operations(described(), 4, 4)
    without = one_forcing.operations(described(dmd_weight=0.0), 4, 4)
    assert plain["generator"] - without["generator"] == plain["scores"] > 0
    # A clip of two blocks takes 3 passes in one step each, and 5 in two.
    own = one_forcing.operations(described(real="self"), 4, 4)
    assert 1.5 < (own["critic"] - plain["critic"]) / plain["rollout"] < 1.8
    assert own["generator"] == plain["generator"]
    drawn, every = (
        one_forcing.operations(
            dataclasses.replace(
                described(random_exit=random), plan=make_plan(2, 1, [1000, 500], 5.0)
            ),
            4,
            4,
        )
        for random in (True, False)
    )
    assert drawn["rollout"] == (plain["rollout"] + every["rollout"]) / 2


# Every method trains, on one device and on a mesh.

METHODS = {
    "self forcing": {"gan_generator_weight": 0.0, "gan_discriminator_weight": 0.0},
    "adversarial alone": {"dmd_weight": 0.0},
    "ASD": {"real": "self", "relativistic": True, "given_rate": 0.5},
    "forward KL": {"forward_kl_weight": 1.0},
}


def method(name):
    """A method at the tiniest size."""
    if name == "consistency":
        net = Network(wan.model(CONFIG))
        update = causal_consistency.distillation(net.model, (1, 1), flow.grid(4, SHIFT), 2.0)
        sampled = Sampled("model", make_plan(2, 1, [1000], SHIFT))
        return Method({"model": net, "teacher": net}, (update,), sampled)
    m, _ = toy((0.5, 1.0), generator_every=1, **METHODS[name])
    if name == "self forcing":
        m = dataclasses.replace(m, plan=make_plan(2, 1, [1000, 750, 500], SHIFT))
    return Method(one_forcing.networks(m), one_forcing.updates(m), Sampled("generator", m.plan))


@pytest.mark.long
@needs_eight
@pytest.mark.parametrize("name", ["consistency", *METHODS])
def test_every_method_trains_the_same_on_a_mesh(name, random_params):
    """Two iterations, and in the mesh's program the batch in two parts."""
    found, expected = (
        test_steps.trained(make_trainer(method(name), mesh, **given), random_params, 2)
        for mesh, given in ((test_steps.THREE, {"microbatch": 4}), (None, {}))
    )
    assert all(np.isfinite(value) for value in expected[2].values())
    test_steps.assert_same(found, expected, 1e-3)


@needs_eight
@pytest.mark.parametrize("name", ["ASD", "forward KL"])
def test_every_method_is_one_program_for_any_mesh(name):
    """Its draws reuse no key, and what it computes can be laid out over devices."""
    test_steps.assert_traces(make_trainer(method(name), test_steps.THREE))
