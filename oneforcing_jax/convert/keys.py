"""Key maps: which tensor of a PyTorch checkpoint is which leaf of our parameter tree.

A key map is data, `{torch key: Leaf}`, and a bijection; reading and writing are the two directions
of one table. Layers that PyTorch numbers (`blocks.7.ffn.0.weight`) are slices of one stacked leaf.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.ranges import not_finite

LAYOUTS = ("same", "linear", "conv")
# Problems of a checkpoint that an error names.
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one PyTorch tensor lives in our tree.

    Attributes:
      path: keys from the root of the parameter tree.
      layer: index on the leading (stacked) axis of the leaf; None where the leaf is not stacked.
      layout: "same": equal but for axes of size 1. "linear": torch [out, in...] is ours
        [prod(in), out] (a patch embedding counts as linear on flattened patches). "conv": torch
        [out, in, k...] is ours [k..., in, out].
    """

    path: tuple[str, ...]
    layer: int | None = None
    layout: str = "same"


KeyMap = Mapping[str, Leaf]


class Tensors(Mapping[str, np.ndarray]):
    """A state dict that reads a tensor each time it is asked for one, and holds none.

    Attributes:
      shapes, dtypes: of every tensor, known without reading it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def close(self) -> None:
        """Lets go of the files; whoever reads again opens them again."""


def from_torch(tensor: np.ndarray, layout: str) -> np.ndarray:
    """One tensor in our axis order."""
    if layout == "linear":
        return tensor.reshape(tensor.shape[0], -1).T
    if layout == "conv":
        return np.moveaxis(tensor, (0, 1), (-1, -2))
    return tensor


def to_torch(array: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `from_torch`; `shape` is the PyTorch shape."""
    if layout == "linear":
        return array.T.reshape(shape)
    if layout == "conv":
        return np.moveaxis(array, (-1, -2), (0, 1))
    return array.reshape(shape)


def leaf_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape of our (unstacked) leaf for a PyTorch shape."""
    if layout != "same" and len(shape) < 2:
        return shape
    return from_torch(np.broadcast_to(np.float32(0), shape), layout).shape


def _fits(found: tuple[int, ...], expected: tuple[int, ...], layout: str) -> bool:
    if layout == "same":
        return [n for n in found if n != 1] == [n for n in expected if n != 1]
    return found == expected


def get(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf at `path` of nested dicts."""
    for key in path:
        tree = tree[key]
    return tree


def _shapes(tensors: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    if isinstance(tensors, Tensors):
        return tensors.shapes
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def stored_dtypes(key_map: KeyMap, tensors: Tensors, abstract: Any) -> Any:
    """`abstract` with the dtypes of the file; a stacked leaf takes one that holds all of its layers'."""
    found: dict[tuple[str, ...], np.dtype] = {}
    for key, leaf in key_map.items():
        if key in tensors.dtypes:
            dtype = tensors.dtypes[key]
            found[leaf.path] = _wider(found.get(leaf.path, dtype), dtype)

    def typed(path: Any, leaf: Any) -> Any:
        dtype = found.get(tuple(entry.key for entry in path), leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(typed, abstract)


def _wider(one: np.dtype, other: np.dtype) -> np.dtype:
    """The narrowest dtype that holds both; NumPy knows none for float16 and bfloat16."""
    if {one.name, other.name} == {"float16", "bfloat16"}:
        return np.dtype(np.float32)
    return np.promote_types(one, other)


def check(
    key_map: KeyMap,
    shapes: Mapping[str, tuple[int, ...]],
    abstract: Any,
    source: str = "checkpoint",
) -> None:
    """Compares the names and shapes of PyTorch tensors with what the key map needs.

    Raises:
      InputError: one line that lists missing, unexpected and misshapen tensors, the first of many; those
        that differ in their numbers alone are listed once, with their count.
    """
    problems = _grouped("missing", (key for key in key_map if key not in shapes))
    problems += _grouped("unexpected", (key for key in shapes if key not in key_map))
    misshapen: dict[str, list[str]] = {}
    for key, leaf in key_map.items():
        if key in shapes:
            expected = tuple(get(abstract, leaf.path).shape)[0 if leaf.layer is None else 1 :]
            found = leaf_shape(shapes[key], leaf.layout)
            if not _fits(found, expected, leaf.layout):
                text = f" has shape {shapes[key]}, which gives {found}, not {expected}"
                misshapen.setdefault(text, []).append(key)
    for text, names in misshapen.items():
        problems += [name + text for name in _grouped("", names)]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InputError(
            f"{source} does not fit the model: {'; '.join(problems[:_LISTED])}{more}. "
            "Check that the checkpoint and the model's config are of the same architecture."
        )


def _grouped(word: str, names: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [
        f"{word} {group[0] if len(group) == 1 else f'{pattern} ({len(group)})'}".strip()
        for pattern, group in groups.items()
    ]


def load(
    key_map: KeyMap,
    tensors: Mapping[str, np.ndarray],
    abstract: Any,
    source: str = "checkpoint",
) -> Any:
    """A parameter tree (numpy leaves) from PyTorch tensors, which are asked for one at a time.

    Args:
      key_map: the table; every key must be in `tensors`, and `tensors` may hold no other.
      tensors: PyTorch state dict as numpy arrays; `Tensors` for one that is not in memory.
      abstract: our tree of shapes (from `jax.eval_shape`) and dtypes; a tensor of the same dtype is
        copied bit by bit, another is rounded to the nearest.
      source: named in the error.

    Raises:
      InputError: one line that lists every missing, unexpected or misshapen tensor; or one that names a
        tensor with values that are not finite.
    """
    check(key_map, _shapes(tensors), abstract, source)
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    for key, leaf in key_map.items():
        where = () if leaf.layer is None else (leaf.layer,)
        target = get(tree, leaf.path)[where + (...,)]
        target[...] = from_torch(np.asarray(tensors[key]), leaf.layout).reshape(target.shape)
        if wrong := not_finite(target):
            raise InputError(
                f"{source}: expected finite weights, found {wrong} values of {key} that are "
                "not; get the file again"
            )
    return tree


def by_leaf(key_map: KeyMap) -> dict[tuple[str, ...], list[str]]:
    """The keys that each leaf of our tree holds."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, leaf in key_map.items():
        groups.setdefault(leaf.path, []).append(key)
    return groups


def tensor(leaf: Leaf, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """One PyTorch tensor of the given shape, contiguous, from our whole (stacked) leaf."""
    array = np.asarray(array)
    array = array if leaf.layer is None else array[leaf.layer]
    return np.ascontiguousarray(to_torch(array, leaf.layout, tuple(shape)))
