"""A many-step bidirectional model as a maker of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
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
      frame_levels: of its family.
    """

    model: Model
    params: Params
    null: Condition
    sampler: samplers.Sampler
    guidance: float
    mesh: Mesh | None
    frame_levels: bool = False

    def prepare(self, condition: Condition) -> Condition:
        """The condition itself."""
        return condition

    def stream(
        self, noise: Noise, conditions: Conditions, plan: Plan, given: jax.Array | None = None
    ) -> Iterator[jax.Array]:
        """What `Student.stream` gives, frame by frame, so that decoding holds one at a time.

        Raises:
          InputError: conditions that change, or given frames where the network knows one noise level a clip.
        """
        if callable(conditions) or (given is not None and not self.frame_levels):
            raise InputError(
                "teacher: it makes whole clips, from one prompt; frames are given only to networks that are "
                "told a noise level for every frame"
            )
        known = 0 if given is None else given.shape[1]
        start = noise(known, Block(num_frames(plan), (1.0,))).start
        if given is not None:
            start = jnp.concatenate([given, start], 1)
        with sharding.using(self.mesh):
            clip = samplers.sample(
                self.model, self.params, start, conditions, self.null, self.sampler,
                guidance=self.guidance, given=given,
            )  # fmt: skip
        yield from (clip[:, i : i + 1] for i in range(known, clip.shape[1]))
