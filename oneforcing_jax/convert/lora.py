"""Files of low-rank adapters, in the conventions of Diffusers, PEFT, kohya and ComfyUI, read and written.

A file changes a matrix by kernel += alpha / rank * down @ up. Some also hold differences of whole tensors,
such as norms and biases, which are added to these.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import Leaf, Tensors
from oneforcing_jax.convert.torch_io import SafeTensors, TorchTensors
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.models.trees import Path as LeafPath
from oneforcing_jax.setup.ranges import not_finite
from oneforcing_jax.system import bounded
from oneforcing_jax.system.files import read_record

# A PEFT folder's files, and where the header of a file of Diffusers says alpha.
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "unet.")
_UNDERSCORED = re.compile(r"lora_unet_{1,2}")
_TENSOR = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))"
    r"(?:\.default)?(?:\.(?P<kind>weight|bias))?"
)
# Endings of differences of whole tensors, and what they change; of the last the name is that of a layer.
_DIFFERENCES = {".diff": "weight", ".diff_b": "bias", ".diff_m": "modulation"}
_MOST_LAYERS = 1000

# A leaf of our tree, and the layer of it where it is stacked.
Place = tuple[LeafPath, int | None]


class Pair(NamedTuple):
    """What is added to one matrix of one layer: alpha / rank * down [d, r] @ up [r, e]."""

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[1])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def change(self, weight: float = 1.0) -> np.ndarray:
        """[d, e] float32."""
        down, up = (np.asarray(x, np.float32) for x in (self.down, self.up))
        return np.float32(weight * self.scale) * (down @ up)


@dataclasses.dataclass(frozen=True)
class Lora:
    """What a file changes.

    Attributes:
      pairs: by the place of a kernel.
      differences: of whole tensors, in our order of axes, by their places.
      source: named in errors.
    """

    pairs: Mapping[Place, Pair]
    differences: Mapping[Place, np.ndarray]
    source: str

    def check(self, shapes: Any) -> None:
        """Compares it with a network.

        Args:
          shapes: tree of its parameters' shapes, stacked.

        Raises:
          InputError: it is of another network.
        """
        found: dict[Place, tuple[int, ...]] = {
            place: (pair.down.shape[0], pair.up.shape[1]) for place, pair in self.pairs.items()
        }
        found |= {place: x.shape for place, x in self.differences.items()}
        for (path, layer), shape in found.items():
            try:
                whole = tuple(keys.get(shapes, path).shape)
            except KeyError:
                whole = ()
            wanted = whole if layer is None else whole[1:]
            if not wanted or math.prod(wanted) != math.prod(shape) or (layer or 0) >= whole[0]:
                where = ".".join(path) + (f", layer {layer}" if layer is not None else "")
                raise InputError(
                    f"{self.source}: expected changes of a network of this size, found {list(shape)} of "
                    f"{where}, where it has {list(whole)}; give adapters that were trained with this model"
                )


class _Modules:
    """The modules of a transformer, by their names in any convention.

    Args:
      path: of the file, for errors.
      tensors: names of its tensors, which say how many layers there are.
    """

    def __init__(self, path: Path, tensors: Iterable[str]) -> None:
        found = (n for name in tensors for n in re.findall(r"blocks[._](\d{1,6})[._]", name))
        layers = max(map(int, found), default=-1) + 1
        if layers > _MOST_LAYERS:
            raise InputError(
                f"{path}: expected layers below {_MOST_LAYERS}, found {layers - 1}; get another file"
            )
        self._path, self._leaves = path, dict[str, dict[str, Leaf]]()
        for key_map in (wan_keys.diffusers(layers), wan_keys.transformer(layers)):
            for key, leaf in key_map.items():
                name, _, kind = key.rpartition(".")
                self._leaves.setdefault(name, {})[kind] = leaf
        self._dotted = {name.replace(".", "_"): name for name in self._leaves}

    def name(self, name: str) -> str:
        """Of a module in Diffusers' or the original's way, from any.

        Raises:
          InputError: there is none of that name.
        """
        short = name
        if _UNDERSCORED.match(name):
            short = self._dotted.get(_UNDERSCORED.sub("", name, count=1), name)
        while prefix := next((p for p in _PREFIXES if short.startswith(p)), ""):
            short = short.removeprefix(prefix)
        if short not in self._leaves:
            raise InputError(
                f"{self._path}: expected adapters of a text-to-video transformer of Wan, found one of "
                f"{name!r}; give a file for this model"
            )
        return short

    def leaf(self, name: str, kind: str) -> Leaf:
        """Its "weight", "bias" or "modulation"; raises as `name`, and where the module has none."""
        found = self._leaves[self.name(name)].get(kind)
        if found is None:
            raise InputError(
                f"{self._path}: expected adapters of what the model has, found one of the {kind} of "
                f"{name!r}; get another file"
            )
        return found


def read(path: Path) -> Lora:
    """The adapters of a file or of a PEFT folder.

    Raises:
      MissingInput, InputError: no such file, a damaged one, or one of another model or kind.
    """
    tensors, settings = _opened(path)
    modules, (adapted, different) = _Modules(path, tensors), _sorted(path, tensors)
    differences: dict[Place, np.ndarray] = {}

    def add(name: str, kind: str, tensor: np.ndarray) -> None:
        leaf = modules.leaf(name, kind)
        if leaf.layout == "linear" and tensor.ndim < 2:
            raise InputError(
                f"{path}: expected a matrix, found {tensor.shape} of {name!r}; get it again"
            )
        mine, place = keys.from_torch(tensor, leaf.layout), (leaf.path, leaf.layer)
        differences[place] = differences[place] + mine if place in differences else mine

    for name, (module, kind) in different.items():
        add(module, kind, _finite(path, tensors, name))
    pairs = {}
    for module, held in adapted.items():
        leaf = modules.leaf(module, "weight")
        if leaf.layout != "linear" or not {"down", "up"} <= held.keys():
            raise InputError(
                f"{path}: expected both adapters of a matrix, found {sorted(held)} of "
                f"{module!r}; get it again"
            )
        pair = _pair(path, tensors, held, modules.name(module), settings)
        pairs[leaf.path, leaf.layer] = pair
        if "bias" in held:
            add(module, "bias", np.float32(pair.scale) * _finite(path, tensors, held["bias"]))
    return Lora(pairs, differences, str(path))


def _sorted(
    path: Path, tensors: Iterable[str]
) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, str]]]:
    """Names of the tensors "down", "up", "bias" and "alpha" of each module; and of differences, each with the
    module and what they change of it."""
    adapted: dict[str, dict[str, str]] = {}
    different: dict[str, tuple[str, str]] = {}
    for name in tensors:
        ending = next((end for end in _DIFFERENCES if name.endswith(end)), "")
        if matched := _TENSOR.fullmatch(name):
            kind = "down" if matched["down"] else "bias" if matched["kind"] == "bias" else "up"
            adapted.setdefault(matched["module"], {})[kind] = name
        elif name.endswith(".alpha"):
            adapted.setdefault(name.removesuffix(".alpha"), {})["alpha"] = name
        elif ending:
            different[name] = name.removesuffix(ending), _DIFFERENCES[ending]
        else:
            raise InputError(
                f"{path}: expected adapters (lora_A and lora_B, or lora_down and lora_up; alpha, diff), "
                f"found {name!r}; give a LoRA of this kind"
            )
    return adapted, different


def check_there(path: Path) -> None:
    """Refuses a place without such a file.

    Raises:
      MissingInput: names it.
    """
    if not path.is_file():
        raise MissingInput(
            f"lora: expected a .safetensors file, or a folder with {WEIGHTS}, found none at {path}; check it"
        )


def _opened(path: Path) -> tuple[Tensors, Mapping[str, Any]]:
    """The tensors of a file or folder, and what it says of alpha, as PEFT does."""
    if path.is_dir() and (path / WEIGHTS).is_file():
        settings = read_record(path / SETTINGS) if (path / SETTINGS).is_file() else {}
        return SafeTensors([path / WEIGHTS]), settings
    check_there(path)
    if path.suffix != ".safetensors":
        return TorchTensors(path), {}
    said = SafeTensors.metadata(path).get(METADATA)
    try:
        found = bounded.parsed(said) if said else {}
        settings = {str(k).removeprefix("transformer."): v for k, v in found.items()}
    except (ValueError, AttributeError):
        raise InputError(
            f"{path}: expected JSON as {METADATA}, found {said!r:.60}; get it again"
        ) from None
    return SafeTensors([path]), settings


def _finite(path: Path, tensors: Tensors, name: str) -> np.ndarray:
    found = np.array(tensors[name])
    if wrong := not_finite(found):
        raise InputError(
            f"{path}: expected finite weights, found {wrong} values of {name} that are not; get it again"
        )
    return found


def _pair(
    path: Path, tensors: Tensors, held: Mapping[str, str], name: str, settings: Mapping[str, Any]
) -> Pair:
    found = [_finite(path, tensors, held[kind]) for kind in ("down", "up")]
    if (
        min(x.ndim for x in found) < 2
        or found[0].shape[0] != found[1].shape[1]
        or not found[0].size
    ):
        raise InputError(
            f"{path}: expected adapters of one rank, found {' and '.join(str(x.shape) for x in found)} of "
            f"{name}; get it again"
        )
    down, up = (keys.from_torch(x, "linear") for x in found)
    rank = down.shape[1]
    if "alpha" in held:
        said = _finite(path, tensors, held["alpha"])
        if said.size != 1:
            raise InputError(
                f"{path}: expected one number as alpha, found {said.shape} of {name}; get it again"
            )
        return Pair(down, up, said.item() or float(rank))
    return Pair(down, up, _alpha(path, settings, name, rank))


def _alpha(path: Path, settings: Mapping[str, Any], name: str, rank: int) -> float:
    """What PEFT's settings say of a module; without any, its rank."""
    alpha: Any = settings.get("lora_alpha")
    patterns: Any = settings.get("alpha_pattern") or {}
    try:
        # As names, and not as the patterns that PEFT reads: these may take for ever in anybody's file.
        for module, its in patterns.items():
            alpha = its if f".{name}".endswith(f".{module}") else alpha
        if settings.get("use_dora"):
            raise ValueError("DoRA")
        value = float(rank if alpha is None else alpha)
        if not math.isfinite(value):
            raise ValueError(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: expected numbers as lora_alpha and alpha_pattern, found {error}; get another file"
        ) from None
    return value * math.sqrt(rank) if settings.get("use_rslora") else value


def merged(path: LeafPath, leaf: np.ndarray, loras: Sequence[tuple[Lora, float]]) -> np.ndarray:
    """A leaf of a network, stacked or not, with what files change of it, each times its weight; its dtype
    stays.

    Args:
      path: of the leaf.
      leaf: its values.
      loras: files and weights.
    """
    changes = [found for lora, weight in loras for found in _changes(lora, path, weight)]
    if not changes:
        return leaf
    found = np.array(leaf, np.float32)
    for layer, change in changes:
        target = found[() if layer is None else layer]
        target += change.reshape(target.shape)
    return found.astype(leaf.dtype)


def _changes(lora: Lora, path: LeafPath, weight: float) -> Iterator[tuple[int | None, np.ndarray]]:
    for (place, layer), pair in lora.pairs.items():
        if place == path:
            yield layer, pair.change(weight)
    for (place, layer), difference in lora.differences.items():
        if place == path:
            yield layer, np.float32(weight) * np.asarray(difference, np.float32)
