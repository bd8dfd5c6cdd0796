"""Published checkpoints to Orbax, tensor by tensor: the host holds one model and one tensor.

    from a folder    out/transformer/0/params_model and out/transformer/model.json; the same for vae and
                     text, with the tokenizer in out/text/tokenizer
    from a .pt file  out/0/params_generator, ema_generator and params_critic beside it, and out/model.json
    a tiny decoder   out/tiny/0/params_model and out/tiny/model.json

`oneforcing_jax.system.saved.load_net(out / "transformer", "model", abstract)` reads them, and so does
`init` in a stage's config ("OUT:generator").
"""

from __future__ import annotations

import asyncio
import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from oneforcing_jax import families
from oneforcing_jax.convert import keys, refused, sizes, source
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import KeyMap, Tensors
from oneforcing_jax.convert.torch_io import TorchTensors, load_torch
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.records import MODEL, STEP, TOKENIZER, describe
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system import files, integrity, places, room
from oneforcing_jax.system.files import FORM, MORE, VERSION, read_versioned, staged, write_whole

# Networks of a .pt file and the items that they become.
ITEMS = {
    "generator": "params_generator",
    "generator_ema": "ema_generator",
    "critic": "params_critic",
}
# In model.json, below `MORE`: the commit of the repository that was downloaded.
REVISION = "revision"
# A critic without an adversarial head is a plain transformer, and is read as one.
BARE_CRITIC = "params_fake_score"
_CHUNK_BYTES = 64 * 2**20

Report = Callable[[str], None]


