"""Settings of a run for machines: which axes the mesh has, and what makes it fit.

Each was compiled for its target at full size with configs/framewise.py, and fits: `docs/scaling.md` has the
plans, and says which of them are of `remat` "full", with 8 GB less.
Batches are the paper's, 8 clips an iteration, but for one H100, which has no room to add gradients up.
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


PRESETS = {
    "h200": Preset("gpu:h200:1", {"stages.one_forcing.microbatch": 1}),
    "h100": Preset(
        "gpu:h100:1",
        {"stages.one_forcing.batch": 1, "generator.remat": "full", "critic.remat": "offload"},
    ),
    "h100x8": Preset("gpu:h100:8", {"mesh.fsdp": 8}),
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
