"""The programs of a run as abstract calls: what is compiled, with shapes in place of arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import sharding
from oneforcing_jax.convert import sizes
from oneforcing_jax.data.encoders import WanCodec
from oneforcing_jax.data.text import MAX_TOKENS
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import Update
from oneforcing_jax.models import umt5, vae_stream
from oneforcing_jax.models.condition import NEGATIVE
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.umt5 import UMT5Config, UMT5Encoder
from oneforcing_jax.models.vae_layers import VAEConfig
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


def _codec(run: Run) -> tuple[VAEConfig, WanCodec]:
    """Wan's VAE at the size of a config's latents, without parameters.

    Raises:
      InputError: latents of another codec.
    """
    made = VAEConfig(dtype=student(run).config.dtype)
    if run.latents.channels != made.channels:
        raise InputError(
            f"config: field 'latents.channels': expected the {made.channels} of Wan's VAE, found "
            f"{run.latents.channels}; plan it with configs/framewise.py"
        )
    return made, WanCodec(made, None)


def _placed(tree: Any, place: Any, dtype: Any = None) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=place), tree
    )


def _alone(devices: Sequence[Any]) -> tuple[Mesh, NamedSharding]:
    mesh = sharding.make_mesh({"data": 1}, devices[:1])
    return mesh, NamedSharding(mesh, P())


def video_mesh(run: Run, devices: Sequence[Any]) -> Mesh:
    """The mesh of one video: the axes of the config's that split tokens, heads and matrices.

    Raises:
      InputError: fewer devices than they take.
    """
    sizes = {axis: run.mesh[axis] for axis in ("context", "sequence", "tensor")}
    return sharding.make_mesh(sizes, devices[: math.prod(sizes.values())])


def decode(run: Run, mesh: Mesh, decoder: str | None = None) -> list[Program]:
    """Decoding of a clip as a stream over a mesh, a latent frame a step; the first step and the others.

    Args:
      run, mesh: the config, and where it is decoded.
      decoder: "tiny" for the tiny decoder; None: the VAE's.

    Raises:
      InputError: the config's latents are not those of Wan's VAE.
    """
    made, codec = _codec(run)
    config = TinyDecoderConfig(dtype=made.dtype) if decoder else made
    place, size = NamedSharding(mesh, P()), run.latents
    params = _placed(sizes.abstract(config), place, made.dtype)
    shape, axes = (
        (1, 1, size.channels, size.rows, size.columns),
        ("batch", None, None, None, "columns"),
    )
    laid = sharding.named(mesh, sharding.dividing(mesh, shape, axes))
    latents = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=laid)
    state: Any = vae_stream.init_stream(config, 1, size.rows, size.columns)
    found = []
    for name, runs in (("first step", 1), ("steady step", size.frames - 1)):
        arguments = (params, state, latents)
        with jax.set_mesh(mesh):
            after = jax.eval_shape(codec._decode, *arguments)[1]
        reading = Reading(f"{decoder or 'vae'}/{name}", runs)
        found.append(Program((reading,), codec._decode, arguments, mesh, (params, state)))
        state = jax.tree.map(functools.partial(_kept, mesh), after)
    return found


def _kept(mesh: Mesh, leaf: Any) -> Any:
    """What the decoder keeps of a frame [b, y, x, c], laid out as the frame."""
    axes = sharding.dividing(mesh, leaf.shape, ("batch", None, "columns", None))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.named(mesh, axes))


def encode(run: Run, devices: Sequence[Any]) -> list[Program]:
    """Encoding of one clip on one device, and of one prompt by UMT5-XXL over all devices.

    Raises:
      InputError: the config's latents are not those of Wan's VAE.
    """
    made, codec = _codec(run)
    mesh, place = _alone(devices)
    size = run.latents
    params = _placed(sizes.abstract(made), place, made.dtype)
    shape = codec.video_shape(size.frames, size.rows, size.columns)
    video = jax.ShapeDtypeStruct((1, *shape, 3), jnp.uint8, sharding=place)
    clip = Program((Reading("encode/clip", 1),), codec._encode, (params, video), mesh, params)
    prompt = text(devices)
    # Both lie in memory all the time.
    return [
        dataclasses.replace(clip, frozen=prompt.state),
        dataclasses.replace(prompt, frozen=clip.state),
    ]


def text(devices: Sequence[Any]) -> Program:
    """Encoding of one prompt by UMT5-XXL, its weights over all devices that divide its width."""
    c = UMT5Config()
    count = math.gcd(len(devices), c.width)
    mesh = sharding.make_mesh({"fsdp": count}, devices[:count])
    boxed = jax.eval_shape(lambda: umt5.init_params(c, jax.random.key(0)))
    params = jax.tree.map(lambda x: x.update(dtype=c.dtype), sharding.abstract(boxed, mesh))
    place = NamedSharding(mesh, P())
    ids = jax.ShapeDtypeStruct((1, MAX_TOKENS), jnp.int32, sharding=place)
    call = jax.jit(functools.partial(_encode_text, c))
    return Program((Reading("encode/prompt", 1),), call, (params, ids, ids), mesh, params)


def _encode_text(config: UMT5Config, params: Any, ids: jax.Array, mask: jax.Array) -> Any:
    return UMT5Encoder(config).apply({"params": params}, ids, mask, method="encode")
