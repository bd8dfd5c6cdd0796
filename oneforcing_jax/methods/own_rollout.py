"""Distillation of a causal student on its own rollout: what One-Forcing and its relatives share.

The generator's loss is distribution matching (fake score minus real score) and an adversarial term on the
critic's features. The critic's loss is the denoising of generated clips, the discriminator's loss and its
penalties (paper, section 3, Algorithm 1). A method of this family is a record over these losses.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneforcing_jax import flow
from oneforcing_jax.causal.generate import Generator, generate
from oneforcing_jax.causal.plan import (
    ClipDraws,
    Plan,
    draw,
    first_of_window,
    mean_steps,
    num_frames,
)
from oneforcing_jax.causal.replay import differentiable
from oneforcing_jax.causal.sequential import CONTEXT_GRADIENTS
from oneforcing_jax.errors import InputError
from oneforcing_jax.losses import denoise, dmd, gan
from oneforcing_jax.methods import Batch, Metrics
from oneforcing_jax.methods.flow_matching import side_by_side
from oneforcing_jax.models.critic import Critic
from oneforcing_jax.models.wan import WanDiT
from oneforcing_jax.ranges import Count, Natural, NotNegative, Positive, Share
from oneforcing_jax.trees import Params

CRITIC_CLIPS = ("together", "in_turn")


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty on the slope of the discriminator; weight 0 leaves it out of the program.

    Attributes:
      weight: factor in the critic's loss.
      sigma: size of the perturbation.
      form: "apt" or "finite_difference".
    """

    weight: NotNegative = 0.0
    sigma: Positive = 0.1
    form: str = "apt"

    def __post_init__(self) -> None:
        if self.form not in ("apt", "finite_difference"):
            raise InputError(
                f"penalty: expected form 'apt' or 'finite_difference', found {self.form!r}"
            )

    def __call__(self, logit: jax.Array, perturbed: jax.Array) -> jax.Array:
        if self.form == "apt":
            return gan.apt_penalty(logit, perturbed)
        return gan.finite_difference_penalty(logit, perturbed, self.sigma)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the losses.

    Attributes:
      generator_every: one in so many iterations updates the generator.
      gradient_blocks: the last blocks, which take gradients; 0: all.
      context_gradient: "straight_through", "stop" or "full".
      context_sigma: noise level of finished blocks before their clean pass.
      random_exit: blocks of several steps end at a step drawn from their list, one for all blocks and
        clips of an update (Self Forcing); otherwise all their steps run. The last that runs takes gradients.
      guidance: s in cond + s (cond - uncond) of the teacher.
      gan_generator_weight, gan_discriminator_weight: lambda_G and lambda_D; 0 leaves the branch out.
      relativistic: compare real and fake in pairs.
      critic_clips: whether the clips of a critic update go through the backbone side by side
        ("together") or one after the other ("in_turn"). The latter makes the same sums with the temporaries
        of one clip, but its program is as much longer.
      r1, r2: penalties on real and generated samples.
    """

    generator_every: Count = 5
    gradient_blocks: Natural = 0
    context_gradient: str = "straight_through"
    context_sigma: Share = 0.0
    random_exit: bool = True
    guidance: float = 5.0
    gan_generator_weight: NotNegative = 0.03
    gan_discriminator_weight: NotNegative = 0.03
    relativistic: bool = False
    critic_clips: str = "together"
    r1: Penalty = Penalty()
    r2: Penalty = Penalty()

    def __post_init__(self) -> None:
        if self.context_gradient not in CONTEXT_GRADIENTS:
            raise InputError(
                f"context gradient: expected one of {CONTEXT_GRADIENTS}, found {self.context_gradient!r}"
            )
        if self.critic_clips not in CRITIC_CLIPS:
            raise InputError(
                f"critic clips: expected one of {CRITIC_CLIPS}, found {self.critic_clips!r}"
            )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Networks (their parameters come with each call), plan and settings.

    Attributes:
      generator, teacher, critic: the student, the real score, and the fake score with its head.
      plan: blocks of a training clip.
      settings: of the losses.
      shift: of the drawn noise levels.
    """

    generator: WanDiT
    teacher: WanDiT
    critic: Critic
    plan: Plan
    settings: Settings = Settings()
    shift: float = 5.0

    def draw_rollout(self, key: jax.Array, shape: tuple[int, ...]) -> ClipDraws:
        """Fresh randomness of a rollout of latents of `shape`."""
        return draw(key, shape, self.plan, self.settings.context_sigma, self.settings.random_exit)

    @property
    def steps(self) -> tuple[float, ...]:
        """Mean number of steps that each block of a training clip takes."""
        return mean_steps(self.plan, self.settings.random_exit)

    @property
    def first(self) -> int:
        """Number of the first block that takes gradients."""
        return first_of_window(self.plan, self.settings.gradient_blocks or None)

    def student(self, params: Params) -> Generator:
        """The causal generator with the given parameters."""
        apply = functools.partial(self.generator.apply, {"params": params})
        return Generator(apply, self.generator.config, context_sigma=self.settings.context_sigma)


