"""Key map of the tiny decoder in `taew2_1.pth` and `.safetensors`, whose layers are numbered in order."""

from __future__ import annotations

from oneforcing_jax.convert.keys import KeyMap, Leaf
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig

# The numbers of layers without weights are left out: bounds at the beginning, then activations and
# enlargements. A block numbers its convolutions with the activations between them.
FIRST = 1
_BLOCK = (0, 2, 4)


def _conv(name: str, path: tuple[str, ...]) -> dict[str, Leaf]:
    return {
        f"{name}.weight": Leaf((*path, "kernel"), layout="conv"),
        f"{name}.bias": Leaf((*path, "bias")),
    }


def stages(config: TinyDecoderConfig) -> list[int]:
    """The numbers of the matrices that make frames, of which each stage has one behind its blocks."""
    first, size = FIRST + 2, config.blocks + 3
    return [first + i * size + config.blocks + 1 for i in range(len(config.time_upsample))]


def published(config: TinyDecoderConfig) -> KeyMap:
    """Keys of the decoder's tensors."""
    table = _conv(f"decoder.{FIRST}", ("conv_in",))
    for i, grow in enumerate(stages(config)):
        for j in range(config.blocks):
            block = f"decoder.{grow - 1 - config.blocks + j}.conv"
            for k, number in enumerate(_BLOCK):
                path = (f"blocks_{i * config.blocks + j}", f"conv_{k}")
                table |= _conv(f"{block}.{number}", path)
        table[f"decoder.{grow}.conv.weight"] = Leaf((f"ups_{i}", "grow_kernel"), layout="linear")
        table[f"decoder.{grow + 1}.weight"] = Leaf((f"ups_{i}", "kernel"), layout="conv")
    return table | _conv(f"decoder.{stages(config)[-1] + 3}", ("conv_out",))
