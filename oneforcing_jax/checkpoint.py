"""Checkpoints: Orbax, one item a network, so that a later stage reads just the network that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def manager(folder: str | Path, keep: int = 2) -> ocp.CheckpointManager:
    """The checkpoints of a run, the last `keep` of them kept; saving is asynchronous and atomic."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _items(state: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}_{net}": tree for part, nets in state.items() for net, tree in nets.items()}


def save(to: ocp.CheckpointManager, iteration: int, state: Mapping[str, Any]) -> None:
    """Saves {"params": {net: tree}, "opt": ..., "ema": ...} after `iteration` iterations."""
    args = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    to.save(iteration, args=ocp.args.Composite(**args))


def restore(source: ocp.CheckpointManager, abstract: Mapping[str, Any]) -> tuple[int, Any] | None:
    """The last iteration and its state, placed by the shardings of `abstract`; None if there is none.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    iteration = source.latest_step()
    if iteration is None:
        return None
    folder = Path(str(source.directory)) / str(iteration)
    state = {
        part: {net: _read(folder, f"{part}_{net}", tree) for net, tree in nets.items()}
        for part, nets in abstract.items()
    }
    return iteration, state


def load_net(folder: str | Path, net: str, abstract: Any, ema: bool = False) -> Any:
    """Parameters of one network from the last checkpoint in `folder`.

    Args:
      folder: the directory that `manager` was given.
      net: name of the network in it.
      abstract: shapes and shardings.
      ema: read the moving average.

    Raises:
      FileNotFoundError, ValueError: nothing there, or a checkpoint of another model.
    """
    steps = [int(p.name) for p in Path(folder).glob("[0-9]*") if p.name.isdigit()]
    if not steps:
        raise FileNotFoundError(
            f"checkpoint: expected Orbax checkpoints in {folder}, found none; run the stage that makes "
            "them, or set the path in `init` to an existing directory"
        )
    return _read(
        Path(folder).absolute() / str(max(steps)), f"{'ema' if ema else 'params'}_{net}", abstract
    )


def _read(folder: Path, item: str, abstract: Any) -> Any:
    path = folder / item
    if not path.is_dir():
        found = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise ValueError(f"checkpoint {folder}: expected an item {item!r}, found {found}")
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path).item_metadata
        _compare(path, _shapes(getattr(stored, "tree", stored)), _shapes(abstract))
        return checkpointer.restore(path, abstract)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _name(path: Any) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(part) for part in parts)


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    wrong = [n for n in expected.keys() & found.keys() if tuple(expected[n]) != tuple(found[n])]
    parts = [f"{len(missing)} missing ({min(missing)})"] if missing else []
    parts += [f"{len(more)} unexpected ({min(more)})"] if more else []
    parts += [f"{min(wrong)} is {found[min(wrong)]}, not {expected[min(wrong)]}"] if wrong else []
    if parts:
        raise ValueError(
            f"checkpoint {path} is of another model: {'; '.join(parts)}; use the config it was trained "
            "with, or another directory"
        )