class GeneratorDraws(NamedTuple):
    """Randomness of a generator update: one noise level [b] a clip, and noise like the latents."""

    rollout: ClipDraws
    dmd_sigma: jax.Array
    dmd_noise: jax.Array
    gan_sigma: jax.Array
    gan_noise: jax.Array


class CriticDraws(NamedTuple):
    """Randomness of a critic update; `gan_noise` is shared by real and generated samples."""

    rollout: ClipDraws
    denoise_sigma: jax.Array
    denoise_noise: jax.Array
    gan_sigma: jax.Array
    gan_noise: jax.Array
    r1_noise: jax.Array
    r2_noise: jax.Array


def draw_generator(method: Distillation, key: jax.Array, shape: tuple[int, ...]) -> GeneratorDraws:
    """Fresh randomness for latents of `shape`."""
    roll, dmd_sigma, dmd_noise, gan_sigma, gan_noise = jax.random.split(key, 5)
    return GeneratorDraws(
        method.draw_rollout(roll, shape),
        flow.sample_critic_sigma(dmd_sigma, shape[0], method.shift),
        jax.random.normal(dmd_noise, shape),
        flow.sample_critic_sigma(gan_sigma, shape[0], method.shift),
        jax.random.normal(gan_noise, shape),
    )


def draw_critic(method: Distillation, key: jax.Array, shape: tuple[int, ...]) -> CriticDraws:
    """Fresh randomness for latents of `shape`."""
    roll, sigma, noise, gan_sigma, gan_noise, r1, r2 = jax.random.split(key, 7)
    return CriticDraws(
        method.draw_rollout(roll, shape),
        flow.sample_critic_sigma(sigma, shape[0], method.shift),
        jax.random.normal(noise, shape),
        flow.sample_critic_sigma(gan_sigma, shape[0], method.shift),
        *(jax.random.normal(k, shape) for k in (gan_noise, r1, r2)),
    )


def real_x0(
    method: Distillation, params: Params, x_t: jax.Array, sigma: jax.Array, text: Any, negative: Any
) -> jax.Array:
    """Clean latents as the guided teacher sees them; both prompts in one forward."""
    prompts = [text, jnp.broadcast_to(negative, text.shape)]
    out: Any = method.teacher.apply(
        {"params": params}, *(side_by_side(x) for x in ([x_t, x_t], [sigma, sigma], prompts))
    )
    conditional, unconditional = out.flow[::2], out.flow[1::2]
    guided = flow.guide(conditional, unconditional, method.settings.guidance)
    return flow.x0_from_flow(x_t, guided, sigma)


def generator_loss(
    method: Distillation,
    params: Params,
    critic: Params,
    teacher: Params,
    batch: Batch,
    draws: GeneratorDraws,
) -> tuple[jax.Array, Metrics]:
    """L_G = L_DMD + lambda_G L_adv (equation 7) of the generator's parameters.

    Args:
      method: networks and settings.
      params, critic, teacher: parameters; only `params` takes gradients.
      batch: "text" [b, s, d], "negative" [s, d], and "latents" (read by the relativistic loss only).
      draws: randomness.
    """
    text, plan, settings = batch["text"], method.plan, method.settings
    with jax.named_scope("rollout"):
        x = differentiable(
            method.student(params),
            draws.rollout,
            text,
            plan,
            method.first,
            settings.context_gradient,
        )
    clean = jax.lax.stop_gradient(x)
    with jax.named_scope("scores"):
        x_t = flow.add_noise(clean, draws.dmd_noise, draws.dmd_sigma)
        fake: Any = method.critic.apply(
            {"params": critic}, x_t, draws.dmd_sigma, text, want_logit=False
        )
        x0_fake = flow.x0_from_flow(x_t, fake.flow, draws.dmd_sigma)
        x0_real = real_x0(method, teacher, x_t, draws.dmd_sigma, text, batch["negative"])
    gradient, replaced = dmd.gradient(clean, x0_fake, x0_real)
    frames = num_frames(plan[method.first :])
    loss = dmd_loss = dmd.loss(x, gradient, frames)
    size = jnp.abs(gradient[:, -frames:]).mean()
    metrics = {"dmd_loss": dmd_loss, "dmd_gradient": size, "dmd_replaced": replaced}
    if settings.gan_generator_weight:
        with jax.named_scope("adversarial"):
            adversarial, logit = generator_adversarial(method, critic, x, batch, draws)
        loss = dmd_loss + settings.gan_generator_weight * adversarial
        metrics |= {"gan_loss": adversarial, "fake_logit": logit.mean()}
    return loss, metrics | {"loss": loss}


