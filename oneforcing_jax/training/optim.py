"""Optimisers, as optax transformations."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.ranges import Decay, Natural, NotNegative, Positive

OPTIMISERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """Settings of one network's optimiser; the defaults are the paper's.

    Attributes:
      name: "adamw", or "muon" (matrices of the layers by Muon, the rest by AdamW).
      learning_rate: peak.
      beta1, beta2, eps, weight_decay: of AdamW. With beta1 = 0 no first moment is stored.
      clip: global norm to which gradients are clipped.
      warmup: updates over which the learning rate rises linearly.
      decay: updates over which it then falls along a cosine to a tenth; 0: constant.
    """

    name: str = "adamw"
    learning_rate: Positive = 1e-5
    beta1: Decay = 0.0
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    clip: Positive = 10.0
    warmup: Natural = 0
    decay: Natural = 0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise InputError(
                f"optimiser: expected one of {OPTIMISERS}, found {self.name!r}; choose one of them"
            )

    def make(self) -> optax.GradientTransformation:
        """The transformation; clipping first."""
        return optax.chain(optax.clip_by_global_norm(self.clip), self._rule())

    def _schedule(self) -> optax.ScalarOrSchedule:
        if not self.warmup and not self.decay:
            return self.learning_rate
        start = optax.linear_schedule(0.0 if self.warmup else 1.0, 1.0, max(self.warmup, 1))
        end = (
            optax.cosine_decay_schedule(1.0, self.decay, 0.1)
            if self.decay
            else optax.constant_schedule(1.0)
        )
        joined = optax.join_schedules([start, end], [self.warmup])
        return lambda count: self.learning_rate * joined(count)

    def _rule(self) -> optax.GradientTransformation:
        if self.name == "muon":
            return optax.contrib.muon(
                self._schedule(),
                weight_decay=self.weight_decay,
                adam_b1=self.beta1,
                adam_b2=self.beta2,
                adam_weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=_layer_matrices,
                consistent_rms=0.2,
            )
        if self.beta1:
            scale = optax.scale_by_adam(self.beta1, self.beta2, self.eps)
        else:
            scale = optax.scale_by_rms(
                self.beta2, self.eps, eps_in_sqrt=False, bias_correction=True
            )
        return optax.chain(
            scale,
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self._schedule()),
        )


def _layer_matrices(params: Any) -> Any:
    """Which leaves Muon takes: stacked kernels [l, in, out] of the layers."""

    def of(path: Any, leaf: Any) -> Any:
        names = [getattr(k, "key", None) for k in path]
        matrix = "blocks" in names and "kernel" in names and leaf.ndim == 3
        return optax.contrib.MuonDimensionNumbers(1, 2) if matrix else None

    return jax.tree_util.tree_map_with_path(of, params)
