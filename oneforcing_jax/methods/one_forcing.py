"""One-Forcing: distribution matching and an adversarial loss on the student's own rollout (Algorithm 1).

Its settings also make the methods that it is compared with; docs/method.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from oneforcing_jax.causal import flops
from oneforcing_jax.causal.flops import Flops
from oneforcing_jax.causal.generate import UNTIL_EXIT, generate
from oneforcing_jax.causal.plan import Plan
from oneforcing_jax.causal.replay import differentiable
from oneforcing_jax.causal.sequential import sequential
from oneforcing_jax.causal.structures import noisy_after_clean, teacher_forcing
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import (
    Batch,
    Definition,
    Method,
    Metrics,
    Network,
    Sampled,
    Timed,
    Update,
    Work,
    causal_ode,
    distillation,
    own_rollout,
    sample_fields,
)
from oneforcing_jax.methods.causal_ode import Ode
from oneforcing_jax.methods.distillation import CRITIC_CLIPS, Distillation, Settings
from oneforcing_jax.models import critic, wan
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.run import Run

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config: sizes of the networks and of the adversarial head, and the settings.

    `ode` is read where the forward KL has a weight: it says which rows of trajectories a batch holds.
    """

    generator: WanConfig
    teacher: WanConfig
    critic: WanConfig
    head: HeadConfig
    one_forcing: Settings
    ode: Ode | None = None


def described(config: Config, run: Run) -> Distillation:
    """Networks, plan and settings of the losses.

    Raises:
      InputError: a forward KL without trajectories at a noise level of the student, or given blocks of
        clips that have no other.
    """
    made = Distillation(
        wan.model(config.generator, run.product("generator")),
        wan.model(config.teacher),
        critic.model(config.critic, config.head, run.product("critic")),
        run.plan,
        config.one_forcing,
        run.shift,
        causal_ode.levels(config.ode, run.shift) if config.ode else (),
    )
    if made.settings.forward_kl_weight and not made.rows:
        raise InputError(
            f"one_forcing.forward_kl_weight: expected a section 'ode' that keeps a row at one of the noise "
            f"levels {list(made.plan[-1].sigmas)} of the student's steps, found rows at "
            f"{list(made.levels)}; change ode.kept, or set the weight to 0"
        )
    if made.settings.given_rate and len(made.plan) == 1:
        raise InputError(
            "one_forcing.given_rate: expected clips of 2 blocks or more, of which the first is given, found "
            f"1 block of {run.latents.frames} frames; set blocks.first_frames, or the rate to 0"
        )
    return made


def updates(d: Distillation, work: Mapping[str, Work] | None = None) -> tuple[Update, ...]:
    """A generator update in every K iterations, and a critic update in each."""
    work = work or dict.fromkeys(("generator", "critic"), Work())

    def draw_generator(key: jax.Array, batch: Batch) -> distillation.GeneratorDraws:
        return distillation.draw_generator(d, key, batch["latents"].shape)

    def draw_critic(key: jax.Array, batch: Batch) -> distillation.CriticDraws:
        return distillation.draw_critic(d, key, batch["latents"].shape)

    def generator(
        params: Params, nets: Mapping[str, Params], batch: Batch, draws: distillation.GeneratorDraws
    ) -> tuple[jax.Array, Metrics]:
        teacher = nets.get(TEACHER, {})  # distribution matching alone reads it
        return own_rollout.generator_loss(d, params, nets["critic"], teacher, batch, draws)

    def critic(
        params: Params, nets: Mapping[str, Params], batch: Batch, draws: distillation.CriticDraws
    ) -> tuple[jax.Array, Metrics]:
        return own_rollout.critic_loss(d, params, nets["generator"], batch, draws)

    every = d.settings.generator_every
    return (
        Update("generator", every, draw_generator, generator, work["generator"]),
        Update("critic", 1, draw_critic, critic, work["critic"]),
    )


def networks(d: Distillation) -> dict[str, Network]:
    """Networks by name; a critic may start from a plain transformer, with a random head."""
    teacher = {TEACHER: Network(d.teacher, "teacher")} if d.settings.dmd_weight else {}
    return {
        "generator": Network(d.generator, "generator"),
        "critic": Network(d.critic, "critic", backbone="model"),
    } | teacher


def make(config: Config, run: Run) -> Method:
    """The method."""
    d = described(config, run)
    refused = ""
    if d.settings.gradient_blocks > len(d.plan):
        refused = (
            f"one_forcing.gradient_blocks: expected at most the {len(d.plan)} blocks of a clip, found "
            f"{d.settings.gradient_blocks}; 0 means all"
        )
    size = run.latents
    rows = (len(d.levels) + 1, *size.shape)
    trajectories = {"trajectory": rows} if d.settings.forward_kl_weight else {}
    model = operations(d, size.rows, size.columns)
    hardware = operations(d, size.rows, size.columns, recomputed=True)
    seen = keys_seen(d.plan, d.steps)
    # Where the last step is drawn, half of those after the first run in the mean.
    branches = {"_tap": len(config.head.layers) / config.critic.num_layers, UNTIL_EXIT: 0.5}
    work = {
        net: Work(model[net], hardware[net], keys_seen=seen, branches=branches)
        for net in ("generator", "critic")
    }
    return Method(
        nets=networks(d),
        updates=updates(d, work),
        sampled=Sampled("generator", d.plan),
        fields=sample_fields(run, d.generator) | trajectories,
        left_out=() if d.settings.dmd_weight else (TEACHER,),
        choices={"one_forcing.critic_clips": CRITIC_CLIPS},
        parts=lambda nets, batch: parts(d, model, nets, batch),
        refused=refused,
    )


