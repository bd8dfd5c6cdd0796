"""The device mesh, the one table of sharding rules, and shardings of whole state trees.

Parameters name their axes logically when they are declared (`nn.with_logical_partitioning`); the table
below says which mesh axis each of them lies on. All mesh axes always exist, with size 1 where unused, so
that one program serves a laptop and a pod.

The tokens of every frame lie over `context` and `sequence`, so each device has the same part of every
frame, and what is done token by token needs no other device. Attention needs all keys of a head:
`by_heads` exchanges tokens for heads over `sequence` (Ulysses), and gathers keys and values over
`context`, whose devices keep a part of the queries each. Heads must divide over `tensor` and `sequence`,
but need not divide over `context`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "context", "sequence", "tensor")

# Axes of one layer's keys or values that a rollout keeps, by their number: [b, slots, n, h, k], or rows for
# a kernel, [b, h, s, k].
STORED: Mapping[int, tuple[str | None, ...]] = {
    5: ("batch", None, None, "whole_heads", None),
    4: ("batch", "whole_heads", None, None),
}

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": ("context", "sequence"),
    "columns": ("context", "sequence"),  # of a video's frames
    "whole_heads": ("tensor", "sequence"),  # inside attention, where all keys of a head meet
    # parameters
    "layers": None,
    "taps": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "conv_in": None,
    "conv_out": None,
    "norm": None,
}


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Any = None) -> Mesh:
    """A mesh of all devices; an axis of size -1 takes what the others leave.

    Raises:
      InputError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = dict.fromkeys(MESH_AXES, 1) | dict(sizes or {"data": -1})
    if unknown := set(shape) - set(MESH_AXES):
        raise InputError(f"mesh: expected axes among {MESH_AXES}, found {sorted(unknown)}")
    if wrong := {axis: size for axis, size in shape.items() if size != -1 and size < 1}:
        raise InputError(
            f"mesh: expected sizes of 1 or more, or -1 for what is left, found {wrong}; change them"
        )
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise InputError(
            f"mesh: expected -1 for one axis at most, found it for {' and '.join(free)}; give "
            "all others a size"
        )
    known = math.prod(size for size in shape.values() if size != -1)
    if free and len(devices) % known == 0:
        shape[free[0]] = len(devices) // known
    if math.prod(shape.values()) != len(devices):
        raise InputError(
            f"mesh: expected sizes whose product is the number of devices, {len(devices)}, found {shape}; "
            "give one axis the size -1 to take what is left"
        )
    return _arranged(tuple(shape[a] for a in MESH_AXES), devices)


