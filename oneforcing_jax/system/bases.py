"""Bases by reference: where the rest of a network lies of which a checkpoint holds a part.

The record of a run (`saved.RUN_FILE`) names it below `BASES`, by the network's name. A base below the
run's work directory is named from there, so that both may be moved together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import items
from oneforcing_jax.system.files import read_record

BASES = "bases"
# From the root of a network to a leaf of it.
Keys = tuple[str, ...]


class Base(NamedTuple):
    """A network that another one stands on.

    Attributes:
      checkpoint: that holds it, as `places.within` finds it from the work directory.
      net: its name there.
      under: name of the part of the other network that it fills; "": all of it.
      identity: the SHA-256 that `saved.identity` gives.
    """

    checkpoint: str
    net: str
    under: str
    identity: str


class Piece(NamedTuple):
    """An item of a checkpoint that holds a network or a part of it.

    Attributes:
      path: of the item.
      under: where in the network its leaves lie.
    """

    path: Path
    under: Keys = ()

    def paths(self) -> set[Keys]:
        """The leaves that it holds, by their keys from the root of the network."""
        return {(*self.under, *path) for path in items.paths(self.path)}


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


def shares(pieces: Sequence[Piece], abstract: Any) -> list[tuple[Piece, Any]]:
    """Each item of a network, and what of `abstract` it holds.

    Raises:
      InputError: there are leaves that none of them holds.
    """
    if len(pieces) == 1:
        return [(pieces[0], abstract)]
    flat, found = flatten_dict(abstract), []
    lacking = set(flat)
    for piece in pieces:
        held = piece.paths()
        own = {path[len(piece.under) :]: leaf for path, leaf in flat.items() if path in held}
        found.append((piece, unflatten_dict(own)))
        lacking -= held
    items.refuse(pieces[-1].path, missing={"/".join(path) for path in lacking})
    return found


def joined(read: Sequence[tuple[Piece, Any]]) -> Any:
    """A network of what was read of its items; a leaf of several of them is that of the last."""
    if len(read) == 1:
        return read[0][1]
    flat: dict[Keys, Any] = {}
    for piece, tree in read:
        flat |= {(*piece.under, *path): leaf for path, leaf in flatten_dict(tree).items()}
    return unflatten_dict(flat)
