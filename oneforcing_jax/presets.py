"""Settings of a run for machines: which axes the mesh has, and what makes it fit.

Each was compiled for its target at full size with configs/framewise.py, and fits: `docs/scaling.md` has the
plans. Batches are the paper's, 8 clips an iteration. One H100 has no room to add gradients up, and slices of
v5p take a clip a chip. The names of slices are those of Google: a v5p counts its two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from oneforcing_jax.config import PREFIX
from oneforcing_jax.errors import InputError


class Preset(NamedTuple):
    """One machine.

    Attributes:
      target: as `tools/plan.py` names it.
      fields: of the config.
    """

    target: str
    fields: Mapping[str, Any]


# One video over 8 devices, and over 16.
_EIGHT = {"mesh.fsdp": 1, "mesh.sequence": 4, "mesh.context": 2}
_SIXTEEN = {"mesh.fsdp": 1, "mesh.sequence": 2, "mesh.context": 4, "mesh.tensor": 2}

PRESETS = {
    # Training.
    "h200": Preset("gpu:h200:1", {"stages.one_forcing.microbatch": 1}),
    "h100": Preset(
        "gpu:h100:1",
        {"stages.one_forcing.batch": 1, "generator.remat": "full", "critic.remat": "offload"},
    ),
    "h100x8": Preset("gpu:h100:8", {"mesh.fsdp": 8}),
    "v5p-32": Preset("tpu:v5p:2x2x4", {"mesh.fsdp": 16, "stages.one_forcing.batch": 16}),
    "v5p-64": Preset("tpu:v5p:2x4x4", {"mesh.fsdp": 32, "stages.one_forcing.batch": 32}),
    "v6e-16": Preset("tpu:v6e:4x4", {"mesh.fsdp": 8, "mesh.sequence": 2, "critic.remat": "full"}),
    "v6e-64": Preset("tpu:v6e:8x8", {"mesh.fsdp": 8, "mesh.sequence": 4, "mesh.context": 2}),
    # Generation of one video: `tools/plan.py generate`.
    "rtx4090": Preset("gpu:rtx4090:1", {}),
    "rtx5090": Preset("gpu:rtx5090:1", {}),
    "h100x8-video": Preset("gpu:h100:8", _EIGHT),
    "v6e-8-video": Preset("tpu:v6e:2x4", _EIGHT),
    "v6e-16-video": Preset("tpu:v6e:4x4", _SIXTEEN),
}


def find(name: str) -> Preset:
    """A preset by its name.

    Raises:
      InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(
            f"preset: expected one of {sorted(PRESETS)}, found {name!r}; or give --config.mesh.* and "
            "others yourself, from tools/plan.py train --search"
        )
    return PRESETS[name]


def overrides(name: str) -> list[str]:
    """The fields of a preset as a command line gives them.

    Raises:
      InputError: there is none.
    """
    return [f"{PREFIX}{field}={value}" for field, value in find(name).fields.items()]
