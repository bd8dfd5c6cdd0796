"""Layers of the Wan video VAEs, each a function of (chunk, what it kept of the past).

A chunk is a tuple of frames [b, y, x, c]: frames are never stacked, so that a shift in time is a choice
of arrays and not a copy, and every convolution is one of images, channels last. A layer that looks back
in time takes what it kept and returns what it keeps next; `None` stands for the start of a video. The
first frame of a video is a chunk of its own: it passes by the temporal resampling.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.vae_convolutions import (
    Array,
    Cache,
    Frames,
    before,
    causal,
    conv,
    enlarged,
    last,
    narrowing,
    placed,
    side_by_side,
)

# Statistics of the latents of Wan2.1, one number a channel.
LATENT_MEAN = (
    (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
    + (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
)  # fmt: skip
LATENT_STD = (
    (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
    + (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Architecture and arithmetic of the VAE; the defaults are Wan2.1's.

    Attributes:
      width: channels of the first encoder stage.
      multipliers: channels of encoder stage i are `width * multipliers[i]`; one spatial halving lies
        between each two stages.
      blocks: residual blocks of an encoder stage (a decoder stage has one more).
      time_downsample: whether the halving after encoder stage i also halves the frame rate.
      mean, std: statistics of the latents by channel; their length is the number of channels.
      decoder_width: channels of the last decoder stage; None: `width`.
      patch: rows and columns of pixels that the network sees as one position.
      shortcuts: whether a shortcut without parameters passes over each stage that has one in Wan2.2: all of
        the encoder, and those of the decoder that end by doubling, which then keeps the width.
      dtype: compute dtype. Parameters are kept as given; norms and softmax are float32.
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time_downsample: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = LATENT_MEAN
    std: tuple[float, ...] = LATENT_STD
    decoder_width: int | None = None
    patch: int = 1
    shortcuts: bool = False
    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        if len(self.time_downsample) != len(self.multipliers) - 1:
            raise InputError(
                f"VAEConfig.time_downsample has {len(self.time_downsample)} entries for "
                f"{len(self.multipliers)} stages; give one entry between each two stages."
            )
        if len(self.mean) != len(self.std):
            raise InputError(
                f"VAEConfig.mean has {len(self.mean)} channels and std {len(self.std)}; "
                "give one number of each for every latent channel."
            )

        if self.shortcuts and not self._even():
            raise InputError(
                f"VAEConfig.multipliers are {self.multipliers}, between which a shortcut cannot share out "
                "channels; give ones that divide each other, as 1, 2, 4, 4."
            )

    def _even(self) -> bool:
        """Whether each shortcut makes a channel of equally many, or of each channel equally many."""
        up, down, time = self.multipliers, self.multipliers[::-1], self.time_downsample
        parts = [4 * (1 + halves) for halves in time]
        averages = zip((up[0], *up), up, (*parts, 1), strict=False)
        repeats = zip((down[0], *down), down, parts[::-1], strict=False)
        shared = all(a * n % b == 0 for a, b, n in averages)
        return shared and all(b * n % a == 0 for a, b, n in repeats)

    @property
    def channels(self) -> int:
        """Latent channels."""
        return len(self.mean)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder stage."""
        return tuple((self.decoder_width or self.width) * m for m in reversed(self.multipliers))

    @property
    def space_stride(self) -> int:
        """Pixel rows of one latent row."""
        return int(self.patch * 2 ** len(self.time_downsample))

    @property
    def time_stride(self) -> int:
        """Pixel frames of one latent frame, other than the first."""
        return int(2 ** sum(self.time_downsample))


# Statistics of the latents of Wan2.2.
_MEAN_22 = (
    (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557)
    + (-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825)
    + (-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502)
    + (-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123)
    + (-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748)
    + (0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667)
)  # fmt: skip
_STD_22 = (
    (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013)
    + (0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978)
    + (0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659)
    + (0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093)
    + (0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887)
    + (0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)
)  # fmt: skip
WAN22 = VAEConfig(width=160, mean=_MEAN_22, std=_STD_22, decoder_width=256, patch=2, shortcuts=True)


def kernel(module: nn.Module, shape: tuple[int, ...], dtype: Any, name: str = "kernel") -> Array:
    """Kernel [k..., in, out] of the calling layer, in the compute dtype."""
    names = (None,) * (len(shape) - 2) + ("conv_in", "conv_out")
    init = nn.initializers.normal(math.prod(shape[:-1]) ** -0.5)
    made = module.param(name, nn.with_logical_partitioning(init, names), shape)
    return cast(Array, made).astype(dtype)


