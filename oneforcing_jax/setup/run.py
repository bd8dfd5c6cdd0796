"""A run as its config describes it, read once into typed records.

The fields that every run has are here. A training method or a kind of stage declares a record of the sections
that it reads, and `view` makes it. A section that nobody declares is taken for a misspelt one and refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from oneforcing_jax.causal.plan import Plan, make_plan
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.products import Product, low_rank
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.ranges import Count, Frames, Natural, Positive, Rate, Seed
from oneforcing_jax.system import files, integrity

Sections = TypeVar("Sections")


@dataclasses.dataclass(frozen=True)
class Latents:
    """Size of a training clip's latents.

    Attributes:
      frames: latent frames of a clip.
      channels: of the codec.
      rows, columns: of a latent frame.
    """

    frames: Frames
    channels: Count
    rows: Count
    columns: Count

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(f, c, y, x)."""
        return self.frames, self.channels, self.rows, self.columns


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Autoregressive blocks of a training clip.

    Attributes:
      frames, steps: of every block; steps are unwarped timesteps.
      first_frames, first_steps: of the first block; 0 and (): as the others.
    """

    frames: Count
    steps: tuple[Positive, ...]
    first_frames: Natural = 0
    first_steps: tuple[Positive, ...] = ()

    @property
    def said(self) -> dict[str, Any]:
        """As a video's file says them."""
        return {
            "block_frames": self.frames, "steps": self.steps,
            "first_frames": self.first_frames or self.frames,
            "first_steps": self.first_steps or self.steps,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
      seed: root of all randomness.
      wandb: a project of Weights & Biases; "" for none.
      profile: iterations to trace; 0 for none.
      mesh: devices along each axis.
      latents: of a training clip.
      fps: frames of video a second.
      shift: of the noise schedule.
      blocks: of a training clip.
      run: stages to run, in order.
      stages: fields of each stage, as its kind will read them.
      seconds: that stages took on one machine, by which the time to the end is said; {}: it is not.
      sections: all other sections, as methods and kinds will read them.
      text: the whole config as JSON, for whoever goes on from what the run leaves.
      profile_process: the one of several processes whose iterations are traced.
      family: of its models (`families`); "": the first, as in runs of before.
      low_rank: adapters of networks by name, of the stage whose method is made (`methods.of_stage`).
      read_from: the file of a folder that says this, which may name none but trusted parts (`parts`); None:
        a config of the user's.
    """

    seed: Seed
    wandb: str
    profile: Natural
    mesh: Mapping[str, int]
    latents: Latents
    fps: Rate
    shift: Positive
    blocks: Blocks
    run: tuple[str, ...]
    stages: Mapping[str, Mapping[str, Any]]
    sections: Mapping[str, Any]
    text: str
    profile_process: Natural = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    family: str = ""
    low_rank: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)
    read_from: Path | None = None

    @classmethod
    def of(cls, config: ConfigDict) -> Run:
        """Reads the fields of a config that all runs have.

        Raises:
          InputError: one of them is missing or not what it must be.
        """
        own = _own_fields()
        values = dict(config.items())
        sections = {name: value for name, value in values.items() if name not in own}
        made = {name: value for name, value in values.items() if name in own}
        try:
            text = config.to_json(indent=1)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"config: expected sections of numbers, words and lists, found what JSON cannot hold "
                f"({error}); mend the file"
            ) from None
        run = configs.read(cls, made | {"sections": sections, "text": text})
        if not run.run or len(set(run.run)) < len(run.run):
            raise InputError(
                f"config: field 'run': expected stages among {list(run.stages)}, each once, found "
                f"{list(run.run)}; name what is to be done"
            )
        for name in run.run:
            if name not in run.stages:
                known = list(run.stages)
                raise InputError(
                    f"config: field 'run': expected stages among {known}, found {name!r}; name one of them"
                )
        return run

    @classmethod
    def read(cls, file: Path) -> Run:
        """The run that wrote its config into a folder. It may be anybody's.

        Raises:
          InputError: the file is damaged, or lacks a field.
        """
        found = dataclasses.replace(cls.of(configs.of_json(file)), read_from=file)
        if not files.has_checksum(file):
            integrity.say(file, integrity.OLD)
        return found

    @property
    def record(self) -> bytes:
        """The config as folders keep it, with its checksum."""
        return files.record(json.loads(self.text))

    @property
    def plan(self) -> Plan:
        """Blocks of a training clip, with their noise levels."""
        return self.plan_of(self.latents.frames)

    def plan_of(self, frames: int) -> Plan:
        """The same of a clip of another length.

        Raises:
          InputError: latent frames that the blocks do not fill.
        """
        blocks = self.blocks
        return make_plan(
            frames,
            blocks.frames,
            blocks.steps,
            self.shift,
            blocks.first_frames or None,
            blocks.first_steps or None,
        )

    @property
    def layout(self) -> tuple[int, ...]:
        """Frames of each block of a training clip."""
        return tuple(block.frames for block in self.plan)

    def product(self, net: str) -> Product:
        """How the matrices of a method's network multiply: with adapters, where the stage says so."""
        found = self.low_rank.get(net)
        return low_rank.product(found) if found else PLAIN

    def view(self, sections: type[Sections]) -> Sections:
        """The sections that a record has fields for.

        Raises:
          InputError: one is missing or not what it must be.
        """
        names = [field.name for field in dataclasses.fields(sections)]  # type: ignore[arg-type]
        return configs.read(sections, {n: self.sections[n] for n in names if n in self.sections})

    def check_sections(self, views: Iterable[type]) -> None:
        """Refuses sections that no record of `views` has a field for.

        Raises:
          InputError: names the section, and the nearest that is read.
        """
        read = {field.name for view in views for field in dataclasses.fields(view)}
        for name in self.sections:
            if name not in read:
                raise InputError(
                    f"config: no stage of it reads a section {name!r}; did you mean "
                    f"{configs.nearest(name, read | _own_fields())!r}? Otherwise remove it"
                )


def _own_fields() -> set[str]:
    """Names that every config has."""
    return {field.name for field in dataclasses.fields(Run)} - {
        "sections",
        "text",
        "low_rank",
        "read_from",
    }
