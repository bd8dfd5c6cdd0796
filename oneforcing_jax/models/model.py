"""A network as everybody outside `models/` knows it: its sizes, its conditions and what it computes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax import sharding
from oneforcing_jax.models import condition, trees
from oneforcing_jax.models.condition import FRAME, Condition, Field
from oneforcing_jax.models.products import Product
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.trees import Params, Path


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network without its parameters. The function that makes one gives the same for the same arguments,
    so that programs are compiled once for it.

    Attributes:
      config: its sizes, a `WanConfig`.
      takes: its conditions by name.
      init: random parameters from a key, each in a box with the logical names of its axes.
      apply: apply(params, latents [b, f, c, y, x], sigma, `Condition`, ...) -> what the network gives; see
        `wan.WanDiT` and `critic.Critic` for the rest of its arguments.
      prepare: prepare(params, the clip's part of a condition) -> that part as every layer reads it, which
        `apply` takes in its place.
      again: again(config, product) -> the same network of other sizes, or with another product for its
        matrices; None: as they are.
      product: of its matrices.
      trains: which leaves an update trains, by their paths; None: all. A method that wants another part than
        the product's own puts it in place at last, with `dataclasses.replace`.
      wide: beginnings of names in the tree of parameters; what lies below them computes in float32.
    """

    config: Any
    takes: Mapping[str, Field]
    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]
    prepare: Callable[[Params, Any], Any]
    again: Callable[[Any, Any], Model]
    product: Product = PLAIN
    trains: Callable[[Path], bool] | None = None
    wide: tuple[str, ...] = ()

    @functools.cached_property
    def shapes(self) -> Any:
        """Shapes of the parameters, in their boxes."""
        # The key is made abstractly too: the mesh in use may have devices that are not there.
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def with_config(self, **changes: Any) -> Model:
        """The same network with other fields in its config."""
        return self.again(dataclasses.replace(self.config, **changes), None)

    def with_product(self, product: Product) -> Model:
        """The same network with another product for its matrices."""
        return self.again(None, product)

    def part(self, params: Params) -> Params:
        """The leaves of a tree of parameters that an update trains."""
        return trees.select(params, self.trains)

    def base(self, params: Params) -> Params:
        """All others; {}: an update trains the whole."""
        trains = self.trains
        return {} if trains is None else trees.select(params, lambda path: not trains(path))

    def condition(self, batch: Mapping[str, Any]) -> Condition:
        """The conditions of the samples of a batch."""
        return condition.of(self.takes, batch)

    def null(self, batch: Mapping[str, Any]) -> Condition:
        """What says nothing, of one clip and one frame; see `condition.null`."""
        return condition.null(self.takes, batch)

    def takes_of(self, kind: str) -> list[str]:
        """Names of the conditions that belong to a `CLIP` or to a `FRAME`."""
        return [name for name, field in self.takes.items() if field.of == kind]

    def fields(self, frames: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the conditions of one clip of so many latent frames."""
        return {
            name: (frames, *field.shape) if field.of == FRAME else field.shape
            for name, field in self.takes.items()
        }

    def compute_dtype(self, path: Path, leaf: Any) -> Any:
        """The dtype that a parameter is used in: that of the config for kernels and biases of linear layers
        that are not `wide`, and float32 for all others. Whole numbers, and floats of eight bits, stay as they
        are."""
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize == 1:
            return leaf.dtype
        wide = path[-1] not in ("kernel", "bias") or any(n.startswith(self.wide) for n in path)
        return jnp.float32 if wide else self.config.dtype

    def in_compute_dtype(self, params: Params, trained: bool = False) -> Params:
        """Casts parameters once; otherwise each layer of each forward would cast them again. Biases that are
        `trained` stay as they are: their gradients are sums over all tokens of all forwards."""

        def one(path: Any, x: jax.Array) -> jax.Array:
            names = _names(path)
            kept = trained and names[-1] != "kernel"
            return x if kept else x.astype(self.compute_dtype(names, x))

        cast: Params = jax.tree_util.tree_map_with_path(one, params)
        return cast

    def in_use(self, mesh: Mesh, apart: bool = False) -> Any:
        """Shapes, dtypes and shardings of parameters that are only read; `apart`: with layers that lie so."""
        found = jax.tree_util.tree_map_with_path(
            lambda path, like: like.update(dtype=self.compute_dtype(_names(path), like)),
            sharding.abstract(self.shapes, mesh),
        )
        if not apart:
            return found

        def layer(leaf: Any) -> Any:
            place = NamedSharding(mesh, P(*leaf.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)

        count = self.config.num_layers
        return found | {"blocks": (jax.tree.map(layer, found["blocks"]),) * count}


def _names(path: Any) -> Path:
    return tuple(part.key for part in path)


def unstacked(params: Any) -> Any:
    """Parameters whose layers lie apart, from stacked ones; others stay as they are."""
    if isinstance(params["blocks"], tuple):
        return params
    layers = len(params["blocks"]["modulation"])
    return params | {
        "blocks": tuple(jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(layers))
    }
