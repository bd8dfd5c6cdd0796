"""Operations of the transformer's passes and of training updates, counted from the shapes.

A multiply and an add are two. XLA's own count takes the body of a scan once, so it cannot serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from oneforcing_jax import build, rollout
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.rollout import Plan

# Dense bf16 operations a second that the makers state, by the beginning of JAX's name of the device.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak(device_kind: str) -> float | None:
    """Peak of a device in operations a second; None for one that is not in the table, such as a CPU."""
    return next((rate for name, rate in PEAKS.items() if device_kind.startswith(name)), None)


class Flops(NamedTuple):
    """Operations of a forward (a multiply and an add are two).

    Attributes:
      linear: in products with weights.
      attention: in products of activations with each other.
    """

    linear: float
    attention: float

    def plus(self, other: Flops) -> Flops:
        """Both."""
        return Flops(self.linear + other.linear, self.attention + other.attention)

    @property
    def forward(self) -> float:
        """Of the forward alone."""
        return self.linear + self.attention

    def train(self, remat: str) -> float:
        """Of forward and backward."""
        return (3 + (remat == "full")) * self.forward

    def train_input(self, remat: str) -> float:
        """The same where the weights take no gradient: their products have one backward product."""
        again = 1 + (remat == "full")
        return (again + 1) * self.linear + (again + 2) * self.attention


def dit(c: WanConfig, frame_tokens: int, asked: int, pairs: int, prompts: int = 1) -> Flops:
    """A forward of one clip.

    Args:
      c: sizes of the transformer.
      frame_tokens: tokens of a frame.
      asked: frames that go through.
      pairs: pairs of a frame that asks and a frame that it sees; a bidirectional clip has frames^2.
      prompts: how often the keys and values of the text are computed.
    """
    tokens, d, s = asked * frame_tokens, c.dim, c.text_len
    per_token = 4 * d * d + 2 * d * d + 2 * d * c.ffn_dim  # self, cross (query and out), ffn
    layer = 2 * tokens * per_token + prompts * 2 * s * 2 * d * d
    patch = c.patch**2
    stem = tokens * patch * (c.in_dim + c.out_dim) * d + prompts * s * d * (c.text_dim + d)
    time_embedding = asked * d * (c.freq_dim + d + 6 * d)
    seen = 4 * d * (pairs * frame_tokens**2 + tokens * s)
    linear = c.num_layers * layer + 2 * (stem + time_embedding)
    return Flops(float(linear), float(c.num_layers * seen))


def clip(c: WanConfig, frame_tokens: int, frames: int) -> Flops:
    """A bidirectional forward."""
    return dit(c, frame_tokens, frames, frames**2)


def structured(c: WanConfig, frame_tokens: int, groups: Sequence[attention.Group]) -> Flops:
    """A forward with an attention structure."""
    sizes = [(g.queries[1] - g.queries[0], sum(b - a for a, b in g.keys)) for g in groups]
    return dit(c, frame_tokens, sum(q for q, _ in sizes), sum(q * k for q, k in sizes))


def generation(c: WanConfig, frame_tokens: int, plan: Plan) -> Flops:
    """A rollout: all steps of every block, and the clean pass of all but the last."""
    total, stop = Flops(0.0, 0.0), 0
    for number, block in enumerate(plan):
        stop += block.frames
        passes = len(block.sigmas) + (number < len(plan) - 1)
        one = dit(c, frame_tokens, block.frames, block.frames * stop, prompts=0)
        total = total.plus(Flops(passes * one.linear, passes * one.attention))
    return total


def update(config: ConfigDict, stage: ConfigDict, net: str) -> float:
    """Operations of one update of a stage, whole batch."""
    name = "generator" if net == "model" and stage.method != "teacher" else net
    name = "teacher" if stage.method == "teacher" else name
    trained = build.model(config, name)
    frames, tokens = config.latents.frames, _frame_tokens(config, trained)
    if stage.method == "teacher":
        return stage.batch * clip(trained, tokens, frames).train(trained.remat)
    if stage.method in ("teacher_forcing", "causal_ode"):
        groups = attention.teacher_forcing(build.layout(config))
        return stage.batch * structured(trained, tokens, groups).train(trained.remat)
    return stage.batch * _one_forcing(config, net)


def updates(config: ConfigDict, stage: ConfigDict, nets: Sequence[str]) -> dict[str, float]:
    """Operations of one update of each network that a stage trains."""
    return {net: update(config, stage, net) for net in nets}


def tokens(config: ConfigDict, stage: ConfigDict) -> int:
    """Tokens of the clips of a batch."""
    return (
        stage.batch
        * config.latents.frames
        * _frame_tokens(config, build.model(config, "generator"))
    )


def _frame_tokens(config: ConfigDict, c: WanConfig) -> int:
    return c.frame_tokens(config.latents.rows, config.latents.columns)


def one_forcing_parts(config: ConfigDict) -> dict[str, float]:
    """One clip's share of a One-Forcing iteration, by parts; "replay" and "sequential" are gradients of
    the rollout and hold it. The adversarial head, less than a percent, is not counted."""
    generator, teacher, critic = (
        build.model(config, n) for n in ("generator", "teacher", "critic")
    )
    frames, tokens = config.latents.frames, _frame_tokens(config, generator)
    settings, plan = config.one_forcing, build.plan(config)
    made, judged = generation(generator, tokens, plan), clip(critic, tokens, frames)
    first = rollout.first_of_window(plan, settings.gradient_blocks or None)
    before = generation(generator, tokens, plan[:first]).forward
    groups = attention.noisy_after_clean(build.layout(config), first=first)
    gan = bool(settings.gan_generator_weight)
    adversarial = judged.train_input(critic.remat) + settings.relativistic * judged.forward
    real = settings.gan_discriminator_weight
    clips = 1 + (2 + bool(settings.r1.weight) + bool(settings.r2.weight) if real else 0)
    return {
        "rollout": made.forward,
        "scores": judged.forward + 2 * clip(teacher, tokens, frames).forward,
        "adversarial": gan * adversarial,
        "replay": made.forward + structured(generator, tokens, groups).train(generator.remat),
        "sequential": before + 4 * (made.forward - before),
        "critic": made.forward + clips * judged.train(critic.remat),
    }


def _one_forcing(config: ConfigDict, net: str) -> float:
    parts = one_forcing_parts(config)
    if net == "critic":
        return parts["critic"]
    full = config.one_forcing.context_gradient == "full"
    gradient = parts["sequential" if full else "replay"]
    return parts["scores"] + parts["adversarial"] + gradient
