"""Key maps of the UMT5 encoder: of Wan2.1's file, and of `UMT5EncoderModel` of transformers."""

from __future__ import annotations

from oneforcing_jax.convert.keys import KeyMap, Leaf
from oneforcing_jax.models.umt5 import UMT5Config

# (our path in the stacked layer, layout, name in the original, name in transformers)
_LAYER = (
    (("norm_1", "scale"), "same", "norm1", "layer.0.layer_norm"),
    (("attention", "q"), "linear", "attn.q", "layer.0.SelfAttention.q"),
    (("attention", "k"), "linear", "attn.k", "layer.0.SelfAttention.k"),
    (("attention", "v"), "linear", "attn.v", "layer.0.SelfAttention.v"),
    (("attention", "o"), "linear", "attn.o", "layer.0.SelfAttention.o"),
    (
        ("attention", "bias"),
        "same",
        "pos_embedding.embedding",
        "layer.0.SelfAttention.relative_attention_bias",
    ),
    (("norm_2", "scale"), "same", "norm2", "layer.1.layer_norm"),
    (("mlp", "gate"), "linear", "ffn.gate.0", "layer.1.DenseReluDense.wi_0"),
    (("mlp", "up"), "linear", "ffn.fc1", "layer.1.DenseReluDense.wi_1"),
    (("mlp", "down"), "linear", "ffn.fc2", "layer.1.DenseReluDense.wo"),
)


def _layers(config: UMT5Config, prefix: str, library: int) -> dict[str, Leaf]:
    table = {}
    for i in range(config.layers):
        for path, layout, *names in _LAYER:
            key = f"{prefix}.{i}.{names[library]}.weight"
            table[key] = Leaf(("layers", *path), layer=i, layout=layout)
    return table


def original(config: UMT5Config) -> KeyMap:
    """Keys of `models_t5_umt5-xxl-enc-bf16.pth`."""
    return {
        "token_embedding.weight": Leaf(("embedding",)),
        **_layers(config, "blocks", 0),
        "norm.weight": Leaf(("norm_out", "scale")),
    }


def transformers(config: UMT5Config, embedding: str = "shared.weight") -> KeyMap:
    """Keys of `UMT5EncoderModel`.

    Args:
      config: of the encoder.
      embedding: the key that holds the token embedding. A file may hold "shared.weight" or
        "encoder.embed_tokens.weight", or both. These are tied, so drop one before loading.
    """
    return {
        embedding: Leaf(("embedding",)),
        **_layers(config, "encoder.block", 1),
        "encoder.final_layer_norm.weight": Leaf(("norm_out", "scale")),
    }
