"""The programs of a run as abstract calls: what is compiled, with shapes in place of arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import families, sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.codec import Call, Codec, TextEncoder
from oneforcing_jax.methods import Update
from oneforcing_jax.models.condition import NEGATIVE
from oneforcing_jax.setup.run import Run
from oneforcing_jax.training.train import student, trained, trainer


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way in which a program runs.

    Attributes:
      name: in the report.
      runs: how often, in one unit of the total: an iteration, a video, a clip.
      model_flops: operations by `flops.py` without what is computed again, all devices; 0: not counted.
      hardware_flops: with it.
      keys: share of the keys that attention reads where it is told their number at run time.
    """

    name: str
    runs: float
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    keys: float = 1.0


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted function and the shapes that it is called with.

    Attributes:
      readings: the ways in which it runs.
      call: the function.
      arguments: abstract, static ones as they are.
      mesh: of its devices.
      state: arguments that are the work's own, such as parameters and optimiser states.
      frozen: networks that lie beside them, whether or not this program reads them.
      shares: how often conditionals take their dearest branch, see `kernels.read`.
    """

    readings: tuple[Reading, ...]
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    mesh: Mesh
    state: Any
    frozen: Any = None
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)


def train(run: Run, name: str, devices: Sequence[Any]) -> list[Program]:
    """The updates of a training stage. Together, as often as `runs` says, they make the mean iteration.

    Raises:
      InputError: not such a stage, or one that does not fit the devices.
    """
    known = trained(run)
    if name not in known:
        raise InputError(
            f"stage: expected one of {list(known)}, found {name!r}; choose one that trains"
        )
    made = trainer(run, name, known[name], devices)
    with jax.set_mesh(made.mesh):
        state, frozen = made.abstract()
        functions = made.steps()
    rows = NamedSharding(made.mesh, sharding.spec(("batch",)))
    batch = {
        field: jax.ShapeDtypeStruct((made.batch, *shape), jnp.float32, sharding=rows)
        for field, shape in made.method.fields.items()
    }
    everywhere = NamedSharding(made.mesh, P())
    batch[NEGATIVE] = jax.ShapeDtypeStruct(
        made.method.fields["text"], jnp.float32, sharding=everywhere
    )
    iteration = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return [
        Program(
            (_update(f"{name}/{update.net}", update, made.batch),),
            step,
            (state, frozen, batch, iteration),
            made.mesh,
            state,
            frozen,
            update.work.branches,
        )
        for update, step in zip(made.method.updates, functions, strict=True)
    ]


def _update(name: str, update: Update, batch: int) -> Reading:
    work = update.work
    return Reading(
        name, 1 / update.every, batch * work.model, batch * work.hardware, work.keys_seen
    )


def _encoders(run: Run, decoder: str | None = None) -> tuple[Codec, TextEncoder]:
    """Codec and text encoder of a config's family, without weights.

    Raises:
      InputError: another decoder than the family has, or latents of another codec.
    """
    family = families.of_run(run)
    family.check_decoder(decoder)
    if run.latents.channels != family.channels:
        raise InputError(
            f"config: field 'latents.channels': expected the {family.channels} of its family's codec, found "
            f"{run.latents.channels}; say the config's own family, or plan configs/framewise.py"
        )
    return family.outline(student(run).config.dtype, decoder)


def _program(name: str, call: Call) -> Program:
    reading = Reading(f"{name}/{call.name}", call.runs)
    return Program((reading,), call.call, call.arguments, call.mesh, call.state)


def video_mesh(run: Run, devices: Sequence[Any]) -> Mesh:
    """The mesh of one video: the axes of the config's that split tokens, heads and matrices.

    Raises:
      InputError: fewer devices than they take.
    """
    sizes = {axis: run.mesh[axis] for axis in ("context", "sequence", "tensor")}
    return sharding.make_mesh(sizes, devices[: math.prod(sizes.values())])


def decode(run: Run, mesh: Mesh, decoder: str | None = None) -> list[Program]:
    """Decoding of a clip as a stream over a mesh.

    Args:
      run, mesh: the config, and where it is decoded.
      decoder: of its family's `decoders`; None: the codec's own.

    Raises:
      InputError: the config's latents are not those of its family's codec.
    """
    codec, _ = _encoders(run, decoder)
    calls = codec.programs("decode", run.latents.shape, mesh)
    return [_program(decoder or "vae", call) for call in calls]


def encode(run: Run, devices: Sequence[Any]) -> list[Program]:
    """Encoding of one clip on one device, and of one prompt over all devices.

    Raises:
      InputError: the config's latents are not those of its family's codec.
    """
    codec, text = _encoders(run)
    alone = sharding.make_mesh({"data": 1}, devices[:1])
    calls = [*codec.programs("encode", run.latents.shape, alone), *text.programs(devices)]
    # All lie in memory all the time.
    return [
        dataclasses.replace(
            _program("encode", call), frozen=[other.state for other in calls if other is not call]
        )
        for call in calls
    ]
