"""Orbax to PyTorch: a `.pt` that the original inference script loads, or diffusers' safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from oneforcing_jax.convert import keys, sizes
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import KeyMap
from oneforcing_jax.convert.torch_io import import_torch, write_safetensors, write_torch
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import records
from oneforcing_jax.models.products import Product
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.trees import Path as LeafPath
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system import items, room, saved
from oneforcing_jax.system.bases import Piece
from oneforcing_jax.system.files import staged

LAYOUTS = ("original", "diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"
_PATCH = 2
_BATCH_BYTES = 256 * 2**20


class Stored:
    """One network in an Orbax checkpoint, of which some leaves are read at a time. What lies beside a kernel
    is merged with it.

    Args:
      folder: of checkpoints, or the one around it, of which the last is taken; or one checkpoint.
      net: name of the network; "model", what a converted folder has, stands in for "generator".
      ema: its moving average.
      product: gives the product of its matrices; it is asked where something lies beside kernels.

    Raises:
      MissingInput, InputError: there is none.
    """

    def __init__(
        self, folder: Path, net: str, ema: bool, product: Callable[[], Product] = lambda: PLAIN
    ) -> None:
        for inner in ("checkpoints", "transformer"):
            folder = folder / inner if (folder / inner).is_dir() else folder
        step = saved.find(folder)
        names = [f"{'ema' if ema else 'params'}_{net}"]
        names += ["params_model"] if net == "generator" and not ema else []
        found = sorted(path.name for path in step.iterdir() if path.is_dir())
        item = next((name for name in names if name in found), None)
        if item is None:
            raise InputError(
                f"{step}: expected an item {names[0]!r}, found {found}; choose another --net, or "
                "add or leave out --ema"
            )
        self.path = step / item
        pieces = saved.pieces(step, item.partition("_")[2], ema)
        self._pieces = [(piece, _metadata(piece)) for piece in pieces]
        flat = {path: leaf for _, held in self._pieces for path, leaf in held.items()}
        self._beside = {
            path: [p for p in flat if p[:-1] == path[:-1] and p[-1] not in ("kernel", "bias")]
            for path in flat
            if path[-1] == "kernel"
        }
        self._product = product() if any(self._beside.values()) else PLAIN
        if any(self._beside.values()) and self._product is PLAIN:
            raise InputError(
                f"{self.path}: expected kernels alone, or the stage's config, whose method says what else "
                "there is, found leaves beside kernels; restore config.json from a copy"
            )
        self.tree: Any = unflatten_dict(flat)
        self.critic = "registers" in self.tree

    @property
    def backbone(self) -> Any:
        """The transformer's part of the tree.

        Raises:
          InputError: it has none.
        """
        backbone = self.tree["model"] if self.critic else self.tree
        if "patch_embedding" not in backbone:
            raise InputError(
                f"{self.path}: expected a transformer or critic, found "
                f"{sorted(backbone)[:4]}; only these can be exported"
            )
        return backbone

    def read(self, paths: Collection[tuple[str, ...]]) -> Any:
        """A tree with the leaves at some paths."""
        wanted = {*paths, *(other for path in paths for other in self._beside.get(path, ()))}
        flat: dict[LeafPath, Any] = {}
        for piece, held in self._pieces:
            flat |= _read(piece, held, wanted & held.keys())
        for path in paths:
            if beside := self._beside.get(path):
                flat[path] = self._merged({p[-1]: flat[p] for p in (path, *beside)})
        return unflatten_dict({path: flat[path] for path in paths})

    def _merged(self, leaves: dict[str, np.ndarray]) -> np.ndarray:
        """One kernel of the leaves of a linear layer, or of each of stacked ones."""
        kernel, merged = leaves["kernel"], self._product.merged
        if kernel.ndim == 2:
            return np.asarray(merged(leaves)).astype(_plain(kernel.dtype))
        layers = [{name: x[i] for name, x in leaves.items()} for i in range(len(kernel))]
        return np.stack([self._merged(layer) for layer in layers])

    def batches(self, paths: Collection[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
        """The paths, in runs of leaves to read at once: a large one, or several small ones."""
        batch: list[tuple[str, ...]] = []
        size = 0
        for path in paths:
            leaf = keys.get(self.tree, path)
            more = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if batch and size + more > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(path)
            size += more
        yield batch

    @property
    def paths(self) -> list[LeafPath]:
        """Where the leaves of the network lie, without what lies beside kernels."""
        beside = {path for paths in self._beside.values() for path in paths}
        return [path for path in flatten_dict(self.tree) if path not in beside]

    def leaves(self, key_map: KeyMap) -> Iterator[tuple[str, keys.Leaf, np.ndarray]]:
        """Names of tensors, where they lie, and the whole leaves; few of these are in memory at a time."""
        names = keys.by_leaf(key_map)
        for batch in self.batches(names):
            tree = self.read(set(batch))
            for name in (name for path in batch for name in names[path]):
                yield name, key_map[name], keys.get(tree, key_map[name].path)

    @property
    def layers(self) -> int:
        return int(self.backbone["blocks"]["modulation"].shape[0])

    def config_json(self, num_heads: int | None) -> dict[str, Any]:
        """config.json of diffusers' WanTransformer3DModel.

        Raises:
          InputError: nothing tells the number of heads.
        """
        tree = self.backbone
        patches, dim = tree["patch_embedding"]["kernel"].shape
        heads = (
            num_heads
            or self._heads()
            or (dim // sizes.HEAD_DIM if dim % sizes.HEAD_DIM == 0 else 0)
        )
        if not heads:
            raise InputError(f"{self.path}: width {dim} tells no number of heads; pass --num_heads")
        return {
            "_class_name": "WanTransformer3DModel",
            **({sizes.CAUSAL: True} if self.path.name.endswith("_generator") else {}),
            **sizes.wan_settings(
                patch=_PATCH,
                num_heads=heads,
                dim=dim,
                in_dim=patches // _PATCH**2,
                out_dim=tree["head"]["kernel"].shape[1] // _PATCH**2,
                text_dim=tree["text_embedding_0"]["kernel"].shape[0],
                freq_dim=tree["time_embedding_0"]["kernel"].shape[0],
                ffn_dim=tree["blocks"]["ffn"]["0"]["kernel"].shape[-1],
                num_layers=self.layers,
            ),
        }

    def _heads(self) -> int | None:
        """The number of heads that a conversion wrote down."""
        step = self.path.parent
        if not (step.parent / records.MODEL).is_file():
            return None
        net = records.read(step.parent, "nets").get(self.path.name, {})
        heads: int | None = net.get("config", {}).get("num_heads")
        return heads


def _plain(dtype: np.dtype) -> np.dtype:
    """The dtype of a plain kernel, where a kernel lies as one dtype."""
    return np.dtype(np.float32) if np.issubdtype(dtype, np.integer) else dtype


def plain_dtype(stored: Stored, leaf: keys.Leaf) -> np.dtype:
    """The dtype of a tensor that is written as it is stored."""
    return _plain(np.dtype(keys.get(stored.tree, leaf.path).dtype))


def _metadata(piece: Piece) -> dict[LeafPath, Any]:
    """Shapes and dtypes of what an item holds, by paths in the network; compares its checksums."""
    saved.verify(piece.path)
    with (
        items.readable(piece.path),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        metadata = checkpointer.metadata(piece.path).item_metadata
        flat = flatten_dict(dict(getattr(metadata, "tree", metadata)))
    return {(*piece.under, *path): leaf for path, leaf in flat.items()}


def _read(
    piece: Piece, held: Collection[LeafPath], paths: Collection[LeafPath]
) -> dict[LeafPath, Any]:
    """Some of the arrays of an item that holds leaves at the paths `held`."""
    if not paths:
        return {}
    depth = len(piece.under)
    wanted = unflatten_dict({p[depth:]: 0 if p in paths else ocp.PLACEHOLDER for p in held})
    types = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=types)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        read = flatten_dict(checkpointer.restore(piece.path, args))
    return {path: read[path[depth:]] for path in paths}


def torch_shape(key: str, leaf: keys.Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The PyTorch shape of a tensor, from the shape of our whole leaf."""
    shape = shape if leaf.layer is None else shape[1:]
    if "patch_embedding" in leaf.path and leaf.layout == "linear":
        return (shape[1], shape[0] // _PATCH**2, 1, _PATCH, _PATCH)
    if leaf.layout == "linear":
        return shape[::-1]
    return (1, *shape) if leaf.path[-1] in ("modulation", "head_modulation") else shape


def export(
    checkpoint: Path,
    out: Path,
    layout: str = "original",
    net: str = "generator",
    ema: bool = False,
    dtype: str | None = None,
    num_heads: int | None = None,
    report: Callable[[str], None] = print,
    product: Callable[[], Product] = lambda: PLAIN,
) -> None:
    """Writes one network for PyTorch, with plain kernels.

    Args:
      checkpoint: folder of Orbax checkpoints: a stage's, or a converted one.
      out: "original": a `.pt` file, {"generator" or "generator_ema" or "critic": state dict}.
        "diffusers": a `.safetensors` file, or a folder, which also gets config.json.
      layout: of `LAYOUTS`.
      net: network in the checkpoint.
      ema: its moving average.
      dtype: "float32" or "bfloat16"; None: as stored.
      num_heads: for config.json, where the head size is not 128.
      report: called with a line at the end.
      product: see `Stored`.

    Raises:
      InputError: no such network, or a target that exists or does not fit the layout.
    """
    if layout not in LAYOUTS or dtype not in (None, *DTYPES):
        known = f"a layout among {LAYOUTS} and a dtype among {tuple(DTYPES)}"
        raise InputError(f"expected {known}, found {layout!r} and {dtype!r}")
    suffixes = {"original": (".pt", ".pth"), "diffusers": (".safetensors", "")}[layout]
    if out.suffix not in suffixes:
        names = " or ".join(suffix or "a folder without a suffix" for suffix in suffixes)
        raise InputError(f"{out}: layout {layout!r} is written as {names}; choose another --out")
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out, or delete it")
    stored = Stored(checkpoint, net, ema, product)
    needed = room.size(stored.tree, DTYPES[dtype] if dtype else None)
    room.check_disk(f"export of {stored.path}", needed, out)
    if layout == "original":
        room.check_memory(f"export of {stored.path}", needed, "choose --layout=diffusers")
    with staged(out) as temporary:
        if layout == "original":
            _original(stored, temporary, net, ema, dtype)
        elif out.suffix:
            _write(stored, temporary, dtype)
        else:
            write_folder(stored, temporary, dtype, num_heads)
    report(f"{stored.path} -> {out}")


def _tensors(
    stored: Stored, key_map: KeyMap, dtype: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every PyTorch tensor of a transformer."""
    for name, leaf, array in stored.leaves(key_map):
        found = keys.tensor(leaf, array, torch_shape(name, leaf, array.shape))
        yield name, found.astype(DTYPES[dtype]) if dtype else found


def _original(stored: Stored, file: Path, net: str, ema: bool, dtype: str | None) -> None:
    import_torch()
    if stored.critic:
        taps = stored.tree["registers"].shape[0]
        key_map = wan_keys.critic(stored.layers, taps)
    else:
        key_map = wan_keys.transformer(stored.layers, "model.")
    name = "critic" if stored.critic or net in ("critic", "fake_score") else "generator"
    tensors = dict(_tensors(stored, key_map, dtype))
    state = {key: tensors[key] for key in key_map}
    write_torch(file, {f"{name}_ema" if ema else name: state})


def write_folder(
    stored: Stored, folder: Path, dtype: str | None = None, num_heads: int | None = None
) -> None:
    """Weights of a transformer in diffusers' names, and its config.json, into a folder that it makes."""
    config = stored.config_json(num_heads)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write(stored, folder / WEIGHTS, dtype)


def _write(stored: Stored, file: Path, dtype: str | None) -> None:
    if stored.critic:
        raise InputError(
            f"{stored.path}: a critic has an adversarial head, for which diffusers has no layout; "
            "export it with --layout original"
        )
    key_map = wan_keys.diffusers(stored.layers)
    shapes, dtypes = {}, {}
    for name, leaf in key_map.items():
        shapes[name] = torch_shape(name, leaf, tuple(keys.get(stored.tree, leaf.path).shape))
        dtypes[name] = DTYPES[dtype] if dtype else plain_dtype(stored, leaf)
    write_safetensors(file, shapes, dtypes, _tensors(stored, key_map, dtype))
