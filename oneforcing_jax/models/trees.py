"""Trees of parameters, whole and in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

# Nested dicts of arrays, as Linen makes them.
Params = Mapping[str, Any]
# Keys from the root of a tree to a leaf.
Path = tuple[str, ...]


def flat(tree: Any) -> dict[Path, Any]:
    """The leaves by their paths."""
    return dict(flatten_dict(tree))


def select(tree: Params, wanted: Callable[[Path], bool] | None) -> Params:
    """The tree without the leaves that are not wanted, and without what is then empty; None: the whole."""
    if wanted is None:
        return tree
    return dict(unflatten_dict({p: x for p, x in flatten_dict(tree).items() if wanted(p)}))


def merge(part: Params, rest: Params) -> Params:
    """The leaves of both trees; those of `part` where both have one."""
    own, others = flatten_dict(part), flatten_dict(rest)
    return dict(unflatten_dict(own | {p: x for p, x in others.items() if p not in own}))
