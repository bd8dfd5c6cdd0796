"""Stages of a run: each kind is one module that says everything about itself, and `main` knows none by name.

The module holds KIND. A config names it by its file in `training/` ("train"), or by the dotted path of a
module elsewhere, such as the toy's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax import config as configs
from oneforcing_jax import parts
from oneforcing_jax.errors import InputError
from oneforcing_jax.run import Run

ROOM = "oneforcing_jax.training"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage that was checked and can run.

    Attributes:
      name: its name in the config, and that of its folder in the work directory.
      work: does it in a work directory, from where it was interrupted; does nothing where it is done.
        Where there are several processes, each calls it, and they divide the work (`processes`).
      check: refuses a work directory in which the stage is another run's; it changes nothing.
      share: (i, n): the i-th of n parts of it. The others are done by other runs in the work directory.
    """

    name: str
    work: Callable[[Path], None]
    check: Callable[[Path], None] = lambda workdir: None
    share: tuple[int, int] = (0, 1)


class Kind(NamedTuple):
    """What the module of a kind of stage holds as KIND.

    Attributes:
      fields: a frozen dataclass of the fields that such a stage has in a config, next to its kind.
      views: gives, for such a record, the records of the config's sections that the stage reads.
      prepare: makes the stage from the run, the stage's name and such a record, and checks everything.
    """

    fields: type
    views: Callable[[Any], tuple[type, ...]]
    prepare: Callable[[Run, str, Any], Stage]


def read(run: Run, name: str) -> tuple[Kind, Any]:
    """Kind and fields of a stage.

    Raises:
      InputError: an unknown kind, or fields that it does not have.
    """
    fields = dict(run.stages[name])
    try:
        kind: Kind = parts.find(str(fields.pop("kind", "")), ROOM, "KIND")
    except InputError as error:
        raise InputError(f"config: field 'stages.{name}.kind': {error}") from None
    return kind, configs.read(kind.fields, fields, f"stages.{name}")


def prepare(run: Run) -> list[Stage]:
    """The stages that a run is to do, in order. All other stages of its config are read and checked too.

    Raises:
      InputError: one of them is not what it must be.
    """
    found = {name: read(run, name) for name in run.stages}
    run.check_sections(view for kind, fields in found.values() for view in kind.views(fields))
    return [found[name][0].prepare(run, name, found[name][1]) for name in run.run]
