"""What a network starts from: "random", "STAGE:NET" of the same run, or "DIRECTORY:NET" of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from oneforcing_jax import methods
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import Network
from oneforcing_jax.models import trees
from oneforcing_jax.models.trees import Params
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, places, saved
from oneforcing_jax.system.bases import Base
from oneforcing_jax.system.files import read_record

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
    return places.path(where), net


def load(
    run: Run,
    workdir: Path,
    source: str,
    abstract: Any,
    ema: bool = False,
    beside: Collection[str] = (),
) -> Any:
    """Parameters of a network, placed as `abstract` is.

    Args:
      run, workdir, source: what to read.
      abstract: shapes and shardings.
      ema: read the moving average.
      beside: names of leaves beside kernels that are left out where the source has none of them.

    Raises:
      MissingInput, InputError: nothing there, or another model.
    """
    folder, net = place(run, workdir, source)
    with _maker_named(run, source):
        _check_schedule(run, folder, net)
        return saved.load_net(folder, net, _held(folder, net, abstract, beside), ema)


def _held(folder: Path, net: str, abstract: Any, beside: Collection[str]) -> Any:
    """`abstract`, without the leaves beside kernels where a checkpoint has none of them."""
    if not beside or any(path[-1] in beside for path in saved.paths(folder, net)):
        return abstract
    return trees.select(abstract, lambda path: path[-1] not in beside)


def has_beside(run: Run, workdir: Path, network: Network, source: str) -> bool:
    """Whether a source has leaves beside kernels of those that the network trains."""
    own = network.model.product.own or ()
    return any(path[-1] in own for path in saved.paths(*place(run, workdir, source)))


def begin(
    run: Run, workdir: Path, network: Network, net: str, source: str, abstract: Any
) -> Params:
    """What a source gives the network `net`, in its tree; absent are the rest of a network of which it fills
    a part, and leaves beside kernels that it has none of.

    Args:
      abstract: shapes and shardings of the whole network.

    Raises:
      MissingInput, InputError: see `load`.
    """
    name, wanted, beside = _asked(network, net, source, abstract)
    found: Params = load(run, workdir, source, wanted, beside=beside)
    return {name: found} if name else found


def check_begin(
    run: Run, stage: str, workdir: Path, network: Network, net: str, source: str, abstract: Any
) -> None:
    """Checks what `begin` will read, as `check_made` does."""
    _, wanted, beside = _asked(network, net, source, abstract)
    check_made(run, stage, workdir, source, wanted, beside)


def _asked(
    network: Network, net: str, source: str, abstract: Any
) -> tuple[str, Any, Collection[str]]:
    """The part of a network that a source fills, its shapes, and the leaves beside kernels that may lack."""
    name = network.filled(net, source)
    return name, abstract[name] if name else abstract, network.model.product.own or ()


def base(run: Run, workdir: Path, network: Network, net: str, source: str) -> Base:
    """What a network stands on of which a part is trained.

    Raises:
      MissingInput: nothing there.
    """
    folder, name = place(run, workdir, source)
    step = saved.find(folder)
    at = places.relative(step, workdir)
    return Base(at, name, network.filled(net, source), saved.identity(step, name))


def check_made(
    run: Run,
    stage: str,
    workdir: Path,
    source: str,
    abstract: Any,
    beside: Collection[str] = (),
) -> None:
    """Checks what `load` will read, before any stage runs, unless an earlier stage of the run makes it.

    Raises:
      MissingInput, InputError: nothing there, another model, or one for another schedule; says what makes it.
    """
    made_before = run.run[: run.run.index(stage)]
    if source == RANDOM or source.rpartition(":")[0] in made_before:
        return
    folder, net = place(run, workdir, source)
    with _maker_named(run, source):
        _check_schedule(run, folder, net)
        saved.check_net(folder, net, _held(folder, net, abstract, beside))


@contextlib.contextmanager
def _maker_named(run: Run, source: str) -> Iterator[None]:
    """Adds to an error about a source what makes it."""
    try:
        yield
    except InputError as error:
        where = source.rpartition(":")[0]
        maker = f"{source!r} is what the config names for a network to start from"
        if where in run.stages:
            maker = f"stage {where!r} of this config makes {source!r}: --config.run={where}"
        raise type(error)(f"{error}; {maker}") from None


def _check_schedule(run: Run, folder: Path, net: str) -> None:
    """Refuses a causal student whose stage had another shift or other blocks than the run.

    Raises:
      InputError: names what differs.
    """
    stage = next((p.parent for p in (folder, folder.parent) if p.name == checkpoint.FOLDER), None)
    record = stage / checkpoint.CONFIG if stage else None
    if stage is None or record is None or not record.is_file():
        return
    read_record(record)  # damage is no other version
    try:
        then = Run.read(record)
        sampled = methods.of_stage(then, stage.name).sampled
    except InputError:
        return  # of another version, or with a method that is not here: it says nothing
    if sampled is None or sampled.net != net or sampled.plan is None:
        return
    for name, found, expected in (
        ("shift", then.shift, run.shift),
        ("blocks.frames", then.blocks.frames, run.blocks.frames),
        ("blocks.first_frames", then.blocks.first_frames, run.blocks.first_frames),
    ):
        if found != expected:
            raise InputError(
                f"checkpoint {folder}: expected a network trained with {name} {expected}, found {found} "
                f"in {record}; set {name} to that, or train stage {stage.name!r} again"
            )


def network(run: Run, source: str) -> Network:
    """The network that a stage of the run trains, by "STAGE:NET".

    Raises:
      InputError: no such stage, no such network of its method, or one for other latents.
    """
    stage, _, net = source.rpartition(":")
    trains = "method" in run.stages.get(stage, {})
    nets = methods.of_stage(run, stage).nets if trains else {}
    if net not in nets:
        raise InputError(
            f"config: expected 'STAGE:NET' with a stage that trains among {list(run.stages)}, found "
            f"{source!r}; name a network of it"
        )
    config, channels = nets[net].config, run.latents.channels
    if (config.in_dim, config.out_dim) != (channels, channels):
        raise InputError(
            f"config: expected in_dim and out_dim {channels} of network {source!r}, as the latents of "
            f"this run, found {config.in_dim} and {config.out_dim}; set them alike"
        )
    return nets[net]