def weights(module: nn.Module, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """Kernel [k..., in, out] and bias [out] of the calling layer, in the compute dtype."""
    made = kernel(module, shape, dtype)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
    bias = module.param("bias", zeros, shape[-1:])
    return made, cast(Array, bias).astype(dtype)


class Norm(nn.Module):
    """x / max(||x||, 1e-12) * sqrt(c) * scale, over the channels of each position."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = cast(Array, self.param("scale", init, (c,)))
        wide = x.astype(jnp.float32)
        square = jnp.sum(wide * wide, axis=-1, keepdims=True)
        # The bound is inside the root, so that a zero vector has a finite gradient.
        factor = math.sqrt(c) * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        wide = wide * jax.lax.optimization_barrier(factor)
        return (wide * scale.astype(jnp.float32)).astype(self.dtype)


class CausalConv(nn.Module):
    """3-D convolution that sees its chunk and the two frames before it.

    Returns frames [b, y, x, features], and what it keeps of its last two inputs.
    """

    config: VAEConfig
    features: int
    space: int = 3

    @nn.compact
    def __call__(self, frames: Frames, past: Cache) -> tuple[Frames, Cache]:
        shape = (3, self.space, self.space, frames[0].shape[-1], self.features)
        kernel, bias = weights(self, shape, self.config.dtype)
        if 3 * self.features < frames[0].shape[-1]:
            made, kept = narrowing(frames, past, kernel)
        else:
            made, kept = causal(frames, past, kernel), last(frames, past)
        return tuple(placed((m + bias).astype(bias.dtype)) for m in made), kept


class Pointwise(nn.Module):
    """1x1x1 convolution: a matrix on the channels."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = weights(self, (x.shape[-1], self.features), self.config.dtype)
        return x @ kernel + bias


class SpaceConv(nn.Module):
    """3x3 convolution of a frame that halves rows and columns, or doubles them beforehand."""

    config: VAEConfig
    features: int
    halves: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = weights(self, (3, 3, x.shape[-1], self.features), self.config.dtype)
        made = conv(x, kernel, 2, (0, 1)) if self.halves else enlarged(x, kernel)
        return placed(made + bias)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (projected where the width changes)."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Frames, past: Cache) -> tuple[Frames, Cache]:
        first, second = (None, None) if past is None else past
        norm_1, norm_2 = (Norm(self.config.dtype, name=f"norm_{i}") for i in (1, 2))
        h = tuple(nn.silu(norm_1(frame)) for frame in x)
        h, first = CausalConv(self.config, self.features, name="conv_1")(h, first)
        h = tuple(nn.silu(norm_2(frame)) for frame in h)
        h, second = CausalConv(self.config, self.features, name="conv_2")(h, second)
        if x[0].shape[-1] != self.features:
            shortcut = Pointwise(self.config, self.features, name="shortcut")
            x = tuple(shortcut(frame) for frame in x)
        return tuple(a + b for a, b in zip(x, h, strict=True)), (first, second)


class FrameAttention(nn.Module):
    """Self-attention with one head over the positions of a frame, plus the input."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        h = Norm(self.config.dtype, name="norm")(x)
        h = Pointwise(self.config, 3 * c, name="qkv")(h)
        q, k, v = jnp.split(h, 3, axis=-1)
        # Rows and columns stay apart: queries are split over devices by columns.
        k, v = (placed(whole, columns=None) for whole in (k, v))
        logits = jnp.einsum("byxc,bijc->byxij", q, k, preferred_element_type=jnp.float32)
        probs = jax.nn.softmax(logits * c**-0.5, axis=(-2, -1)).astype(self.config.dtype)
        h = jnp.einsum("byxij,bijc->byxc", probs, v)
        return x + Pointwise(self.config, c, name="out")(h)


class Downsample(nn.Module):
    """Halves rows and columns, and frames where `time`; the width stays.

    It keeps its last frame after the spatial convolution. The first frame of a video passes by the
    temporal one; a later chunk has an even number of frames.
    """

    config: VAEConfig
    time: bool

    @nn.compact
    def __call__(self, x: Frames, past: Cache) -> tuple[Frames, Cache]:
        c = x[0].shape[-1]
        conv = SpaceConv(self.config, c, halves=True, name="conv")
        x = tuple(conv(frame) for frame in x)
        if not self.time:
            return x, ()
        if past is None:
            return x, x[-1:]
        return TimeConv(self.config, c, stride=2, name="time_conv")(x, past), x[-1:]


class Upsample(nn.Module):
    """Doubles rows and columns, and frames where `time`; halves the width, but beside a shortcut.

    It keeps its last two input frames; the first frame of a video is never among them, and is not
    doubled in time.
    """

    config: VAEConfig
    time: bool

    @nn.compact
    def __call__(self, x: Frames, past: Cache) -> tuple[Frames, Cache]:
        c = x[0].shape[-1]
        kept: Cache = ()
        if self.time and past is None:
            kept = before(x, None)
        elif self.time:
            kept = last(x, past)
            both = TimeConv(self.config, 2 * c, name="time_conv")(x, past)
            # The first half of the channels holds the earlier of each two frames.
            x = tuple(half for frame in both for half in jnp.split(frame, 2, axis=-1))
        width = c if self.config.shortcuts else c // 2
        conv = SpaceConv(self.config, width, halves=False, name="conv")
        return tuple(conv(frame) for frame in x), kept


class TimeConv(nn.Module):
    """Three taps in time, one position in space; with a stride of 2, at every second frame."""

    config: VAEConfig
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, frames: Frames, past: Frames) -> Frames:
        shape = (3, 1, 1, frames[0].shape[-1], self.features)
        kernel, bias = weights(self, shape, self.config.dtype)
        if self.stride == 1:
            made = causal(frames, past, kernel)
        else:
            window = [*past, *frames]
            made = tuple(side_by_side(window[i : i + 3], kernel) for i in range(0, len(frames), 2))
        return tuple((m + bias).astype(bias.dtype) for m in made)
