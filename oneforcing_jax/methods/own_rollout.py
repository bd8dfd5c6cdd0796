"""Distillation of a causal student on its own rollout: the losses of One-Forcing and its relatives.

The generator's loss is distribution matching (fake score minus real score), an adversarial term on the
critic's features, and a regression of the teacher's end points. The critic's loss is the denoising of
generated clips, the discriminator's loss and its penalties (paper, section 3, Algorithm 1). A method of this
family is a record over these losses, `distillation.Settings`: a term of weight 0 is not in the program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal.generate import generate
from oneforcing_jax.causal.plan import ClipDraws, num_frames
from oneforcing_jax.causal.replay import differentiable
from oneforcing_jax.losses import denoise, dmd, gan
from oneforcing_jax.methods import Batch, Metrics, causal_ode
from oneforcing_jax.methods.distillation import CriticDraws, Distillation, GeneratorDraws, Penalty
from oneforcing_jax.methods.flow_matching import side_by_side
from oneforcing_jax.models import condition as conditions
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.trees import Params


def real_x0(
    method: Distillation, params: Params, x_t: jax.Array, sigma: jax.Array, batch: Batch
) -> jax.Array:
    """Clean latents as the guided teacher sees them; condition and null in one forward."""
    condition = method.teacher.condition(batch)
    both = [condition, conditions.everywhere(method.teacher.null(batch), condition)]
    out: Any = method.teacher.apply(
        params, *(side_by_side(x) for x in ([x_t, x_t], [sigma, sigma], both))
    )
    conditional, unconditional = out.flow[::2], out.flow[1::2]
    guided = flow.guide(conditional, unconditional, method.settings.guidance)
    return flow.x0_from_flow(x_t, guided, sigma)


def made(sigma: jax.Array) -> jax.Array | None:
    """1 for the frames [b, f] that a clip has noise in, 0 for those that are given; None: it is one level [b]
    a clip, and all frames are made."""
    return None if sigma.ndim == 1 else (sigma > 0).astype(jnp.float32)


def generator_loss(
    method: Distillation,
    params: Params,
    critic: Params,
    teacher: Params,
    batch: Batch,
    draws: GeneratorDraws,
) -> tuple[jax.Array, Metrics]:
    """L_G = w_DMD L_DMD + lambda_G L_adv + lambda_fkl L_fkl of the student (equations 7 and 10).

    Args:
      method: networks and settings.
      params, critic, teacher: parameters; only `params` takes gradients. L_DMD alone reads the teacher's.
      batch: conditions; their null for L_DMD; "latents" [b, f, c, y, x] for given blocks, the
        relativistic L_adv and L_fkl; "trajectory" of `causal_ode.trajectory` for L_fkl.
      draws: randomness.
    """
    settings = method.settings
    loss, metrics = jnp.float32(0), Metrics()
    if settings.dmd_weight or settings.gan_generator_weight:
        with jax.named_scope("rollout"):
            x = differentiable(
                method.student(params),
                draws.rollout.beginning(batch["latents"], method.plan),
                method.generator.condition(batch),
                method.plan,
                method.first,
                settings.context_gradient,
            )
    if settings.dmd_weight:
        value, metrics = distribution_matching(method, critic, teacher, x, batch, draws)
        loss += settings.dmd_weight * value
    if settings.gan_generator_weight:
        real = None
        if settings.relativistic:
            real = real_clip(method, jax.lax.stop_gradient(params), batch, draws.real)
        with jax.named_scope("adversarial"):
            value, logit = generator_adversarial(method, critic, x, real, batch, draws)
        loss += settings.gan_generator_weight * value
        metrics |= {"gan_loss": value, "fake_logit": logit.mean()}
    if settings.forward_kl_weight:
        with jax.named_scope("forward_kl"):
            value = forward_kl(method, params, batch, draws)
        loss += settings.forward_kl_weight * value
        metrics |= {"forward_kl_loss": value}
    return loss, metrics | {"loss": loss}


def distribution_matching(
    method: Distillation,
    critic: Params,
    teacher: Params,
    x: jax.Array,
    batch: Batch,
    draws: GeneratorDraws,
) -> tuple[jax.Array, Metrics]:
    """L_DMD of generated latents x [b, f, c, y, x] over the gradient window, and how its gradient looks."""
    clean = jax.lax.stop_gradient(x)
    sigma = draws.rollout.frame_levels(draws.dmd_sigma, method.plan)
    with jax.named_scope("scores"):
        x_t = flow.add_noise(clean, draws.dmd_noise, sigma)
        condition = method.critic.condition(batch)
        fake: Any = method.critic.apply(critic, x_t, sigma, condition, want_logit=False)
        x0_fake = flow.x0_from_flow(x_t, fake.flow, sigma)
        x0_real = real_x0(method, teacher, x_t, sigma, batch)
    gradient, replaced = dmd.gradient(clean, x0_fake, x0_real, made(sigma))
    frames = num_frames(method.plan[method.first :])
    loss = dmd.loss(x, gradient, frames)
    size = jnp.abs(gradient[:, -frames:]).mean()
    return loss, {"dmd_loss": loss, "dmd_gradient": size, "dmd_replaced": replaced}


def real_clip(
    method: Distillation, generator: Params, batch: Batch, draws: ClipDraws | None
) -> jax.Array:
    """What the discriminator takes for real [b, f, c, y, x]: the batch's clips, or the student's own from the
    same noise in one step more a block (ASD)."""
    if draws is None:
        return batch["latents"]
    with jax.named_scope("rollout_real"):
        condition = method.generator.condition(batch)
        draws = draws.beginning(batch["latents"], method.plan)
        longer = generate(method.student(generator), draws, condition, method.longer)
    return jax.lax.stop_gradient(longer.latents)


def generator_adversarial(
    method: Distillation,
    critic: Params,
    fake: jax.Array,
    real: jax.Array | None,
    batch: Batch,
    draws: GeneratorDraws,
) -> tuple[jax.Array, jax.Array]:
    """L_adv (equation 5) of generated latents [b, f, c, y, x], and their logits [b].

    With real latents it is relativistic.
    """

    condition = method.critic.condition(batch)
    sigma = draws.rollout.frame_levels(draws.gan_sigma, method.plan)

    def logit(latents: jax.Array) -> Any:
        x_t = flow.add_noise(latents, draws.gan_noise, sigma)
        scores: Any = method.critic.apply(critic, x_t, sigma, condition, want_flow=False)
        return scores.logit

    found = logit(fake)
    if real is None:
        return gan.generator(found), found
    return gan.relativistic_generator(jax.lax.stop_gradient(logit(real)), found), found


def forward_kl(
    method: Distillation, params: Params, batch: Batch, draws: GeneratorDraws
) -> jax.Array:
    """The squared-error surrogate of the forward KL divergence (equation 10): the student is drawn to the
    stored end of the teacher's trajectory, from a point of it at one of the student's own noise levels."""
    layout = tuple(block.frames for block in method.plan)
    row = jnp.array(method.rows)[draws.row]
    return causal_ode.endpoint_error(method.generator, params, batch, row, method.levels, layout)


def critic_loss(
    method: Distillation, params: Params, generator: Params, batch: Batch, draws: CriticDraws
) -> tuple[jax.Array, Metrics]:
    """L_phi = L_fake + lambda_D L_adv (equation 8) of the critic's parameters.

    The clip to denoise, the generated one and the real one go through the backbone as one batch, or in
    turn (`critic_clips`).

    Args:
      method: networks and settings.
      params, generator: parameters; only `params` takes gradients.
      batch: conditions, and "latents" [b, f, c, y, x], real unless the student's own count as real.
      draws: randomness.
    """
    settings = method.settings
    with jax.named_scope("rollout"):
        condition = method.generator.condition(batch)
        begun = draws.rollout.beginning(batch["latents"], method.plan)
        x = generate(method.student(generator), begun, condition, method.plan).latents
    x = jax.lax.stop_gradient(x)
    denoised, judged = (
        draws.rollout.frame_levels(sigma, method.plan)
        for sigma in (draws.denoise_sigma, draws.gan_sigma)
    )
    clips = [flow.add_noise(x, draws.denoise_noise, denoised)]
    penalties: list[tuple[str, Penalty, int]] = []
    free = made(judged)
    free = jnp.ones(()) if free is None else free[..., None, None, None]
    if settings.gan_discriminator_weight:
        fake, real = (
            flow.add_noise(y, draws.gan_noise, judged)
            for y in (x, real_clip(method, generator, batch, draws.real))
        )
        clips += [fake, real]
        for name, penalty, clip, of, noise in (
            ("r1", settings.r1, real, 2, draws.r1_noise),
            ("r2", settings.r2, fake, 1, draws.r2_noise),
        ):
            if penalty.weight:
                penalties.append((name, penalty, of))
                clips.append(clip + penalty.sigma * noise * free)
    sigmas = [denoised, *[judged] * (len(clips) - 1)]
    with jax.named_scope("judged"):
        flow_of_first, logits = _judged(
            method, params, clips, sigmas, method.critic.condition(batch)
        )
    loss = denoise.loss(flow_of_first, x, draws.denoise_noise, made(denoised))
    metrics = {"denoise_loss": loss}
    if len(clips) > 1:
        adversarial = _discriminator(method, *logits[1:3])
        loss = loss + settings.gan_discriminator_weight * adversarial
        metrics |= {
            "gan_loss": adversarial,
            "fake_logit": logits[1].mean(),
            "real_logit": logits[2].mean(),
            "logit_gap": (logits[2] - logits[1]).mean(),
        }
        for i, (name, penalty, of) in enumerate(penalties):
            metrics[name] = penalty(logits[of], logits[3 + i])
            loss = loss + penalty.weight * metrics[name]
    return loss, metrics | {"loss": loss}


def _judged(
    method: Distillation,
    params: Params,
    clips: list[jax.Array],
    sigmas: list[jax.Array],
    condition: Condition,
) -> tuple[jax.Array, Any]:
    """The flow of the first clip, and the logits [b] of each clip; a single clip has none."""

    def scores(latents: jax.Array, sigma: jax.Array, condition: Condition) -> Any:
        return method.critic.apply(params, latents, sigma, condition, want_logit=len(clips) > 1)

    count = len(clips)
    if method.settings.critic_clips == "in_turn" and count > 1:
        # A loop inside the program would keep the layer inputs of all clips twice, in two layouts.
        found = [scores(clip, sigma, condition) for clip, sigma in zip(clips, sigmas, strict=True)]
        return found[0].flow, jnp.stack([one.logit for one in found])
    # Clips are ordered sample by sample, so that each device has all clips of its own samples.
    found = scores(side_by_side(clips), side_by_side(sigmas), side_by_side([condition] * count))
    flows = found.flow.reshape(-1, count, *found.flow.shape[1:])
    return flows[:, 0], None if count == 1 else found.logit.reshape(-1, count).T


def _discriminator(method: Distillation, fake: jax.Array, real: jax.Array) -> jax.Array:
    return (
        gan.relativistic_discriminator(real, fake)
        if method.settings.relativistic
        else gan.discriminator(real, fake)
    )
