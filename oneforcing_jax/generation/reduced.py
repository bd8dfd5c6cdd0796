"""Reading a transformer whose matrices will have eight bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation.pretrained import Source
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.models.products.eight_bits import EightBits, product, quantised
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.trees import Params
from oneforcing_jax.system import room, saved


def load(source: Source, eight: EightBits, mesh: Mesh | None = None) -> tuple[Source, Params]:
    """A source with the product of `eight`, and its parameters over a mesh, layers apart.

    They are read and quantised on the host, so that devices hold no more than what is used.

    Raises:
      InputError: weights with adapters of their own, too little memory, or no processors for JAX.
    """
    if source.model.product is not PLAIN:
        raise InputError(
            "--precision: expected plain weights, found some with adapters of their own; merge these first "
            "with oneforcing import-lora"
        )
    served, mesh = source.model.with_product(product(eight)), mesh or sharding.first_device()
    like, devices = served.in_use(mesh, apart=True), list(mesh.devices.flat)
    needed = room.per_device(like) * len(devices)
    room.check_memory(f"weights of {source.folder}", needed, "choose a smaller model", devices)
    host = sharding.make_mesh({"data": 1}, room.processors("precision")[:1])
    whole: Any = saved.load_net(source.folder, source.net, source.model.in_use(host), source.ema)
    params = jax.tree.map(
        lambda x, leaf: jax.device_put(x, leaf.sharding), unstacked(quantised(whole, eight)), like
    )
    return dataclasses.replace(source, model=served), params
