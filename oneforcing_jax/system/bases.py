"""Bases by reference: where the rest of a network lies of which a checkpoint holds a part.

The record of a run (`checkpoint.RUN_FILE`) names it below `BASES`, by the network's name. A base below the
run's work directory is named from there, so that both may be moved together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.files import read_record

BASES = "bases"


class Base(NamedTuple):
    """A network that another one stands on.

    Attributes:
      checkpoint: that holds it, as `places.within` finds it from the work directory.
      net: its name there.
      under: name of the part of the other network that it fills; "": all of it.
      identity: the SHA-256 that `checkpoint.identity` gives.
    """

    checkpoint: str
    net: str
    under: str
    identity: str


def of(run_file: Path, net: str) -> Base | None:
    """What a network stands on, by the record of its run; None: on nothing, its checkpoints hold it whole.

    Raises:
      InputError: the record is damaged.
    """
    found: Any = read_record(run_file).get(BASES, {}) if run_file.is_file() else {}
    base = found.get(net) if isinstance(found, Mapping) else found
    if base is None:
        return None
    try:
        made = Base(**base)
        if any(type(value) is not str for value in made):
            raise TypeError
    except TypeError:
        raise InputError(
            f"{run_file}: expected {' and '.join(Base._fields)} of what {net!r} stands on, found "
            f"{str(base)[:60]}; restore it from a copy"
        ) from None
    return made
