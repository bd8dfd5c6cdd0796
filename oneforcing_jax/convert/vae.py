"""Key maps of the VAEs: the original files of Wan2.1 and Wan2.2, and `AutoencoderKLWan` of diffusers.

Both hold the same tensors in the same shapes under two sets of names. Pointwise convolutions are
"linear" here: matrices on the channels. Wan2.2's files number layers within a stage, Wan2.1's all of a side.
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


def _original(config: VAEConfig, stages: str, i: int, j: int, count: int) -> str:
    """Layer j of the `count` of stage i, below one side's `stages`."""
    return f"{stages}.{i}.{stages}.{j}" if config.shortcuts else f"{stages}.{i * count + j}"


def _encoder(config: VAEConfig) -> Iterator[_Layer]:
    yield from _ends("encoder")
    width, count = config.width, config.blocks + 1
    for i, multiplier in enumerate(config.multipliers):
        made = config.width * multiplier
        for j in range(count):
            resamples = j == config.blocks
            first = f"encoder.{_original(config, 'downsamples', i, j, count)}"
            second = f"encoder.down_blocks.{i * count + j}"
            if config.shortcuts:
                inner = "downsampler" if resamples else f"resnets.{j}"
                second = f"encoder.down_blocks.{i}.{inner}"
            if not resamples:
                path = ("encoder", f"stage_{i}_block_{j}")
                yield from _block(path, first, second, project=width != made)
            elif i < len(config.time_downsample):
                path = ("encoder", f"stage_{i}_down")
                yield from _resampler(path, first, second, time=config.time_downsample[i])
            width = made


def _decoder(config: VAEConfig) -> Iterator[_Layer]:
    yield from _ends("decoder")
    width, count = config.decoder_widths[0], config.blocks + 2
    for i, made in enumerate(config.decoder_widths):
        for j in range(count):
            first = f"decoder.{_original(config, 'upsamples', i, j, count)}"
            second = f"decoder.up_blocks.{i}"
            if j <= config.blocks:
                path = ("decoder", f"stage_{i}_block_{j}")
                second = f"{second}.resnets.{j}"
                yield from _block(path, first, second, project=width != made)
                width = made
            elif i < len(config.time_downsample):
                path = ("decoder", f"stage_{i}_up")
                second = f"{second}.upsampler" + "s.0" * (not config.shortcuts)
                yield from _resampler(path, first, second, time=config.time_downsample[-1 - i])
                width = made if config.shortcuts else made // 2


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
    """Keys of `Wan2.1_VAE.pth` or `Wan2.2_VAE.pth`."""
    return _key_map(config, 0)


def diffusers(config: VAEConfig) -> KeyMap:
    """Keys of `AutoencoderKLWan`."""
    return _key_map(config, 1)
