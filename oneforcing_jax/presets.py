"""Settings of a run for machines: which axes the mesh has, and what makes it fit.

Each was compiled for its target at full size and fits (`docs/scaling.md` has the plans). Batches are
the paper's, 8 clips an iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from oneforcing_jax.config import PREFIX


class Preset(NamedTuple):
    """One machine.

    Attributes:
      target: as `tools/plan.py` names it.
      fields: of the config.
    """

    target: str
    fields: Mapping[str, Any]


def _mesh(**sizes: int) -> dict[str, int]:
    return {f"mesh.{axis}": size for axis, size in sizes.items()}


_ONE_AT_A_TIME = {"stages.one_forcing.microbatch": 1}

PRESETS = {
    "h200": Preset("gpu:h200:1", _ONE_AT_A_TIME),
    "h100x8": Preset("gpu:h100:8", _mesh(fsdp=8)),
    "v5p-16": Preset("tpu:v5p:2x2x2", _mesh(fsdp=8)),
    "v6e-16": Preset("tpu:v6e:4x4", _mesh(fsdp=8, sequence=2)),
    "v6e-64": Preset("tpu:v6e:8x8", _mesh(fsdp=8, context=2, sequence=4)),
}


def find(name: str) -> Preset:
    """A preset by its name.

    Raises:
      ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset: expected one of {sorted(PRESETS)}, found {name!r}; or give --config.mesh.* and "
            "others yourself, from tools/plan.py train --search"
        )
    return PRESETS[name]


def overrides(name: str) -> list[str]:
    """The fields of a preset as a command line gives them.

    Raises:
      ValueError: there is none.
    """
    return [f"{PREFIX}{field}={value}" for field, value in find(name).fields.items()]
