"""Items of checkpoints, a network each, as Orbax wrote them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places


def read(path: Path, abstract: Any) -> Any:
    """The arrays of an item, placed as `abstract` says.

    Raises:
      InputError: there is none, or it is damaged or of another model.
    """
    with _reader() as reader, places.failures(path, "could not be read"), readable(path):
        _compare(path, _shapes(_tree(reader, path)), _shapes(abstract))
        return reader.restore(path, abstract)


def check(path: Path, abstract: Any) -> None:
    """Refuses an item that `read` would; reads no array."""
    with _reader() as reader, readable(path):
        _compare(path, _shapes(_tree(reader, path)), _shapes(abstract))


def paths(path: Path) -> set[tuple[str, ...]]:
    """The leaves of an item, by their keys from its root.

    Raises:
      InputError: there is no item, or it is damaged.
    """
    with _reader() as reader, readable(path):
        return {tuple(name.split("/")) for name in _shapes(_tree(reader, path))}


def _tree(reader: Any, path: Path) -> Any:
    if not path.is_dir():
        found = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
        raise InputError(f"checkpoint {path.parent}: expected an item {path.name!r}, found {found}")
    stored = reader.metadata(path).item_metadata
    return getattr(stored, "tree", stored)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what Orbax raises about an item that is damaged into one line."""
    try:
        yield
    except (InputError, OSError, RuntimeError):  # of servers, disks and devices
        raise
    except Exception as error:
        raise InputError(
            f"checkpoint {path}: expected what Orbax writes, found what it cannot read "
            f"({places.reason(error)[:200]}); restore it from a copy, or make it again"
        ) from error


def _reader() -> ocp.StandardCheckpointer:
    """Reads in buckets what was written to a disk and copied there, too, which lacks `COMMIT`."""
    renamed = ocp.path.atomicity.AtomicRenameTemporaryPath
    return ocp.StandardCheckpointer(temporary_path_class=renamed)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _name(path: Any) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(part) for part in parts)


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    wrong = [n for n in expected.keys() & found.keys() if tuple(expected[n]) != tuple(found[n])]
    refuse(path, missing, more, [f"{n} is {found[n]}, not {expected[n]}" for n in sorted(wrong)])


def refuse(
    path: Path, missing: Set[str], more: Set[str] = frozenset(), wrong: Sequence[str] = ()
) -> None:
    """Refuses an item with other leaves than a model has.

    Args:
      path: of the item.
      missing, more: names of leaves that it lacks, and of those that the model lacks.
      wrong: what differs, in words.

    Raises:
      InputError: there are any.
    """
    parts = [f"{len(missing)} missing ({min(missing)})"] if missing else []
    parts += [f"{len(more)} unexpected ({min(more)})"] if more else []
    parts += wrong[:1]
    if parts:
        raise InputError(
            f"checkpoint {path} is of another model: {'; '.join(parts)}; use the config it was trained "
            "with, or another directory"
        )
