"""Operations of the transformer's passes, counted from the shapes.

A multiply and an add are two. Model operations are those of the method: they give the model's utilisation
(MFU). Hardware operations also hold the forwards that the backward pass computes again to save memory, as
the config's `remat` says. `targets/kernels.py` reads from a compiled program what it really does.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from oneforcing_jax.causal.plan import Plan, mean_steps
from oneforcing_jax.causal.structures import KEPT
from oneforcing_jax.models.kernels.groups import Group
from oneforcing_jax.models.wan import WanConfig


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
        """Operations of the forward alone."""
        return self.linear + self.attention

    @property
    def train(self) -> float:
        """Operations of forward and backward, with nothing computed again."""
        return 3 * self.forward

    @property
    def train_input(self) -> float:
        """The same where the weights take no gradient: their products have one backward product."""
        return 2 * self.linear + 3 * self.attention

    def again(self, remat: str) -> float:
        """Operations that a backward pass computes again; with "attention", those of an accelerator."""
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


@functools.lru_cache(KEPT)
def structured(c: WanConfig, frame_tokens: int, groups: tuple[Group, ...]) -> Flops:
    """A forward with an attention structure."""
    sizes = [(g.queries[1] - g.queries[0], sum(b - a for a, b in g.keys)) for g in groups]
    return dit(c, frame_tokens, sum(q for q, _ in sizes), sum(q * k for q, k in sizes))


@functools.lru_cache(KEPT)
def generation(
    c: WanConfig, frame_tokens: int, plan: Plan, steps: tuple[float, ...] | None = None
) -> Flops:
    """A rollout: the steps of every block, and the clean pass of all but the last.

    Args:
      c, frame_tokens: see `dit`.
      plan: the blocks.
      steps: of each block; None: all that it has.
    """
    steps = mean_steps(plan) if steps is None else steps
    total, stop = Flops(0.0, 0.0), 0
    for number, (block, count) in enumerate(zip(plan, steps, strict=True)):
        stop += block.frames
        passes = count + (number < len(plan) - 1)
        one = dit(c, frame_tokens, block.frames, block.frames * stop, prompts=0)
        total = total.plus(Flops(passes * one.linear, passes * one.attention))
    return total
