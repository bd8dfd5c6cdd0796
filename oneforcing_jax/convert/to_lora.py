"""Low-rank adapters of our checkpoints, and of other files, written in the conventions of others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.lora import METADATA, SETTINGS, WEIGHTS, Lora, Pair, Place
from oneforcing_jax.convert.torch_io import write_safetensors
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.products.low_rank import DOWN, UP, LowRank
from oneforcing_jax.models.trees import Path as LeafPath
from oneforcing_jax.system.files import staged

# ComfyUI's names are read by Diffusers and LightX2V, too; kohya's by musubi-tuner and ComfyUI.
_PREFIXES = {
    "comfyui": "diffusion_model.",
    "diffusers": "transformer.",
    "kohya": "lora_unet_",
    "peft": "base_model.model.",
}
LAYOUTS = tuple(_PREFIXES)


def of_leaves(leaves: Mapping[LeafPath, np.ndarray], adapters: LowRank, source: str) -> Lora:
    """The adapters that a network was trained with.

    Args:
      leaves: `down` and `up` by their paths, stacked where the network's layers are.
      adapters: what they were trained as.
      source: named in errors.
    """
    pairs: dict[Place, Pair] = {}
    for path, down in leaves.items():
        if path[-1] != DOWN:
            continue
        up, kernel = leaves[*path[:-1], UP], (*path[:-1], "kernel")
        alpha = adapters.scale * adapters.rank
        if down.ndim == 2:
            pairs[kernel, None] = Pair(down, up, alpha)
        else:
            pairs |= {(kernel, i): Pair(down[i], up[i], alpha) for i in range(len(down))}
    return Lora(pairs, {}, source)


def write(lora: Lora, layout: str, out: Path) -> None:
    """Writes adapters.

    Args:
      lora: what to write.
      layout: of `LAYOUTS`.
      out: a .safetensors file; for "peft" a folder.

    Raises:
      InputError: a file of another name, one that is there, or differences of whole tensors, which only
        ComfyUI has names for.
    """
    folder = layout == "peft"
    if layout not in LAYOUTS or out.suffix != ("" if folder else ".safetensors"):
        kind = "a folder without a suffix" if folder else "a .safetensors file"
        raise InputError(f"{out}: expected {kind} for layout {layout!r}; choose another --out")
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out, or delete it")
    if lora.differences and layout != "comfyui":
        raise InputError(
            f"{lora.source}: expected low-rank adapters alone for layout {layout!r}, found differences of "
            f"{len(lora.differences)} whole tensors; choose --layout=comfyui"
        )
    tensors, settings = dict(sorted(_tensors(lora, layout))), _settings(lora)
    with staged(out) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        said = {f"transformer.{name}": value for name, value in settings.items()}
        write_safetensors(
            temporary / WEIGHTS if folder else temporary,
            {name: x.shape for name, x in tensors.items()},
            {name: x.dtype for name, x in tensors.items()},
            iter(tensors.items()),
            {METADATA: json.dumps(said)} if layout == "diffusers" else None,
        )


def _names(lora: Lora, diffusers: bool) -> dict[Place, str]:
    """Names of the tensors that it changes, of Diffusers or of the original."""
    numbers = (layer for _, layer in (*lora.pairs, *lora.differences) if layer is not None)
    layers = max(numbers, default=-1) + 1
    key_map = wan_keys.diffusers(layers) if diffusers else wan_keys.transformer(layers)
    return {(leaf.path, leaf.layer): name for name, leaf in key_map.items()}


def _tensors(lora: Lora, layout: str) -> Iterator[tuple[str, np.ndarray]]:
    names = _names(lora, layout in ("diffusers", "peft"))
    prefix, underscored = _PREFIXES[layout], layout == "kohya"
    down, up = ("lora_down", "lora_up") if underscored else ("lora_A", "lora_B")
    for place, pair in lora.pairs.items():
        module = names[place].removesuffix(".weight")
        module = prefix + (module.replace(".", "_") if underscored else module)
        yield f"{module}.{down}.weight", np.ascontiguousarray(pair.down.T)
        yield f"{module}.{up}.weight", np.ascontiguousarray(pair.up.T)
        # Without one readers take the rank.
        if underscored or (layout == "comfyui" and pair.alpha != pair.rank):
            yield f"{module}.alpha", np.asarray(pair.alpha, np.float32)
    for place, difference in lora.differences.items():
        module, _, kind = names[place].rpartition(".")
        ending = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[kind]
        # Of matrices alone the axes differ.
        tensor = difference.T if kind == "weight" else difference
        yield f"diffusion_model.{module}.{ending}", np.ascontiguousarray(tensor)


def _settings(lora: Lora) -> dict[str, Any]:
    """What PEFT says of adapters: the commonest rank and alpha, and the modules that have others."""
    names = _names(lora, diffusers=True)
    named = {names[place].removesuffix(".weight"): pair for place, pair in lora.pairs.items()}
    pairs = dict(sorted(named.items()))
    ranks = Counter((pair.rank, pair.alpha) for pair in pairs.values())
    rank, alpha = max(ranks, key=lambda both: ranks[both], default=(1, 1.0))
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(pairs),
        "rank_pattern": {name: pair.rank for name, pair in pairs.items() if pair.rank != rank},
        "alpha_pattern": {name: pair.alpha for name, pair in pairs.items() if pair.alpha != alpha},
        "bias": "none", "use_rslora": False, "use_dora": False, "lora_bias": False,
    }  # fmt: skip
