"""A many-step bidirectional model as a maker of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.causal.plan import Block, Plan, num_frames
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation import samplers
from oneforcing_jax.generation.noise import Noise
from oneforcing_jax.generation.student import Conditions
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A bidirectional model as a maker of videos, each of one block of many steps.

    Attributes:
      model, params: of the transformer.
      null: the condition that guidance leads away from.
      sampler, guidance: see `samplers.sample`.
      mesh: devices over which a batch is split; None: the default device.
    """

    model: Model
    params: Params
    null: Condition
    sampler: samplers.Sampler
    guidance: float
    mesh: Mesh | None

    def prepare(self, condition: Condition) -> Condition:
        """The condition itself."""
        return condition

    def stream(
        self, noise: Noise, conditions: Conditions, plan: Plan, given: jax.Array | None = None
    ) -> Iterator[jax.Array]:
        """What `Student.stream` gives, frame by frame, so that decoding holds one at a time.

        Raises:
          InputError: given frames, or conditions that change.
        """
        if given is not None or callable(conditions):
            raise InputError("teacher: it makes whole clips, from one prompt and no given frames")
        start = noise(0, Block(num_frames(plan), (1.0,))).start
        with sharding.using(self.mesh):
            clip = samplers.sample(
                self.model, self.params, start, conditions, self.null, self.sampler,
                guidance=self.guidance,
            )  # fmt: skip
        yield from (clip[:, i : i + 1] for i in range(clip.shape[1]))