METHOD = Definition(Config, make)


def operations(
    d: Distillation, rows: int, columns: int, recomputed: bool = False
) -> dict[str, float]:
    """One clip's share of an iteration, by parts and by updated network.

    "replay" and "sequential" are gradients of the rollout and hold it. The adversarial head, less than a
    percent, is not counted.

    Args:
      d: networks, plan and settings.
      rows, columns: of a latent frame.
      recomputed: count what the backward pass computes again.
    """
    generator, teacher, critic = d.generator.config, d.teacher.config, d.critic.config
    settings, frames = d.settings, sum(block.frames for block in d.plan)
    tokens = generator.frame_tokens(rows, columns)
    judged = flops.clip(critic, tokens, frames)

    def rolled(stop: int | None = None, steps: tuple[float, ...] = d.steps) -> Flops:
        return flops.generation(generator, tokens, d.plan[:stop], steps[:stop])

    made, last = rolled(), (1.0,) * len(d.plan)
    layout = [block.frames for block in d.plan]
    groups = noisy_after_clean(layout, first=d.first)
    replayed = flops.structured(generator, tokens, groups)
    forced = flops.structured(generator, tokens, teacher_forcing(layout))
    again = recomputed * judged.again(critic.remat)
    adversarial = judged.train_input + again + settings.relativistic * judged.forward
    penalties = bool(settings.r1.weight) + bool(settings.r2.weight)
    clips = 3 + penalties if settings.gan_discriminator_weight else 1
    # The last step and the clean pass of a block in the window take gradients.
    window = rolled(steps=last).less(rolled(d.first, last))
    sequential = window.train + recomputed * window.again(generator.remat)
    scored = judged.forward + 2 * flops.clip(teacher, tokens, frames).forward
    found = {
        "rollout": made.forward,
        "scores": bool(settings.dmd_weight) * scored,
        "forward_kl": bool(settings.forward_kl_weight)
        * (forced.train + recomputed * forced.again(generator.remat)),
        "adversarial": bool(settings.gan_generator_weight) * adversarial,
        "replay": made.forward + replayed.train + recomputed * replayed.again(generator.remat),
        "sequential": made.less(window).forward + sequential,
        "critic": made.forward + clips * (judged.train + again),
    }
    gradient = found["sequential" if settings.context_gradient == "full" else "replay"]
    gradient *= bool(settings.dmd_weight or settings.gan_generator_weight)
    terms = found["scores"] + found["adversarial"] + found["forward_kl"]
    if settings.real == "self":
        longer = flops.generation(generator, tokens, d.longer).forward
        found["critic"] += bool(settings.gan_discriminator_weight) * longer
        terms += bool(settings.relativistic and settings.gan_generator_weight) * longer
    return found | {"generator": terms + gradient}


def keys_seen(plan: Plan, steps: Sequence[float]) -> float:
    """Mean share of a clip's keys that the passes of a rollout see; `steps` are those of each block."""
    seen, asked, stop = 0.0, 0.0, 0
    for number, (block, count) in enumerate(zip(plan, steps, strict=True)):
        stop += block.frames
        queries = block.frames * (count + (number < len(plan) - 1))
        seen, asked = seen + queries * stop, asked + queries
    return seen / (asked * stop)


def parts(
    d: Distillation, work: Mapping[str, float], nets: Mapping[str, Params], batch: Batch
) -> Iterator[Timed]:
    """Pieces of the two updates as functions of their own, to be timed."""
    condition, mode = d.generator.condition(batch), d.settings.context_gradient
    draws = distillation.draw_generator(d, jax.random.key(0), batch["latents"].shape)
    x, sigma = draws.dmd_noise, draws.dmd_sigma

    def rollout(params: Params) -> jax.Array:
        return generate(d.student(params), draws.rollout, condition, d.plan).latents

    def scores(critic: Params, teacher: Params) -> tuple[jax.Array, jax.Array]:
        judged = d.critic.condition(batch)
        fake: Any = d.critic.apply(critic, x, sigma, judged, want_logit=False)
        return fake.flow, own_rollout.real_x0(d, teacher, x, sigma, batch)

    def adversarial(critic: Params) -> jax.Array:
        def loss(latents: jax.Array) -> jax.Array:
            real = batch["latents"] if d.settings.relativistic else None
            return own_rollout.generator_adversarial(d, critic, latents, real, batch, draws)[0]

        return jax.grad(loss)(x)

    def gradient(form: Callable[..., jax.Array]) -> Callable[[Params], Params]:
        def weighted(params: Params) -> jax.Array:
            clip = form(d.student(params), draws.rollout, condition, d.plan, d.first, mode)
            return jnp.vdot(x, clip)

        return jax.grad(weighted)

    generator, critic = nets["generator"], nets["critic"]
    yield Timed("rollout", rollout, (generator,), work["rollout"])
    if d.settings.dmd_weight:
        yield Timed("scores", scores, (critic, nets[TEACHER]), work["scores"])
    if d.settings.gan_generator_weight:
        yield Timed("adversarial", adversarial, (critic,), work["adversarial"])
    yield Timed("replay", gradient(differentiable), (generator,), work["replay"])
    yield Timed("sequential", gradient(sequential), (generator,), work["sequential"])
