"""Adapters and whole transformers on disk: files merged into one, and the adapters that a stage trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from oneforcing_jax import sharding
from oneforcing_jax.convert import keys, lora, to_lora, to_orbax
from oneforcing_jax.convert.lora import Lora
from oneforcing_jax.convert.to_torch import Stored
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import records
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.adapters import File
from oneforcing_jax.models import trees
from oneforcing_jax.models.products.low_rank import DOWN, UP
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.system import integrity, room
from oneforcing_jax.system.files import FORM, VERSION, record, staged


def merge(
    checkpoint: Path,
    files: Sequence[File],
    out: Path,
    ema: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Writes a transformer with the changes of files of adapters, as a converted one.

    Args:
      checkpoint: see `pretrained.find`.
      files: with their weights.
      out: folder of the result.
      ema: the moving average of the transformer.
      report: called with a line at the end.

    Raises:
      MissingInput, InputError: nothing there, files of another model, a transformer that no family converts,
        or a result that exists.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out, or delete it")
    source, read = pretrained.find(checkpoint, ema), [lora.read(one.file) for one in files]
    shapes = sharding.unbox(source.model.with_product(PLAIN).shapes)
    for one in read:
        one.check(shapes)
    net = pretrained.described(source) | {"layout": "original"}
    records.config_of(net)  # a family that converts nothing is refused before anything is read
    product = functools.partial(pretrained.product, checkpoint, source.net)
    stored = Stored(source.folder, source.net, ema, product)
    needed = room.size(stored.tree)
    room.check_memory(f"merging {stored.path}", needed, "merge it on a machine with more")
    room.check_disk(f"merging {stored.path}", needed, out)
    weighed = list(zip(read, (one.weight for one in files), strict=True))
    flat: dict[trees.Path, Any] = {}
    for batch in stored.batches(stored.paths):
        tree = stored.read(batch)
        flat |= {path: lora.merged(path, keys.get(tree, path), weighed) for path in batch}
    merged = unflatten_dict(flat)
    net["dtype"] = to_orbax.main_dtype(merged)
    item = "params_generator"
    with staged(out) as temporary:
        to_orbax.save_item(temporary / records.STEP / item, merged)
        integrity.seal(temporary / records.STEP)
        order = {
            "source": str(checkpoint),
            "dtype": "as stored",
            "lora": [one.said for one in files],
        }
        content = {VERSION: FORM, **order, "nets": {item: net}}
        (temporary / records.MODEL).write_bytes(record(content))
    report(f"{stored.path} with {', '.join(str(one.file) for one in files)} -> {out}")


def trained(checkpoint: Path, ema: bool = False) -> Lora:
    """The adapters that a stage trained.

    Raises:
      MissingInput, InputError: nothing there, or a network that was trained whole.
    """
    source = pretrained.find(checkpoint, ema)
    adapters = pretrained.adapters(checkpoint, source.net)
    if adapters is None:
        raise InputError(
            f"{checkpoint}: expected a stage with low_rank, found one that trained {source.net!r} whole; "
            "export it with oneforcing export"
        )
    stored = Stored(source.folder, source.net, ema, lambda: source.model.product)
    paths = [path for path in trees.flat(stored.tree) if path[-1] in (DOWN, UP)]
    leaves = trees.flat(stored.read(paths))
    return to_lora.of_leaves(leaves, adapters, str(stored.path))