def convert(
    name: str,
    out: Path,
    dtype: str | None = None,
    only: Sequence[str] | None = None,
    num_heads: int | None = None,
    report: Report = print,
) -> None:
    """Converts whatever `name` is.

    Args:
      name: a folder, a file, or a Hugging Face repository; see `source.locate`.
      out: folder of the result. What is finished there is skipped.
      dtype: "float32" or "bfloat16"; None: as in the files, bit by bit.
      only: parts of a folder; None: all that are there.
      num_heads: of the transformer, where neither config.json nor a head size of 128 tells.
      report: called with a line on each model.

    Raises:
      InputError: unreadable or unfit files; `out` holds another conversion. Nothing is left of the
        model that was being converted.
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"expected a dtype among {sorted(DTYPES)}, found {dtype!r}")
    source.check_parts(only)
    only = only and list(dict.fromkeys(only))
    order: dict[str, Any] = {"source": name, "dtype": dtype or "as stored"}
    path, commit = source.locate(name, only or source.PARTS, _begun(out, name))
    more = {MORE: {REVISION: commit}} if commit else {}
    if path.is_dir():
        found = source.parts(path, only)
        for missing in sorted(set(source.PARTS) - {part.name for part in found}):
            if only is None:
                report(f"{missing}: not in {path}, left out")
        for part in found:
            _convert_part(part, out / part.name, order, more, num_heads, report)
        return
    if only:
        raise InputError(f"{path}: --only is for folders, and this is one file; leave it out")
    if model := source.single(path):
        _convert_part(model, out / model.name, order, more, num_heads, report)
    else:
        _convert_file(path, out, order, more, num_heads, report)


def _begun(out: Path, name: str) -> str | None:
    """The commit of a repository with which its conversion began: its parts are to be of one."""
    for record in [out / MODEL, *(out / part / MODEL for part in (*source.PARTS, source.TINY))]:
        found = read_versioned(record) if record.is_file() else {}
        if found.get("source") == name and isinstance(found.get(MORE), dict):
            commit: str | None = found[MORE].get(REVISION)
            return commit
    return None


def _convert_part(
    part: source.Part,
    target: Path,
    order: Mapping[str, Any],
    more: Mapping[str, Any],
    num_heads: int | None,
    report: Report,
) -> None:
    if _finished(target, target / MODEL, order):
        report(f"{part.name}: finished before in {target}, skipped")
        return
    tensors = part.open()
    shapes = tensors.shapes
    refused.check_tensors(shapes, str(part))
    family = refused.family(shapes) or _beside(target)
    network = families.find(family).networks[part.name]
    told = {"num_heads": num_heads} if part.name == "transformer" else {}
    config, key_map = network.read(shapes, str(part), part.settings, **told)
    tensors.shapes = {
        name: shape
        for name, shape in shapes.items()
        if name in key_map or not name.startswith(network.unread)
    }
    with staged(target) as temporary:
        item = temporary / STEP / "params_model"
        net = _write(item, tensors, key_map, family, config, None, order, part)
        if part.name == "transformer":
            net[MORE]["causal"] = sizes.is_causal(part.settings)
        (temporary / MODEL).write_bytes(_record({**order, **more}, {"params_model": net}))
        if part.tokenizer:
            shutil.copytree(part.tokenizer, temporary / TOKENIZER)
        integrity.seal(temporary)
    report(f"{part.name}: {len(tensors.shapes)} tensors of {part} -> {target}")
    if part.name == "text" and not part.tokenizer:
        report(f"text: no tokenizer beside it; copy its folder to {target / TOKENIZER}")


def _beside(target: Path) -> str:
    """The family of the networks that were converted into folders beside this one, or the first."""
    for name in source.PARTS:
        if (record := target.parent / name / MODEL).is_file():
            found = read_versioned(record, "nets", "params_model")
            return str(found.get(MORE, {}).get(families.FIELD, families.FIRST))
    return families.FIRST


def _convert_file(
    path: Path,
    out: Path,
    order: Mapping[str, Any],
    more: Mapping[str, Any],
    num_heads: int | None,
    report: Report,
) -> None:
    if _finished(out / STEP, out / MODEL, order):
        report(f"{path.name}: finished before in {out}, skipped")
        return
    content = load_torch(path)
    names = list(content) if isinstance(content, Mapping) else []
    nets = [net for net in ITEMS if net in names]
    if not nets:
        shown = ", ".join(str(name) for name in names[:3]) or type(content).__name__
        raise InputError(
            f"{path}: expected networks among {', '.join(ITEMS)}, found {shown}; give a .pt file "
            "of One-Forcing, Causal Forcing or Self Forcing, or the folder of a Wan model"
        )
    files = {net: TorchTensors(path, net, content) for net in nets}
    del content
    records = {}
    with staged(out / STEP) as temporary:
        for net in nets:
            tensors, where = files.pop(net), f"{path}: {net}"
            prefix = "model." if any(k.startswith("model.") for k in tensors) else ""
            family = refused.family(tensors.shapes) or families.FIRST
            network = families.find(family).networks["transformer"]
            config, key_map = network.read(
                tensors.shapes, where, None, num_heads=num_heads, prefix=prefix
            )
            head = sizes.head(tensors.shapes, where) if net == "critic" else None
            if head:
                key_map = wan_keys.critic(config.num_layers, len(head.layers))
            item = BARE_CRITIC if net == "critic" and not head else ITEMS[net]
            folder = temporary / item
            records[item] = _write(folder, tensors, key_map, family, config, head, order, where)
            records[item][MORE]["causal"] = net != "critic"
            report(f"{net}: {len(tensors)} tensors of {path} -> {out / STEP / item}")
        integrity.seal(temporary)
        write_whole(out / MODEL, _record({**order, **more}, records))


def _record(order: Mapping[str, Any], nets: Mapping[str, Any]) -> bytes:
    return files.record({VERSION: FORM, **order, "nets": nets})


def _finished(target: Path, record: Path, order: Mapping[str, Any]) -> bool:
    cut_short = places.is_url(target) and not integrity.is_sealed(target)
    if not target.exists() or cut_short:
        return False
    found = read_versioned(record) if record.is_file() else {}
    if all(found.get(name) == value for name, value in order.items()):
        return True
    was = f"one of {found['source']} as {found['dtype']}" if found else "something else"
    raise InputError(
        f"{target}: expected nothing or a conversion of {order['source']} ({order['dtype']}), "
        f"found {was}; choose another folder with --out, or delete this one"
    )


def _write(
    folder: Path,
    tensors: Tensors,
    key_map: KeyMap,
    family: str,
    config: Any,
    head: HeadConfig | None,
    order: Mapping[str, Any],
    where: Any,
) -> dict[str, Any]:
    """Writes one network; its part of model.json."""
    shapes = families.find(family).abstract(config, head)
    keys.check(key_map, tensors.shapes, shapes, str(where))
    typed = keys.stored_dtypes(key_map, tensors, shapes)
    if order["dtype"] in DTYPES:
        dtype = DTYPES[order["dtype"]]
        typed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    needed = room.size(typed)
    room.check_memory(
        str(where), needed, "convert it on a machine with more, or with --only one part"
    )
    room.check_disk(str(where), needed, folder)
    tree = keys.load(key_map, tensors, typed, str(where))
    tensors.close()
    save_item(folder, tree)
    said = {"layout": sizes.layout(tensors.shapes), "dtype": main_dtype(tree)}
    return {**describe(config, head), **said, MORE: {families.FIELD: family}}


def main_dtype(tree: Any) -> str:
    """The dtype of most of the weights."""
    sizes_of: dict[str, int] = {}
    for leaf in jax.tree.leaves(tree):
        sizes_of[leaf.dtype.name] = sizes_of.get(leaf.dtype.name, 0) + leaf.size
    return max(sizes_of, key=lambda name: sizes_of[name])


class _OneAtATime(ocp.type_handlers.NumpyHandler):  # type: ignore[misc]
    """Writes arrays one after the other, from where they lie.

    Orbax's own copies the whole tree first, then writes all arrays at once, with a buffer for each.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._context = ts.Context({"data_copy_concurrency": {"limit": 1}})

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args, strict=True):
            info = copy.copy(info)
            info.ts_context = self._context
            for written in await super().serialize([value], [info], [arg]):
                await asyncio.to_thread(written.result)
        return []


def save_item(folder: Path, tree: Any) -> None:
    """Writes a tree of numpy arrays as one Orbax item; what it needs beside the tree is small."""
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, _OneAtATime()))
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )
    split = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(tree, save_args=split))
