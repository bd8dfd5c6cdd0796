"""Key maps of the transformer and the critic, in the layout of the original checkpoints."""

from __future__ import annotations

from oneforcing_jax.convert.keys import KeyMap, Leaf

_LINEAR = {"weight": ("kernel", "linear"), "bias": ("bias", "same")}
_NORM = {"weight": ("scale", "same"), "bias": ("bias", "same")}
_RMS = {"weight": ("scale", "same")}

_ATTENTION = dict.fromkeys("qkvo", _LINEAR) | {"norm_q": _RMS, "norm_k": _RMS}
_BLOCK = {
    **{f"{attn}.{name}": entry for attn in ("self_attn", "cross_attn") for name, entry in _ATTENTION.items()},
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


def _modules(table: dict, torch_prefix: str, path: tuple[str, ...], layer: int | None = None) -> dict[str, Leaf]:
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


def critic(num_layers: int, num_taps: int) -> KeyMap:
    """Keys of the One-Forcing critic: the transformer under `model.` and the adversarial head."""
    keys = dict(transformer(num_layers, "model.", ("model",)))
    keys["_register_tokens.register_tokens"] = Leaf(("registers",))
    keys["_register_tokens.rms_norm.weight"] = Leaf(("register_norm", "scale"))
    for i in range(num_taps):
        keys |= _modules(_READER, f"_gan_ca_blocks.{i}.", ("readers",), i)
    keys |= _modules({"0": _NORM, "1": _LINEAR, "3": _LINEAR}, "_cls_pred_branch.", ("classifier",))
    return keys
