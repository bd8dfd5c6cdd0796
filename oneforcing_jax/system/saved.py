"""Networks in checkpoints, as they are read: which checkpoints are whole, and what lies in one.

A checkpoint holds a network, or the part of it that its run trained; the rest is then read from its base
(system/bases.py).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import bases, integrity, items, places
from oneforcing_jax.system.bases import Piece

# The record of the run that checkpoints belong to lies beside them; the second is the last object of each
# that a bucket gets.
RUN_FILE, COMMIT = "run.json", "commit_success.txt"
NUMBER = re.compile(r"0|[1-9][0-9]*")


def numbered(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the oldest first; a folder without a network or checksums in it is none.

    Raises:
      InputError: a file has the name of a checkpoint.
    """
    if places.is_url(folder):
        files = [name.split("/") for name in places.sizes(folder)]
        as_whole = [integrity.SUMS] in files  # of a conversion
        ends = ([COMMIT], [integrity.SUMS])
        whole = {f[0] for f in files if NUMBER.fullmatch(f[0]) and (as_whole or f[1:] in ends)}
        return [folder / number for number in sorted(whole, key=int)]
    found = sorted(
        (p for p in folder.glob("[0-9]*") if NUMBER.fullmatch(p.name)), key=lambda p: int(p.name)
    )
    if strange := [p for p in found if not p.is_dir()]:
        raise InputError(
            f"{strange[0]}: expected a checkpoint, which is a folder, found something else of its name; "
            "restore it from a copy, or remove this"
        )
    return [p for p in found if integrity.is_sealed(p) or any(p.glob("*_*/"))]


def newest(folder: Path) -> int | None:
    """The iteration of the newest checkpoint in a folder; None if there is none."""
    found = numbered(folder)
    return int(found[-1].name) if found else None


def check_known(step: Path) -> None:
    """Says that nobody knows whether a checkpoint is whole, of a killed command or from a bucket.

    Raises:
      InputError: it had checksums, for a later one has some.
    """
    sealed = integrity.sealed(step)
    if not (reason := integrity.unknown(sealed or step)):
        return
    others = [p.name for p in numbered(step.parent) if integrity.is_sealed(p)]
    if not sealed and others and NUMBER.fullmatch(step.name) and int(others[-1]) > int(step.name):
        raise InputError(
            f"checkpoint {step}: expected {integrity.SUMS} in it as in {others[-1]}, found none; restore it "
            "from a copy, or name another checkpoint"
        )
    if sealed or others:
        integrity.say(step, f"it cannot be checked, for it {reason}")


def find(folder: str | Path) -> Path:
    """The last checkpoint in `folder`, or `folder` itself where that is a checkpoint.

    Raises:
      MissingInput: there is none.
    """
    folder = places.absolute(folder)
    whole = not places.is_url(folder) or integrity.is_sealed(folder) or (folder / COMMIT).is_file()
    if whole and any(folder.glob("params_*")):
        return folder
    found = numbered(folder)
    if not found:
        raise MissingInput(
            f"checkpoint: expected Orbax checkpoints (folders with a number) in {folder}, found none; run "
            "the stage or the conversion that makes them, or name another folder"
        )
    return found[-1]


def load_net(folder: str | Path, net: str, abstract: Any, ema: bool = False) -> Any:
    """Parameters of one network; where a checkpoint holds a part of it, with the rest from its base.

    Args:
      folder: of checkpoints, of which the last is read, or one of them.
      net: name of the network in it.
      abstract: shapes and shardings.
      ema: read the moving average.

    Raises:
      MissingInput, InputError: nothing there, a checkpoint of another model, or a base that is missing or
        another one than it was.
    """
    shares = bases.shares(pieces(folder, net, ema), abstract)
    return bases.joined([(piece, read(piece.path, wanted)) for piece, wanted in shares])


def identity(folder: str | Path, net: str, ema: bool = False) -> str:
    """A SHA-256 that names the parameters that `load_net` reads; see `integrity.identity`."""
    step = find(folder)
    path = step / _item(net, ema)
    sealed = _sealed(path)
    own = integrity.identity(sealed, path.relative_to(sealed).as_posix())
    if (base := bases.of(step.parent / RUN_FILE, net)) is None:
        return own
    return hashlib.sha256("\n".join((own, base.under, base.identity)).encode()).hexdigest()


def check_net(folder: str | Path, net: str, abstract: Any) -> None:
    """Checks that `load_net` would find a network of these shapes; reads no array.

    Raises:
      MissingInput, InputError: as `load_net`.
    """
    for piece, wanted in bases.shares(pieces(folder, net), abstract):
        items.check(piece.path, wanted)


def pieces(folder: str | Path, net: str, ema: bool = False) -> list[Piece]:
    """The items that hold a network; a leaf of several of them is that of the last.

    Raises:
      MissingInput, InputError: nothing there, or a base that is missing or another one than it was.
    """
    step = find(folder)
    own, base = Piece(step / _item(net, ema)), bases.of(step.parent / RUN_FILE, net)
    if base is None:
        return [own]
    place = places.within(step.parents[2], base.checkpoint)
    what = f"checkpoint {step}: expected the network on which {net!r} stands, {base.net!r}"
    try:
        found = identity(place, base.net)
    except MissingInput:
        raise MissingInput(
            f"{what} of {place}, found none there; restore it from a copy, or train this stage again"
        ) from None
    if found != base.identity:
        raise InputError(
            f"{what} of {place} with the SHA-256 {base.identity[:12]}..., found {found[:12]}...; restore it "
            "from a copy, or train this stage again"
        )
    under = (base.under,) if base.under else ()
    below = pieces(place, base.net)
    return [*(Piece(piece.path, (*under, *piece.under)) for piece in below), own]


def paths(folder: str | Path, net: str) -> set[tuple[str, ...]]:
    """The leaves that `load_net` finds, by their keys from the root. It raises as `load_net` does."""
    return {path for piece in pieces(folder, net) for path in piece.paths()}


def verify(path: Path) -> None:
    """Compares an item of a checkpoint with its checksums, before anything in it is read.

    Raises:
      InputError: it is damaged, or its checksums were removed.
    """
    sealed = _sealed(path)
    if path.is_dir():
        check_known(path.parent)
        if integrity.is_sealed(sealed):
            integrity.verify(sealed, path.relative_to(sealed).as_posix())


def _item(net: str, ema: bool) -> str:
    return f"{'ema' if ema else 'params'}_{net}"


def read(path: Path, abstract: Any) -> Any:
    verify(path)
    return items.read(path, abstract)


def _sealed(item: Path) -> Path:
    """The folder with the checksums of an item, or where they would be."""
    return integrity.sealed(item.parent) or item.parent.parent