def _arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    """The mesh; over several slices of TPUs its `data` axis goes from slice to slice.

    Raises:
      InputError: slices over which `data` does not divide: their network carries gradients, no more.
    """
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if tpu else 1
    split = {"allow_split_physical_axes": True}  # such as four chips in a row as two and two
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, **split), MESH_AXES)
    if shape[0] % slices:
        raise InputError(
            f"mesh: expected an axis data that divides over {slices} slices, found {shape[0]}; set "
            f"mesh.data to a multiple of {slices}"
        )
    within = (shape[0] // slices, *shape[1:])
    between = (slices, *(1 for _ in shape[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices, **split), MESH_AXES)


def spec(axes: tuple[str | None, ...]) -> P:
    """The partition spec of logical axes.

    Raises:
      InputError: an axis that the table lacks, or a mesh axis used twice.
    """
    if unknown := [a for a in axes if a is not None and a not in RULES]:
        raise InputError(
            f"sharding: axis {unknown[0]!r} of {axes} is not in the rules {sorted(RULES)}"
        )
    mapped = [None if a is None else RULES[a] for a in axes]
    used = [m for entry in mapped if entry for m in ((entry,) if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise InputError(f"sharding: axes {axes} map to {mapped}, which uses a mesh axis twice")
    return P(*mapped)


def dividing(
    mesh: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> tuple[str | None, ...]:
    """The logical axes, without those whose mesh axes do not divide the array's size there."""
    return tuple(
        None if axis and size % _size(mesh, spec((axis,))[0]) else axis
        for size, axis in zip(shape, axes, strict=True)
    )


def named(mesh: Mesh, axes: tuple[str | None, ...] = ()) -> NamedSharding:
    """The sharding of logical axes on a mesh; without axes, each device has a copy."""
    return NamedSharding(mesh, spec(axes))


def target() -> Any:
    """The kind of device that programs are made for, with its `platform` and `device_kind`. It is that of
    the mesh in use, which need not be of this machine, or the default device where there is no mesh."""
    found = jax.sharding.get_abstract_mesh().abstract_device
    return jax.local_devices()[0] if found is None else found


def no_mesh() -> Any:
    """A context in which no mesh is in use, also within a function that is being traced."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def using(mesh: Mesh | None) -> Any:
    """A context in which a mesh is in use; None: the one that is stays in use."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _parallel_mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out by its logical axes on the mesh in use; without one, does nothing."""
    mesh = _parallel_mesh()
    return (
        x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))
    )


def gathered(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A matrix as a product reads it: whole along the axes that lie over `fsdp`. Its gradient is summed over
    their devices to where the matrix lies.

    Without this, XLA for TPUs multiplies with one device's part after the other, and writes and reads the
    whole product once for each.
    """
    mesh = _parallel_mesh()
    return kernel if mesh is None or mesh.shape["fsdp"] == 1 else _gathered(kernel, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    return constrain(kernel, *(None if a and RULES[a] == "fsdp" else a for a in axes))


def _gathered_forward(kernel: jax.Array, axes: tuple[str | None, ...]) -> tuple[jax.Array, None]:
    return _gathered(kernel, axes), None


def _gathered_backward(axes: tuple[str | None, ...], _: None, gradient: jax.Array) -> Any:
    # Whole first: a product whose result lies in parts is made part by part, and XLA for TPUs reads all
    # activations for each. The sum over the devices is then one of whole matrices, which sends some 3 of 90
    # GB more than sums of parts.
    return (constrain(_gathered(gradient, axes), *axes),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def sharded_tokens() -> bool:
    """Whether tokens lie on more than one device, so that batch and tokens cannot become one axis."""
    mesh = _parallel_mesh()
    return mesh is not None and _size(mesh, spec(("tokens",))[0]) > 1


def _size(mesh: Any, axes: str | tuple[str, ...] | None) -> int:
    """Devices along mesh axes."""
    return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def check(what: str, size: int, axis: str, mesh: Any = None) -> None:
    """Checks that a size divides over the devices of a logical axis.

    Args:
      what: its name in the error.
      size: such as a number of heads.
      axis: a logical axis of the table.
      mesh: None: the mesh in use.

    Raises:
      InputError: it does not.
    """
    mesh = mesh or _parallel_mesh()
    if mesh is None:
        return
    axes = spec((axis,))[0]
    axes = (axes,) if isinstance(axes, str) else axes or ()
    parts = _size(mesh, axes)
    if size % parts:
        names = " x ".join(f"{a} {mesh.shape[a]}" for a in axes if mesh.shape[a] > 1)
        raise InputError(
            f"mesh: expected {what} to divide over {parts} devices ({names}), found {size}; choose mesh "
            "sizes that divide it"
        )


def by_heads(attend: Callable[..., Any], q: Any, k: Any, v: Any, memory: Any) -> tuple[Any, Any]:
    """Runs self-attention where each device has all keys of its heads.

    Args:
      attend: a function of arrays of one device, attend(q, k, v, memory) -> (out, new).
      q, k, v: [b, f, n, h, k], tokens laid out over the mesh.
      memory: a tree of arrays as `STORED` says, laid out by whole heads, or None; so is `new`.

    Raises:
      InputError: samples, tokens or heads that the mesh does not divide.
    """
    mesh = _parallel_mesh()
    if mesh is None:
        return attend(q, k, v, memory)
    check("a batch", q.shape[0], "batch")
    check("the tokens of a frame", q.shape[2], "tokens")
    check("attention heads", q.shape[3], "whole_heads")

    def exchange(x: Any, split: int, joined: int) -> Any:
        many = mesh.shape["sequence"] > 1
        return jax.lax.all_to_all(x, "sequence", split, joined, tiled=True) if many else x

    def local(q: Any, k: Any, v: Any, memory: Any) -> tuple[Any, Any]:
        q, k, v = (exchange(x, 3, 2) for x in (q, k, v))
        if mesh.shape["context"] > 1:
            k, v = (jax.lax.all_gather(x, "context", axis=2, tiled=True) for x in (k, v))
        out, new = attend(q, k, v, memory)
        return exchange(out, 2, 3), new

    tokens = spec(("batch", None, "tokens", "heads", None))
    ranks = [x.ndim for x in jax.tree.leaves(memory)]
    cached = spec(STORED[ranks[0] if ranks else 5])
    run = jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, cached),
        out_specs=(tokens, cached),
        check_vma=False,
    )
    return run(q, k, v, memory)


def by_tokens(attend: Callable[..., jax.Array], q: Any, k: Any, v: Any) -> jax.Array:
    """Runs cross-attention where the tokens lie: q [b, f, n, h, k] over k and v [b, s, h, k] of a prompt,
    of which each device has a copy of its heads."""
    if _parallel_mesh() is None:
        return attend(q, k, v)
    check("attention heads", q.shape[3], "heads")
    tokens = spec(("batch", None, "tokens", "heads", None))
    prompt = spec(("batch", None, "heads", None))
    return jax.shard_map(
        attend, in_specs=(tokens, prompt, prompt), out_specs=tokens, check_vma=False
    )(q, k, v)


def _axes(leaf: Any) -> tuple[str | None, ...]:
    return leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree from `jax.eval_shape` whose parameters still carry their logical axes.

    Raises:
      InputError: an axis that its mesh axes do not divide, with the path and shape of the leaf.
    """

    def of(path: Any, leaf: Any) -> Any:
        array = leaf.value if _is_box(leaf) else leaf
        if not hasattr(
            array, "shape"
        ):  # what optax leaves in place of a parameter it does not touch
            return array
        sharding = NamedSharding(mesh, spec(_axes(leaf)))
        for size, entry in zip(array.shape, sharding.spec, strict=False):
            parts = _size(mesh, entry)
            if size % parts:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise InputError(
                    f"sharding: {name} {tuple(array.shape)} does not divide over {parts} devices of "
                    f"mesh axis {entry!r}; choose a mesh whose sizes divide the model's"
                )
        return sharding

    return jax.tree_util.tree_map_with_path(of, boxed, is_leaf=_is_box)


def abstract(boxed: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of such a tree, without its logical axes."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def first_device() -> Mesh:
    """A mesh of this process's first device."""
    return make_mesh({"data": 1}, jax.local_devices()[:1])


def unbox(tree: Any) -> Any:
    """The tree without its logical axes."""
    return nn.meta.unbox(tree)
