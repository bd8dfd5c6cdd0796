"""Key map of the tiny decoders in `taew2_1` and `taew2_2` (.pth, .safetensors), whose layers have numbers.

These files hold an encoder, too, which is not used: what a student has learned from are latents of the VAE.
"""

from __future__ import annotations

from oneforcing_jax.convert.keys import KeyMap, Leaf
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig

# Layers without weights have numbers, too: bounds at the beginning, then activations and enlargements.
_FIRST = 1
_BLOCK = (0, 2, 4)
# A tensor that these files have, and Wan's others have not.
TELLING = f"decoder.{_FIRST}.weight"
ENCODER = "encoder."


def _conv(name: str, path: tuple[str, ...]) -> dict[str, Leaf]:
    return {
        f"{name}.weight": Leaf((*path, "kernel"), layout="conv"),
        f"{name}.bias": Leaf((*path, "bias")),
    }


def published(config: TinyDecoderConfig) -> KeyMap:
    """Keys of the decoder's tensors."""
    table = _conv(f"decoder.{_FIRST}", ("conv_in",))
    number = _FIRST + 2  # an activation lies between
    for i in range(len(config.time_upsample)):
        for j in range(i * config.blocks, (i + 1) * config.blocks):
            for k, inner in enumerate(_BLOCK):
                table |= _conv(f"decoder.{number}.conv.{inner}", (f"blocks_{j}", f"conv_{k}"))
            number += 1
        grow = f"decoder.{number + 1}.conv.weight"  # after the enlargement
        table[grow] = Leaf((f"ups_{i}", "grow_kernel"), layout="linear")
        table[f"decoder.{number + 2}.weight"] = Leaf((f"ups_{i}", "kernel"), layout="conv")
        number += 3
    return table | _conv(f"decoder.{number + 1}", ("conv_out",))
