"""Distillation of a student on its own rollout: settings, networks and randomness of `own_rollout`."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from oneforcing_jax import flow
from oneforcing_jax.causal.generate import Generator
from oneforcing_jax.causal.plan import (
    ClipDraws,
    Plan,
    draw,
    first_of_window,
    mean_steps,
    with_one_more_step,
)
from oneforcing_jax.causal.sequential import check_context_gradient
from oneforcing_jax.errors import InputError
from oneforcing_jax.losses import gan
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.setup.ranges import Count, Natural, NotNegative, Positive, Share

REALS = ("data", "self")
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
      dmd_weight, forward_kl_weight: of distribution matching and of equation 10 in the generator's loss;
        0 leaves the branch out, and without distribution matching there is no teacher.
      context_gradient: "straight_through", "stop" or "full".
      context_sigma: noise level of finished blocks before their clean pass.
      random_exit: blocks of several steps end at a step drawn from their list, one for all blocks and
        clips of an update (Self Forcing); otherwise all their steps run. The last that runs takes gradients.
      given_rate: share of clips whose first block is given: the clean latents of the data, as in videos
        that begin with an image. No loss falls on it, and all networks are told level 0 of its frames.
      guidance: s in cond + s (cond - uncond) of the teacher.
      gan_generator_weight, gan_discriminator_weight: lambda_G and lambda_D; 0 leaves the branch out.
      real: what the discriminator takes for real: clips of the "data", or the student's "self", its own
        clips in one step more a block (adversarial self-distillation, ASD).
      relativistic: compare real and fake in pairs.
      critic_clips: whether the clips of a critic update go through the backbone side by side
        ("together") or one after the other ("in_turn"). The latter makes the same sums with the temporaries
        of one clip, but its program is as much longer.
      r1, r2: penalties on real and generated samples.
    """

    generator_every: Count = 5
    gradient_blocks: Natural = 0
    dmd_weight: NotNegative = 1.0
    forward_kl_weight: NotNegative = 0.0
    context_gradient: str = "straight_through"
    context_sigma: Share = 0.0
    random_exit: bool = True
    given_rate: Share = 0.0
    guidance: float = 5.0
    gan_generator_weight: NotNegative = 0.03
    gan_discriminator_weight: NotNegative = 0.03
    real: str = "data"
    relativistic: bool = False
    critic_clips: str = "together"
    r1: Penalty = Penalty()
    r2: Penalty = Penalty()

    def __post_init__(self) -> None:
        check_context_gradient(self.context_gradient)
        if self.critic_clips not in CRITIC_CLIPS:
            raise InputError(
                f"critic clips: expected one of {CRITIC_CLIPS}, found {self.critic_clips!r}"
            )
        if self.real not in REALS:
            raise InputError(f"real: expected one of {REALS}, found {self.real!r}")
        if not (self.dmd_weight or self.gan_generator_weight or self.forward_kl_weight):
            raise InputError(
                "expected a loss of the generator, found dmd_weight, gan_generator_weight and "
                "forward_kl_weight all 0; set one of them"
            )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Networks (their parameters come with each call), plan and settings.

    Attributes:
      generator, teacher, critic: the student, the real score, and the fake score with its head.
      plan: blocks of a training clip.
      settings: of the losses.
      shift: of the drawn noise levels.
      levels: noise levels of the kept rows of a batch's trajectories; (): there are none.
    """

    generator: Model
    teacher: Model
    critic: Model
    plan: Plan
    settings: Settings = Settings()
    shift: float = 5.0
    levels: tuple[float, ...] = ()

    @property
    def longer(self) -> Plan:
        """The plan with one step more in every block."""
        return with_one_more_step(self.plan, self.shift)

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of the kept rows that lie at noise levels of the student's steps."""
        own = self.plan[-1].sigmas
        near = (any(abs(level - sigma) < 1e-6 for sigma in own) for level in self.levels)
        return tuple(row for row, there in enumerate(near) if there)

    def draw_rollout(self, key: jax.Array, shape: tuple[int, ...]) -> ClipDraws:
        """Fresh randomness of a rollout of latents of `shape`."""
        settings = self.settings
        how = settings.context_sigma, settings.random_exit, settings.given_rate
        return draw(key, shape, self.plan, *how)

    def draw_longer(self, key: jax.Array, shape: tuple[int, ...], rollout: ClipDraws) -> ClipDraws:
        """Randomness of the same clips in one step more a block; only the noise between steps is fresh."""
        fresh = draw(key, shape, self.longer, 0.0)
        return fresh._replace(start=rollout.start, context=rollout.context, given=rollout.given)

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
        return Generator(self.generator, params, context_sigma=self.settings.context_sigma)


class GeneratorDraws(NamedTuple):
    """Randomness of a generator update: one noise level [b] a clip, and noise like the latents.

    `row` [b] numbers the rows of the forward KL; `real` makes clips that count as real, for the relativistic
    loss. Each is None where nothing reads it.
    """

    rollout: ClipDraws
    dmd_sigma: jax.Array
    dmd_noise: jax.Array
    gan_sigma: jax.Array
    gan_noise: jax.Array
    row: jax.Array | None = None
    real: ClipDraws | None = None


class CriticDraws(NamedTuple):
    """Randomness of a critic update; `gan_noise` is shared by real and generated samples.

    `real` makes clips that count as real; None: the batch's do.
    """

    rollout: ClipDraws
    denoise_sigma: jax.Array
    denoise_noise: jax.Array
    gan_sigma: jax.Array
    gan_noise: jax.Array
    r1_noise: jax.Array
    r2_noise: jax.Array
    real: ClipDraws | None = None


def draw_generator(method: Distillation, key: jax.Array, shape: tuple[int, ...]) -> GeneratorDraws:
    """Fresh randomness for latents of `shape`."""
    roll, dmd_sigma, dmd_noise, gan_sigma, gan_noise = jax.random.split(key, 5)
    settings, rollout, row, real = method.settings, method.draw_rollout(roll, shape), None, None
    more = jax.random.split(jax.random.fold_in(key, 1))
    if settings.forward_kl_weight:
        row = jax.random.randint(more[0], shape[:1], 0, len(method.rows))
    if settings.gan_generator_weight and settings.relativistic and settings.real == "self":
        real = method.draw_longer(more[1], shape, rollout)
    return GeneratorDraws(
        rollout,
        flow.sample_critic_sigma(dmd_sigma, shape[0], method.shift),
        jax.random.normal(dmd_noise, shape),
        flow.sample_critic_sigma(gan_sigma, shape[0], method.shift),
        jax.random.normal(gan_noise, shape),
        row,
        real,
    )


def draw_critic(method: Distillation, key: jax.Array, shape: tuple[int, ...]) -> CriticDraws:
    """Fresh randomness for latents of `shape`."""
    roll, sigma, noise, gan_sigma, gan_noise, r1, r2 = jax.random.split(key, 7)
    settings, rollout, real = method.settings, method.draw_rollout(roll, shape), None
    if settings.gan_discriminator_weight and settings.real == "self":
        real = method.draw_longer(jax.random.fold_in(key, 1), shape, rollout)
    return CriticDraws(
        rollout,
        flow.sample_critic_sigma(sigma, shape[0], method.shift),
        jax.random.normal(noise, shape),
        flow.sample_critic_sigma(gan_sigma, shape[0], method.shift),
        jax.random.normal(gan_noise, shape),
        jax.random.normal(r1, shape),
        jax.random.normal(r2, shape),
        real,
    )