def generator_adversarial(
    method: Distillation, critic: Params, x: jax.Array, batch: Batch, draws: GeneratorDraws
) -> tuple[jax.Array, jax.Array]:
    """L_adv of generated latents x [b, f, c, y, x], and their logits [b]."""

    def logit(latents: jax.Array) -> Any:
        x_t = flow.add_noise(latents, draws.gan_noise, draws.gan_sigma)
        scores: Any = method.critic.apply(
            {"params": critic}, x_t, draws.gan_sigma, batch["text"], want_flow=False
        )
        return scores.logit

    fake = logit(x)
    if not method.settings.relativistic:
        return gan.generator(fake), fake
    real = jax.lax.stop_gradient(logit(batch["latents"]))
    return gan.relativistic_generator(real, fake), fake


def critic_loss(
    method: Distillation, params: Params, generator: Params, batch: Batch, draws: CriticDraws
) -> tuple[jax.Array, Metrics]:
    """L_phi = L_fake + lambda_D L_adv (equation 8) of the critic's parameters.

    The clip to denoise, the generated one and the real one go through the backbone as one batch, or in
    turn (`critic_clips`).

    Args:
      method: networks and settings.
      params, generator: parameters; only `params` takes gradients.
      batch: "text" [b, s, d] and real "latents" [b, f, c, y, x].
      draws: randomness.
    """
    text, settings = batch["text"], method.settings
    with jax.named_scope("rollout"):
        x = generate(method.student(generator), draws.rollout, text, method.plan).latents
    x = jax.lax.stop_gradient(x)
    clips = [flow.add_noise(x, draws.denoise_noise, draws.denoise_sigma)]
    penalties: list[tuple[str, Penalty, int]] = []
    if settings.gan_discriminator_weight:
        fake, real = (
            flow.add_noise(y, draws.gan_noise, draws.gan_sigma) for y in (x, batch["latents"])
        )
        clips += [fake, real]
        for name, penalty, clip, of, noise in (
            ("r1", settings.r1, real, 2, draws.r1_noise),
            ("r2", settings.r2, fake, 1, draws.r2_noise),
        ):
            if penalty.weight:
                penalties.append((name, penalty, of))
                clips.append(clip + penalty.sigma * noise)
    sigmas = [draws.denoise_sigma, *[draws.gan_sigma] * (len(clips) - 1)]
    with jax.named_scope("judged"):
        flow_of_first, logits = _judged(method, params, clips, sigmas, text)
    loss = denoise.loss(flow_of_first, x, draws.denoise_noise)
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
    text: jax.Array,
) -> tuple[jax.Array, Any]:
    """The flow of the first clip, and the logits [b] of each clip; a single clip has none."""

    def scores(latents: jax.Array, sigma: jax.Array, text: jax.Array) -> Any:
        return method.critic.apply(
            {"params": params}, latents, sigma, text, want_logit=len(clips) > 1
        )

    count = len(clips)
    if method.settings.critic_clips == "in_turn" and count > 1:
        # A loop inside the program would keep the layer inputs of all clips twice, in two layouts.
        found = [scores(clip, sigma, text) for clip, sigma in zip(clips, sigmas, strict=True)]
        return found[0].flow, jnp.stack([one.logit for one in found])
    # Clips are ordered sample by sample, so that each device has all clips of its own samples.
    found = scores(side_by_side(clips), side_by_side(sigmas), side_by_side([text] * count))
    flows = found.flow.reshape(-1, count, *found.flow.shape[1:])
    return flows[:, 0], None if count == 1 else found.logit.reshape(-1, count).T


def _discriminator(method: Distillation, fake: jax.Array, real: jax.Array) -> jax.Array:
    return (
        gan.relativistic_discriminator(real, fake)
        if method.settings.relativistic
        else gan.discriminator(real, fake)
    )
