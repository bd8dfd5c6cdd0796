"""What a network starts from: "random", "STAGE:NET" of the same run, or "DIRECTORY:NET" of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneforcing_jax import checkpoint, methods
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import Network
from oneforcing_jax.run import Run

RANDOM = "random"


def check(field: str, source: str, run: Run) -> None:
    """Checks the form of a source.

    Raises:
      InputError: names the config's field.
    """
    if source != RANDOM and not all(source.rpartition(":")):
        raise InputError(
            f"config: field {field!r}: expected {RANDOM!r}, 'STAGE:NET' with a stage among "
            f"{list(run.stages)}, or 'DIRECTORY:NET', found {source!r}; say where this network starts"
        )


def place(run: Run, workdir: Path, source: str) -> tuple[Path, str]:
    """Folder of checkpoints, and the network's name in it."""
    where, _, net = source.rpartition(":")
    if where in run.stages:
        return workdir / where / checkpoint.FOLDER, net
    return Path(where), net


def load(run: Run, workdir: Path, source: str, abstract: Any, ema: bool = False) -> Any:
    """Parameters of a network, placed as `abstract` is.

    Raises:
      MissingInput, InputError: nothing there, or another model.
    """
    folder, net = place(run, workdir, source)
    return checkpoint.load_net(folder, net, abstract, ema)


def network(run: Run, source: str) -> Network:
    """The network that a stage of the run trains, by "STAGE:NET".

    Raises:
      InputError: no such stage, or no such network of its method.
    """
    stage, _, net = source.rpartition(":")
    method = run.stages.get(stage, {}).get("method")
    nets = methods.make(method, run).nets if method else {}
    if net not in nets:
        raise InputError(
            f"config: expected 'STAGE:NET' with a stage that trains among {list(run.stages)}, found "
            f"{source!r}; name a network of it"
        )
    return nets[net]
