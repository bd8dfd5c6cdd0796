"""Key maps of the VAE: the original Wan2.1 file, and `AutoencoderKLWan` of diffusers.

Both hold the same tensors in the same shapes under two sets of names. Pointwise convolutions are
"linear" here: matrices on the channels.
"""

from __future__ import annotations

from collections.abc import Iterator

from oneforcing_jax.convert.keys import KeyMap, Leaf
from oneforcing_jax.models.vae_layers import VAEConfig

# A layer: (our path, kind, name in the original, name in diffusers).
_Layer = tuple[tuple[str, ...], str, str, str]
_RESIDUAL = (
    ("norm_1", "norm", "residual.0", "norm1"),
    ("conv_1", "conv", "residual.2", "conv1"),
    ("norm_2", "norm", "residual.3", "norm2"),
    ("conv_2", "conv", "residual.6", "conv2"),
)
_ATTENTION = (
    ("norm", "norm", "norm", "norm"),
    ("qkv", "linear", "to_qkv", "to_qkv"),
    ("out", "linear", "proj", "proj"),
)


def _block(path: tuple[str, ...], original: str, diffusers: str, project: bool) -> Iterator[_Layer]:
    for ours, kind, first, second in _RESIDUAL:
        yield (*path, ours), kind, f"{original}.{first}", f"{diffusers}.{second}"
    if project:
        original, diffusers = f"{original}.shortcut", f"{diffusers}.conv_shortcut"
        yield (*path, "shortcut"), "linear", original, diffusers


def _resampler(
    path: tuple[str, ...], original: str, diffusers: str, time: bool
) -> Iterator[_Layer]:
    yield (*path, "conv"), "conv", f"{original}.resample.1", f"{diffusers}.resample.1"
    if time:
        yield (*path, "time_conv"), "conv", f"{original}.time_conv", f"{diffusers}.time_conv"


def _ends(side: str) -> Iterator[_Layer]:
    """What encoder and decoder share: first and last convolution, and the middle."""
    yield (side, "conv_in"), "conv", f"{side}.conv1", f"{side}.conv_in"
    yield (side, "norm_out"), "norm", f"{side}.head.0", f"{side}.norm_out"
    yield (side, "conv_out"), "conv", f"{side}.head.2", f"{side}.conv_out"
    original, diffusers = f"{side}.middle", f"{side}.mid_block"
    for i in (0, 1):
        yield from _block(
            (side, f"mid_{i}"), f"{original}.{2 * i}", f"{diffusers}.resnets.{i}", project=False
        )
    for ours, kind, first, second in _ATTENTION:
        path = (side, "mid_attention", ours)
        yield path, kind, f"{original}.1.{first}", f"{diffusers}.attentions.0.{second}"


def _encoder(config: VAEConfig) -> Iterator[_Layer]:
    yield from _ends("encoder")
    flat, width = 0, config.width
    for i, multiplier in enumerate(config.multipliers):
        for j in range(config.blocks):
            project = width != config.width * multiplier
            names = f"encoder.downsamples.{flat}", f"encoder.down_blocks.{flat}"
            yield from _block(("encoder", f"stage_{i}_block_{j}"), *names, project=project)
            flat, width = flat + 1, config.width * multiplier
        if i < len(config.time_downsample):
            names = f"encoder.downsamples.{flat}", f"encoder.down_blocks.{flat}"
            path = ("encoder", f"stage_{i}_down")
            yield from _resampler(path, *names, time=config.time_downsample[i])
            flat += 1


def _decoder(config: VAEConfig) -> Iterator[_Layer]:
    yield from _ends("decoder")
    flat, width = 0, config.width * config.multipliers[-1]
    for i, multiplier in enumerate(reversed(config.multipliers)):
        for j in range(config.blocks + 1):
            project = width != config.width * multiplier
            names = f"decoder.upsamples.{flat}", f"decoder.up_blocks.{i}.resnets.{j}"
            yield from _block(("decoder", f"stage_{i}_block_{j}"), *names, project=project)
            flat, width = flat + 1, config.width * multiplier
        if i < len(config.time_downsample):
            names = f"decoder.upsamples.{flat}", f"decoder.up_blocks.{i}.upsamplers.0"
            path = ("decoder", f"stage_{i}_up")
            yield from _resampler(path, *names, time=config.time_downsample[-1 - i])
            flat, width = flat + 1, width // 2


def _layers(config: VAEConfig) -> Iterator[_Layer]:
    yield ("quant",), "linear", "conv1", "quant_conv"
    yield ("post_quant",), "linear", "conv2", "post_quant_conv"
    yield from _encoder(config)
    yield from _decoder(config)


def _key_map(config: VAEConfig, library: int) -> KeyMap:
    table = {}
    for path, kind, *names in _layers(config):
        if kind == "norm":
            table[f"{names[library]}.gamma"] = Leaf((*path, "scale"))
        else:
            table[f"{names[library]}.weight"] = Leaf((*path, "kernel"), layout=kind)
            table[f"{names[library]}.bias"] = Leaf((*path, "bias"))
    return table


def original(config: VAEConfig) -> KeyMap:
    """Keys of `Wan2.1_VAE.pth`."""
    return _key_map(config, 0)


def diffusers(config: VAEConfig) -> KeyMap:
    """Keys of `AutoencoderKLWan`."""
    return _key_map(config, 1)
