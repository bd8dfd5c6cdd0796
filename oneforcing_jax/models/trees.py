"""Trees of parameters, whole and in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

# Nested dicts of arrays, as Linen makes them.
Params = Mapping[str, Any]
# Keys from the root of a tree to a leaf.
Path = tuple[str, ...]


def select(tree: Any, wanted: Callable[[Path], bool] | None) -> Any:
    """The tree with None in place of the leaves that are not wanted; None: the whole.

    Optimisers, gradients and `jax.tree.map` see the other leaves alone.
    """
    if wanted is None:
        return tree

    def of(path: Any, leaf: Any) -> Any:
        # An entry without a key leads into the box of a leaf, which names its axes.
        return leaf if wanted(tuple(e.key for e in path if hasattr(e, "key"))) else None

    return jax.tree_util.tree_map_with_path(of, tree)


def merge(part: Any, whole: Any) -> Any:
    """`whole` with the leaves of `part` that are not None."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, part, whole, is_leaf=lambda x: x is None
    )
