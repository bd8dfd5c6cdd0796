"""Settings of a run for machines: which axes the mesh has, and what makes it fit.

They were compiled for their targets at full size with configs/framewise.py, and fit: `docs/scaling.md` has
the plans. Batches are the paper's, 8 clips an iteration, but for one H100, which has no room to add
gradients up, slices of v5p, which take a clip a chip, and the largest of v6e, where no more than 8 chips can
share a clip. The names of slices are those of Google: a v5p counts its two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.config import PREFIX


class Preset(NamedTuple):
    """One machine.

    Attributes:
      target: as `tools/plan.py` names it.
      fields: of the config.
    """

    target: str
    fields: Mapping[str, Any]


# A clip over 8 chips, matrices over 8 clips' worth of them.
_EIGHT_A_CLIP = {"mesh.fsdp": 8, "mesh.sequence": 4, "mesh.context": 2}


def _clip_a_chip(topology: str, chips: int) -> Preset:
    """A slice of v5p. Parts of a matrix smaller than a tile cost twice the traffic: `fsdp` ends at 32."""
    sizes = {"mesh.data": max(1, chips // 32), "mesh.fsdp": min(32, chips)}
    return Preset(f"tpu:v5p:{topology}", sizes | {"stages.one_forcing.batch": chips})


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
    "v5p-16": _clip_a_chip("2x2x2", 8),
    "v5p-32": _clip_a_chip("2x2x4", 16),
    "v5p-64": _clip_a_chip("2x4x4", 32),
    "v5p-128": _clip_a_chip("4x4x4", 64),
    "v5p-256": _clip_a_chip("4x4x8", 128),
    "v6e-16": Preset("tpu:v6e:4x4", {"mesh.fsdp": 8, "mesh.sequence": 2, "critic.remat": "full"}),
    "v6e-32": Preset("tpu:v6e:4x8", {"mesh.fsdp": 8, "mesh.sequence": 4}),
    "v6e-64": Preset("tpu:v6e:8x8", _EIGHT_A_CLIP),
    "v6e-128": Preset(
        "tpu:v6e:8x16", _EIGHT_A_CLIP | {"mesh.data": 2, "stages.one_forcing.batch": 16}
    ),
    "v6e-256": Preset(
        "tpu:v6e:16x16", _EIGHT_A_CLIP | {"mesh.data": 4, "stages.one_forcing.batch": 32}
    ),
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
