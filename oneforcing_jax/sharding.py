"""The device mesh, the one table of sharding rules, and shardings of whole state trees.

Parameters name their axes logically when they are declared (`nn.with_logical_partitioning`); the table
below says which mesh axis each of them lies on. All mesh axes exist always, of size 1 where unused, so
that one program serves a laptop and a pod.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "sequence", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": "sequence",
    "columns": "sequence",  # of a video's frames
    "heads_full": ("tensor", "sequence"),  # inside attention all tokens of a head meet
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
      ValueError: an unknown axis, or sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = dict.fromkeys(MESH_AXES, 1) | dict(sizes or {"data": -1})
    if unknown := set(shape) - set(MESH_AXES):
        raise ValueError(f"mesh: expected axes among {MESH_AXES}, found {sorted(unknown)}")
    free = [axis for axis, size in shape.items() if size == -1]
    known = math.prod(size for size in shape.values() if size != -1)
    if len(free) == 1 and len(devices) % known == 0:
        shape[free[0]] = len(devices) // known
    if math.prod(shape.values()) != len(devices):
        raise ValueError(
            f"mesh: expected sizes whose product is the number of devices, {len(devices)}, found {shape}; "
            "give one axis the size -1 to take what is left"
        )
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(shape[a] for a in MESH_AXES), MESH_AXES, auto, devices=devices)


def spec(axes: tuple[str | None, ...]) -> P:
    """The partition spec of logical axes.

    Raises:
      ValueError: an axis that the table lacks, or a mesh axis used twice.
    """
    if unknown := [a for a in axes if a is not None and a not in RULES]:
        raise ValueError(
            f"sharding: axis {unknown[0]!r} of {axes} is not in the rules {sorted(RULES)}"
        )
    mapped = [None if a is None else RULES[a] for a in axes]
    used = [m for entry in mapped if entry for m in ((entry,) if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"sharding: axes {axes} map to {mapped}, which uses a mesh axis twice")
    return P(*mapped)


def dividing(
    mesh: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> tuple[str | None, ...]:
    """The logical axes, without those whose mesh axes do not divide the array's size there."""

    def parts(axis: str | None) -> int:
        entry = spec((axis,))[0] or ()
        return math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry))

    return tuple(
        None if size % parts(axis) else axis for size, axis in zip(shape, axes, strict=True)
    )


def named(mesh: Mesh, axes: tuple[str | None, ...] = ()) -> NamedSharding:
    """The sharding of logical axes on a mesh; of none, a copy on each device."""
    return NamedSharding(mesh, spec(axes))


def _parallel_mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out by its logical axes on the mesh in use; without one, does nothing."""
    mesh = _parallel_mesh()
    return (
        x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes)))
    )


def sharded_tokens() -> bool:
    """Whether tokens lie on more than one device, so that batch and tokens cannot become one axis."""
    mesh = _parallel_mesh()
    return mesh is not None and mesh.shape["sequence"] > 1


def shard_heads(
    kernel: Callable[..., jax.Array], q: Any, k: Any, v: Any, lengths: Any
) -> jax.Array:
    """Runs a one-device attention kernel on every device's share of batch and heads."""
    if _parallel_mesh() is None:
        return kernel(q, k, v, lengths)
    heads, batch = spec(("batch", None, "heads_full", None)), spec(("batch",))
    specs = (heads, heads, heads, None if lengths is None else batch)
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(q, k, v, lengths)


def _axes(leaf: Any) -> tuple[str | None, ...]:
    return leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree from `jax.eval_shape` whose parameters still carry their logical axes.

    Raises:
      ValueError: an axis that its mesh axes do not divide, with the path and shape of the leaf.
    """

    def of(path: Any, leaf: Any) -> Any:
        array = leaf.value if _is_box(leaf) else leaf
        if not hasattr(
            array, "shape"
        ):  # what optax leaves in place of a parameter it does not touch
            return array
        sharding = NamedSharding(mesh, spec(_axes(leaf)))
        for size, entry in zip(array.shape, sharding.spec, strict=False):
            parts = math.prod(
                mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ())
            )
            if size % parts:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
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


def unbox(tree: Any) -> Any:
    """The tree without its logical axes."""
    return nn.meta.unbox(tree)
