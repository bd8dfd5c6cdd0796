"""Key maps: which tensor of a PyTorch checkpoint is which leaf of our parameter tree.

A key map is data, `{torch key: Leaf}`, and a bijection; reading and writing are the two directions of
one table. Layers that PyTorch numbers (`blocks.7.ffn.0.weight`) are slices of one stacked leaf here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

LAYOUTS = ("same", "linear", "conv")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one PyTorch tensor lives in our tree.

    Attributes:
      path: keys from the root of the parameter tree.
      layer: index on the leading (stacked) axis of the leaf; None where the leaf is not stacked.
      layout: "same": equal but for axes of size 1. "linear": torch [out, in...] is ours [prod(in), out] (a patch
        embedding counts as linear on flattened patches). "conv": torch [out, in, k...] is ours
        [k..., in, out].
    """

    path: tuple[str, ...]
    layer: int | None = None
    layout: str = "same"


KeyMap = Mapping[str, Leaf]


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


def load(
    key_map: KeyMap, tensors: Mapping[str, np.ndarray], abstract: Any, source: str = "checkpoint"
) -> Any:
    """A parameter tree (numpy leaves) from PyTorch tensors.

    Args:
      key_map: the table; every key must be in `tensors`, and `tensors` may hold no other.
      tensors: PyTorch state dict as numpy arrays.
      abstract: our tree of shapes (from `jax.eval_shape`).
      source: named in the error.

    Raises:
      ValueError: one line that lists every missing, unexpected or misshapen tensor.
    """
    problems = [f"missing {key}" for key in key_map if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in key_map]
    for key, leaf in key_map.items():
        if key in tensors:
            expected = tuple(get(abstract, leaf.path).shape)[0 if leaf.layer is None else 1 :]
            found = leaf_shape(tuple(tensors[key].shape), leaf.layout)
            if not _fits(found, expected, leaf.layout):
                problems.append(
                    f"{key} has shape {tuple(tensors[key].shape)}, which gives {found}, not {expected}"
                )
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{source} does not fit the model: {'; '.join(problems[:8])}{more}. "
            "Check that the checkpoint and the model's config are of the same architecture."
        )
    tree = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    for key, leaf in key_map.items():
        where = () if leaf.layer is None else (leaf.layer,)
        target = get(tree, leaf.path)[where + (...,)]
        target[...] = from_torch(np.asarray(tensors[key]), leaf.layout).reshape(target.shape)
    return tree


def dump(
    key_map: KeyMap, params: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The inverse of `load`: PyTorch tensors (as numpy arrays) of the given PyTorch shapes."""
    tensors = {}
    for key, leaf in key_map.items():
        array = np.asarray(get(params, leaf.path))
        array = array if leaf.layer is None else array[leaf.layer]
        tensors[key] = np.ascontiguousarray(to_torch(array, leaf.layout, tuple(shapes[key])))
    return tensors
