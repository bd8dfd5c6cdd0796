"""Operations of the transformer's passes and of training updates, counted from the shapes.

A multiply and an add are two. Model operations are those of the method: they give the model's utilisation
(MFU). Hardware operations also hold the forwards that the backward pass computes again to save memory, as
the config's `remat` says; what a compiled program really does, `targets/kernels.py` reads from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from oneforcing_jax import build
from oneforcing_jax.causal import rollout
from oneforcing_jax.causal.rollout import Plan
from oneforcing_jax.models import attention
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.targets import chips


def peak(device_kind: str) -> float | None:
    """Peak of a device in operations a second; None for one that is not in the table, such as a CPU."""
    chip = chips.find(device_kind)
    return chip.peak if chip else None


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

    def less(self, other: Flops) -> Flops:
        """What is left without the other."""
        return Flops(self.linear - other.linear, self.attention - other.attention)

    @property
    def forward(self) -> float:
        """Of the forward alone."""
        return self.linear + self.attention

    @property
    def train(self) -> float:
        """Of forward and backward, nothing computed again."""
        return 3 * self.forward

    @property
    def train_input(self) -> float:
        """The same where the weights take no gradient: their products have one backward product."""
        return 2 * self.linear + 3 * self.attention

    def again(self, remat: str) -> float:
        """Of what a backward pass computes again; with "attention", as an accelerator does it."""
        again = {"full": self.forward, "offload": self.forward, "attention": self.linear}
        return again.get(remat, 0.0)


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


def update(config: ConfigDict, stage: ConfigDict, net: str, recomputed: bool = False) -> float:
    """Operations of one update of a stage, whole batch.

    Args:
      config, stage: the whole, and the stage.
      net: the network that it trains.
      recomputed: count what the backward pass computes again: hardware operations, not the model's.
    """
    name = "generator" if net == "model" and stage.method != "teacher" else net
    name = "teacher" if stage.method == "teacher" else name
    trained = build.model(config, name)
    frames, tokens = config.latents.frames, _frame_tokens(config, trained)
    if stage.method == "one_forcing":
        return stage.batch * _one_forcing(config, net, recomputed)
    if stage.method == "teacher":
        once = clip(trained, tokens, frames)
    else:
        once = structured(trained, tokens, attention.teacher_forcing(build.layout(config)))
    return stage.batch * (once.train + recomputed * once.again(trained.remat))


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


def one_forcing_parts(config: ConfigDict, recomputed: bool = False) -> dict[str, float]:
    """One clip's share of a One-Forcing iteration, by parts; "replay" and "sequential" are gradients of
    the rollout and hold it. The adversarial head, less than a percent, is not counted.

    Args:
      config: the whole.
      recomputed: as in `update`.
    """
    generator, teacher, critic = (
        build.model(config, n) for n in ("generator", "teacher", "critic")
    )
    frames, tokens = config.latents.frames, _frame_tokens(config, generator)
    settings, plan = config.one_forcing, build.plan(config)
    made, judged = generation(generator, tokens, plan), clip(critic, tokens, frames)
    first = rollout.first_of_window(plan, settings.gradient_blocks or None)
    before = generation(generator, tokens, plan[:first])
    groups = attention.noisy_after_clean(build.layout(config), first=first)
    gan = bool(settings.gan_generator_weight)
    replayed = structured(generator, tokens, groups)
    again = recomputed * judged.again(critic.remat)
    adversarial = judged.train_input + again + settings.relativistic * judged.forward
    real = settings.gan_discriminator_weight
    clips = 1 + (2 + bool(settings.r1.weight) + bool(settings.r2.weight) if real else 0)
    window = made.less(before)
    sequential = window.train + recomputed * window.again(generator.remat)
    return {
        "rollout": made.forward,
        "scores": judged.forward + 2 * clip(teacher, tokens, frames).forward,
        "adversarial": gan * adversarial,
        "replay": made.forward + replayed.train + recomputed * replayed.again(generator.remat),
        "sequential": before.forward + sequential,
        "critic": made.forward + clips * (judged.train + again),
    }


def _one_forcing(config: ConfigDict, net: str, recomputed: bool) -> float:
    parts = one_forcing_parts(config, recomputed)
    if net == "critic":
        return parts["critic"]
    full = config.one_forcing.context_gradient == "full"
    gradient = parts["sequential" if full else "replay"]
    return parts["scores"] + parts["adversarial"] + gradient
