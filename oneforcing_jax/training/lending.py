"""Bases that several networks of a method start from, such as teacher and critic: each is held once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from oneforcing_jax.methods import Method
from oneforcing_jax.models import trees
from oneforcing_jax.models.trees import Params


def find(
    method: Method, partial: Sequence[str], init: Mapping[str, str], mesh: Mesh
) -> dict[str, str]:
    """Networks whose base is that of another one, by the other's name: they start from the same source, and
    read it in the same dtypes.

    Args:
      method: of the networks.
      partial: those of which a part is trained.
      init: what each starts from, as a config says it.
      mesh: their devices.
    """
    found: dict[str, str] = {}
    held: dict[str, Params] = {}
    for net in (*method.frozen, *partial):
        model, source = method.nets[net].model, init.get(net, "")
        own = model.in_use(mesh)
        own = model.base(own) if net in partial else own
        same = [other for other in held if source and init.get(other) == source]
        lenders = (
            o for o in same if net in partial and _same(own, _lent(method, init, net, o, held[o]))
        )
        if lender := next(lenders, ""):
            found[net] = lender
        else:
            held[net] = own
    return found


def lend(
    method: Method,
    init: Mapping[str, str],
    lent: Mapping[str, str],
    frozen: Mapping[str, Params],
) -> dict[str, Params]:
    """What is frozen of each network, with the bases that others hold for it.

    Args:
      method, init: see `find`.
      lent: what it gave.
      frozen: what is held, by the names of networks.
    """
    own = {
        net: _lent(method, init, net, other, frozen[other])
        for net, other in lent.items()
        if other in frozen
    }
    return {**frozen, **own}


def _same(one: Params, other: Params) -> bool:
    return trees.flat(one) == trees.flat(other)


def _lent(method: Method, init: Mapping[str, str], net: str, other: str, params: Params) -> Params:
    """What was read of another network, in the tree of `net`."""
    if inner := method.nets[other].filled(other, init[net]):
        params = params[inner]
    place = method.nets[net].filled(net, init[net])
    return {place: params} if place else params
