"""Stages that train: their fields in a config, and the trainer that they make."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneforcing_jax import families, methods, sharding
from oneforcing_jax.data.store import META, Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import Method, Network
from oneforcing_jax.setup import stages as kinds
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import Kind, MadeFrom, Stage
from oneforcing_jax.system import checkpoint, places, room, saved
from oneforcing_jax.training import loop, sources
from oneforcing_jax.training.loop import Train
from oneforcing_jax.training.steps import Trainer


def trainer(run: Run, name: str, stage: Train, devices: Any = None) -> Trainer:
    """The trainer of a stage.

    Args:
      run: the whole.
      name: of the stage.
      stage: its fields.
      devices: of the mesh; None: all.

    Raises:
      InputError: an unknown method, a network without an optimiser, sizes that do not fit the mesh.
    """
    try:
        method = methods.make(stage.method, run, stage.low_rank)
    except InputError as error:
        raise InputError(f"config: stage {name!r}: {error}") from None
    if method.refused:
        raise InputError(f"config: stage {name!r}: {method.refused}")
    _same_names(f"stages.{name}.optimisers", stage.optimisers, method.trained)
    mesh = sharding.make_mesh(run.mesh, devices)
    for network in method.nets.values():
        tokens = network.config.frame_tokens(run.latents.rows, run.latents.columns)
        sharding.check("the tokens of a frame", tokens, "tokens", mesh)
    _check_widths(run, name, method)
    return Trainer(
        method,
        stage.optimisers,
        stage.ema,
        mesh,
        run.seed,
        name,
        stage.batch,
        stage.microbatch,
        stage.offload_optimiser,
        stage.init,
    )


def _check_widths(run: Run, name: str, method: Method) -> None:
    """Refuses networks that do not fit the latents, or the texts that the method reads."""
    expected = {"in_dim": run.latents.channels, "out_dim": run.latents.channels}
    expected |= zip(("text_len", "text_dim"), method.fields.get("text", ()), strict=False)
    for net, network in method.nets.items():
        for field, value in expected.items():
            if (found := getattr(network.config, field)) != value:
                raise InputError(
                    f"config: stage {name!r}: expected {field} {value} of network {net!r}, as the latents "
                    f"and texts of this run, found {found}; set latents.channels and the networks alike"
                )


def _same_names(field: str, given: Mapping[str, Any], nets: tuple[str, ...]) -> None:
    if set(given) != set(nets):
        raise InputError(
            f"config: field {field!r}: expected an entry for each of {sorted(nets)}, found "
            f"{sorted(given)}; add or remove entries"
        )


def trained(run: Run) -> dict[str, Train]:
    """The stages of a run that train, with their fields."""
    found = {name: kinds.read(run, name) for name in run.stages}
    return {name: fields for name, (kind, fields) in found.items() if kind is KIND}


def student(run: Run) -> Network:
    """The network that makes videos after the last of the run's stages that train.

    Raises:
      InputError: none of them makes one.
    """
    known = trained(run)
    for name in reversed([name for name in run.run if name in known]):
        method = methods.of_stage(run, name)
        if method.sampled:
            return method.nets[method.sampled.net]
    raise InputError(
        f"config: expected in 'run' a stage that trains a network for videos, found {list(run.run)}; add one"
    )


def prepare(run: Run, name: str, stage: Train) -> Stage:
    """Checks a stage that trains, and the sources that its networks start from."""
    families.of_run(run)  # whoever serves what is trained asks it
    made = trainer(run, name, stage)
    made.abstract()
    init = {net: at for net, at in stage.init.items() if net not in made.method.left_out}
    _same_names(f"stages.{name}.init", init, tuple(made.method.nets))
    for net, source in init.items():
        field = f"stages.{name}.init.{net}"
        sources.check(field, source, run)
        if source == sources.RANDOM and net in made.partial:
            raise InputError(
                f"config: field {field!r}: expected a trained network, for a part of it is trained, found "
                f"{source!r}; name 'STAGE:NET' or 'DIRECTORY:NET'"
            )

    def check(workdir: Path) -> None:
        folder = workdir / name / checkpoint.FOLDER
        checkpoint.check_claim(folder, loop.identity(run, stage, workdir))
        done = saved.newest(folder)
        if done is not None and done >= stage.iterations:
            return
        data = places.within(workdir, stage.data)
        if (data / META).is_file():
            Store.open(data).check_shapes(made.method.fields)
        devices = list(made.mesh.local_devices)
        needed = room.per_device(made.abstract()) * len(devices)
        advice = "take a smaller model, more devices over mesh.fsdp, or another --preset"
        room.check_memory(f"stage {name!r}", needed, advice, devices)
        _check_sources(run, name, stage, made, workdir, begun=done is not None)

    work = functools.partial(loop.run, run, name, stage, made)
    return Stage(name, work, check, made_from=_made_from(run, name, stage, made, init))


def _made_from(
    run: Run, name: str, stage: Train, made: Trainer, init: Mapping[str, str]
) -> MadeFrom:
    """What the networks of a stage follow from. How they are optimised may change on the way."""
    unread = (*methods.find(stage.method).unread, *made.method.choices, "fps")
    own = f"stages.{name}"
    fields = {f"{own}.method": stage.method, f"{own}.batch": stage.batch}
    if adapters := {net: found for net, found in stage.low_rank.items() if found.rank}:
        fields |= kinds.leaves({f"{own}.low_rank": adapters})
    course = {f"{own}.optimisers": stage.optimisers, f"{own}.ema": stage.ema}
    return MadeFrom(
        kinds.results(run, views(stage), unread) | fields,
        kinds.leaves(course),
        {f"{own}.init.{net}": source for net, source in init.items()},
        {f"{own}.data": stage.data},
        stage.iterations,
    )


def _check_sources(
    run: Run, name: str, stage: Train, made: Trainer, workdir: Path, begun: bool
) -> None:
    """Checks what the networks of a stage start from; one that has begun reads what is frozen alone."""
    whole = made.whole(*made.abstract())
    for net in made.method.frozen if begun else whole:
        network, source = made.method.nets[net], stage.init[net]
        sources.check_begin(run, name, workdir, network, net, source, whole[net])
    for net in made.partial if begun else ():
        saved.check_net(workdir / name / checkpoint.FOLDER, net, whole[net])


def views(stage: Train) -> tuple[type, ...]:
    """The method's sections of the config."""
    return (methods.find(stage.method).config,)


KIND = Kind(Train, views, prepare)
