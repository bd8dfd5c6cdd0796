"""Key maps of the transformer (the original's names, and diffusers'), and of the critic."""

from __future__ import annotations

from typing import Any

from oneforcing_jax.convert.keys import KeyMap, Leaf

_LINEAR = {"weight": ("kernel", "linear"), "bias": ("bias", "same")}
_NORM = {"weight": ("scale", "same"), "bias": ("bias", "same")}
_RMS = {"weight": ("scale", "same")}

_ATTENTION = dict.fromkeys("qkvo", _LINEAR) | {"norm_q": _RMS, "norm_k": _RMS}
_BLOCK = {
    **{
        f"{attn}.{name}": entry
        for attn in ("self_attn", "cross_attn")
        for name, entry in _ATTENTION.items()
    },
    "norm3": _NORM,
    "ffn.0": _LINEAR,
    "ffn.2": _LINEAR,
}
_READER = {key: entry for key, entry in _BLOCK.items() if not key.startswith("self_attn")}
_STEM = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "text_embedding_0",
    "text_embedding.2": "text_embedding_2",
    "time_embedding.0": "time_embedding_0",
    "time_embedding.2": "time_embedding_2",
    "time_projection.1": "time_projection",
    "head.head": "head",
}

# The modules of diffusers' WanTransformer3DModel, by their names in the original.
_DIFFUSERS_STEM = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_DIFFUSERS_ATTENTION = {
    **{name: f"to_{name}" for name in "qkv"},
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_DIFFUSERS_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _DIFFUSERS_ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _DIFFUSERS_ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def _modules(
    table: dict[str, Any], torch_prefix: str, path: tuple[str, ...], layer: int | None = None
) -> dict[str, Leaf]:
    return {
        f"{torch_prefix}{module}.{kind}": Leaf((*path, *module.split("."), leaf), layer, layout)
        for module, kinds in table.items()
        for kind, (leaf, layout) in kinds.items()
    }


def transformer(num_layers: int, prefix: str = "", path: tuple[str, ...] = ()) -> KeyMap:
    """Keys of a Wan transformer (825 of them at 1.3B).

    Args:
      num_layers: depth.
      prefix: before every key; "model." in checkpoints of distilled generators.
      path: where the transformer lies in our tree.
    """
    keys: dict[str, Leaf] = {}
    for torch_name, name in _STEM.items():
        for kind, (leaf, layout) in _LINEAR.items():
            keys[f"{prefix}{torch_name}.{kind}"] = Leaf((*path, name, leaf), None, layout)
    keys[f"{prefix}head.modulation"] = Leaf((*path, "head_modulation"), None, "same")
    for i in range(num_layers):
        keys[f"{prefix}blocks.{i}.modulation"] = Leaf((*path, "blocks", "modulation"), i, "same")
        keys |= _modules(_BLOCK, f"{prefix}blocks.{i}.", (*path, "blocks"), i)
    return keys


def diffusers(num_layers: int) -> KeyMap:
    """Keys of diffusers' WanTransformer3DModel, whose tensors have the original's shapes."""
    return {_diffusers_key(key): leaf for key, leaf in transformer(num_layers).items()}


def _diffusers_key(key: str) -> str:
    """The diffusers name of a tensor of the original transformer."""
    module, _, kind = key.rpartition(".")
    if kind == "modulation":
        return "scale_shift_table" if module == "head" else f"{module}.scale_shift_table"
    if not module.startswith("blocks."):
        return f"{_DIFFUSERS_STEM[module]}.{kind}"
    blocks, number, inner = module.split(".", 2)
    return f"{blocks}.{number}.{_DIFFUSERS_BLOCK[inner]}.{kind}"


def critic(num_layers: int, num_taps: int) -> KeyMap:
    """Keys of the One-Forcing critic: the transformer under `model.` and the adversarial head."""
    keys = dict(transformer(num_layers, "model.", ("model",)))
    keys["_register_tokens.register_tokens"] = Leaf(("registers",))
    keys["_register_tokens.rms_norm.weight"] = Leaf(("register_norm", "scale"))
    for i in range(num_taps):
        keys |= _modules(_READER, f"_gan_ca_blocks.{i}.", ("readers",), i)
    keys |= _modules({"0": _NORM, "1": _LINEAR, "3": _LINEAR}, "_cls_pred_branch.", ("classifier",))
    return keys
