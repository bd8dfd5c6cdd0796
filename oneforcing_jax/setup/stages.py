"""Stages of a run: each kind is one module that says everything about itself, and `main` knows none by name.

The module holds KIND. A config names it by its file in `training/` ("train"), or by the dotted path of a
module elsewhere, such as the toy's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.run import Run

ROOM = "oneforcing_jax.training"
# The picture of what a stage made, in its folder, where it makes one.
PICTURE = "sheet.png"
# Fields of all runs that results follow from, and the settings of networks that cost time or memory alone.
RESULTS, COSTS = ("seed", "latents", "fps", "shift", "blocks"), ("remat",)


class MadeFrom(NamedTuple):
    """What the results of a stage follow from; `lineage` records and compares it.

    Attributes:
      fields: values as JSON holds them, by their dotted names in the config.
      course: more of them, which may be others for the iterations that a stage still has to train.
      networks: what it reads, by the name of the field that says so: "STAGE:NET", "DIRECTORY:NET", either
        with "ema " before it for the average, or what no checkpoint holds ("random").
      stores: of samples, likewise, as `places.within` finds them from the work directory.
      iterations: that it trains; 0: it does not train.
    """

    fields: Mapping[str, Any]
    course: Mapping[str, Any] = {}
    networks: Mapping[str, str] = {}
    stores: Mapping[str, str] = {}
    iterations: int = 0


def leaves(values: Mapping[str, Any], unread: Iterable[str] = ()) -> dict[str, Any]:
    """Values as JSON holds them, by dotted names.

    Args:
      values: by name; records and mappings among them are entered.
      unread: names that are left out, with all below them.
    """
    out = tuple(unread)

    def found(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if any(name == other or name.startswith(f"{other}.") for other in out):
            return
        if dataclasses.is_dataclass(value):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key not in COSTS:
                    yield from found(f"{name}.{key}", inner)
        else:
            plain = isinstance(value, bool | int | float | str | tuple | list | None)
            yield (
                name,
                json.loads(json.dumps(value, default=str)) if plain else np.dtype(value).name,
            )

    return dict(pair for name, value in values.items() for pair in found(name, value))


def results(run: Run, views: Iterable[type], unread: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a run and the sections of `views` that results follow from, but for those in `unread`."""
    records: list[Any] = [run.view(view) for view in views]
    sections = {f.name: getattr(r, f.name) for r in records for f in dataclasses.fields(r)}
    return leaves({name: getattr(run, name) for name in RESULTS} | sections, unread)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage that was checked and can run.

    Attributes:
      name: its name in the config, and that of its folder in the work directory.
      work: does it in a work directory, from where it was interrupted; does nothing where it is done.
        Where there are several processes, each calls it, and they divide the work (`processes`).
      check: refuses a work directory in which the stage is another run's; it changes nothing.
      share: (i, n): the i-th of n parts of it. The others are done by other runs in the work directory.
      made_from: what its results follow from; None: all fields that its kind reads.
    """

    name: str
    work: Callable[[Path], None]
    check: Callable[[Path], None] = lambda workdir: None
    share: tuple[int, int] = (0, 1)
    made_from: MadeFrom | None = None


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
        kind: Kind = parts.find(str(fields.pop("kind", "")), ROOM, "KIND", Kind, run.read_from)
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
    return [_prepared(run, name, *found[name]) for name in run.run]


def _prepared(run: Run, name: str, kind: Kind, fields: Any) -> Stage:
    made = kind.prepare(run, name, fields)
    if made.made_from is None:
        all_ = results(run, kind.views(fields)) | leaves({f"stages.{name}": fields})
        made = dataclasses.replace(made, made_from=MadeFrom(all_))
    return made
