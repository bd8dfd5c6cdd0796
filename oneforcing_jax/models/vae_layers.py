"""Layers of the Wan2.1 video VAE, each a function of (chunk, what it kept of the past).

Arrays are channel-last, [b, f, y, x, c], so that every convolution is NDHWC or NHWC. A layer that
looks back in time takes a cache and returns the next one; `None` stands for the start of a video,
which is the same as a cache of zeros. `first` (static) says that the chunk opens the video: its first
frame then passes by the temporal resampling, which is why the first latent frame is one pixel frame.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Cache = Any

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
      width: channels of the first encoder stage and the last decoder stage.
      multipliers: channels of encoder stage i are `width * multipliers[i]`; one spatial halving lies
        between each two stages.
      blocks: residual blocks of an encoder stage (a decoder stage has one more).
      time_downsample: whether the halving after encoder stage i also halves the frame rate.
      mean, std: statistics of the latents by channel; their length is the number of channels.
      dtype: compute dtype. Parameters are kept as given; norms and softmax are float32.
      conv: "3d" for 3-D convolutions, "2d" for 2-D convolutions over the time taps laid side by side
        as channels. Equal results; which is faster depends on the backend.
      chunk: latent frames of one step of a whole encode or decode; memory grows with it.
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time_downsample: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = LATENT_MEAN
    std: tuple[float, ...] = LATENT_STD
    dtype: Any = jnp.bfloat16
    conv: str = "3d"
    chunk: int = 1

    def __post_init__(self) -> None:
        if len(self.time_downsample) != len(self.multipliers) - 1:
            raise ValueError(
                f"VAEConfig.time_downsample has {len(self.time_downsample)} entries for "
                f"{len(self.multipliers)} stages; give one entry between each two stages."
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"VAEConfig.mean has {len(self.mean)} channels and std {len(self.std)}; "
                "give one number of each for every latent channel."
            )
        if self.conv not in ("3d", "2d"):
            raise ValueError(f'VAEConfig.conv is {self.conv!r}; choose "3d" or "2d".')
        if self.chunk < 1:
            raise ValueError(
                f"VAEConfig.chunk is {self.chunk}; it must be at least 1 latent frame."
            )

    @property
    def channels(self) -> int:
        """Latent channels."""
        return len(self.mean)

    @property
    def space_stride(self) -> int:
        """Pixel rows of one latent row."""
        return int(2 ** len(self.time_downsample))

    @property
    def time_stride(self) -> int:
        """Pixel frames of one latent frame, other than the first."""
        return int(2 ** sum(self.time_downsample))


def _weights(module: nn.Module, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """Kernel [k..., in, out] and bias [out] of the calling layer, in the compute dtype."""
    names = (None,) * (len(shape) - 2) + ("conv_in", "conv_out")
    fan_in = math.prod(shape[:-1])
    init = nn.initializers.normal(fan_in**-0.5)
    kernel = module.param("kernel", nn.with_logical_partitioning(init, names), shape)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
    bias = module.param("bias", zeros, shape[-1:])
    return cast(Array, kernel).astype(dtype), cast(Array, bias).astype(dtype)


def _conv2d(x: Array, kernel: Array, stride: int, pad: tuple[int, int]) -> Array:
    """2-D convolution of every frame: [b, f, y, x, c], kernel [ky, kx, in, out]."""
    b, f = x.shape[:2]
    y = jax.lax.conv_general_dilated(
        x.reshape(b * f, *x.shape[2:]),
        kernel,
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, f, *y.shape[1:])


def _time_conv(window: Array, kernel: Array, stride: int, mode: str) -> Array:
    """Convolution without padding in time and with equal padding in space.

    Args:
      window: [b, past + n, y, x, c].
      kernel: [kt, ky, kx, in, out].
      stride: of time.
      mode: `VAEConfig.conv`.
    """
    kt, ky, kx, c_in, c_out = kernel.shape
    space = ((ky // 2, ky // 2), (kx // 2, kx // 2))
    if mode == "3d" and ky * kx > 1:
        return jax.lax.conv_general_dilated(
            window,
            kernel,
            (stride, 1, 1),
            ((0, 0), *space),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    last = window.shape[1] - kt
    taps = jnp.concatenate([window[:, t : t + last + 1 : stride] for t in range(kt)], axis=-1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(ky, kx, kt * c_in, c_out)
    return taps @ flat[0, 0] if ky * kx == 1 else _conv2d(taps, flat, 1, space[0])


def _with_past(x: Array, cache: Cache, frames: int) -> Array:
    """The chunk with `frames` frames of the past before it: [b, frames + n, y, x, c]."""
    if cache is None:
        return jnp.pad(x, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([cache.astype(x.dtype), x], axis=1)


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
        wide = wide * (math.sqrt(c) * jax.lax.rsqrt(jnp.maximum(square, 1e-24)))
        return (wide * scale.astype(jnp.float32)).astype(self.dtype)


class CausalConv(nn.Module):
    """3-D convolution that sees its chunk and the two frames before it.

    Returns ([b, n, y, x, features], cache [b, 2, y, x, c]): the cache is the layer's last inputs.
    """

    config: VAEConfig
    features: int
    space: int = 3

    @nn.compact
    def __call__(self, x: Array, cache: Cache) -> tuple[Array, Cache]:
        shape = (3, self.space, self.space, x.shape[-1], self.features)
        kernel, bias = _weights(self, shape, self.config.dtype)
        window = _with_past(x, cache, 2)
        return _time_conv(window, kernel, 1, self.config.conv) + bias, window[:, -2:]


class Pointwise(nn.Module):
    """1x1x1 convolution: a matrix on the channels."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, (x.shape[-1], self.features), self.config.dtype)
        return x @ kernel + bias


class SpaceConv(nn.Module):
    """3x3 convolution of each frame, padded by one all round, or by `pad` (before, after)."""

    config: VAEConfig
    features: int
    stride: int = 1
    pad: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, (3, 3, x.shape[-1], self.features), self.config.dtype)
        return _conv2d(x, kernel, self.stride, self.pad) + bias


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (projected where the width changes)."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array, cache: Cache) -> tuple[Array, Cache]:
        first, second = (None, None) if cache is None else cache
        h = nn.silu(Norm(self.config.dtype, name="norm_1")(x))
        h, first = CausalConv(self.config, self.features, name="conv_1")(h, first)
        h = nn.silu(Norm(self.config.dtype, name="norm_2")(h))
        h, second = CausalConv(self.config, self.features, name="conv_2")(h, second)
        if x.shape[-1] != self.features:
            x = Pointwise(self.config, self.features, name="shortcut")(x)
        return x + h, (first, second)


class FrameAttention(nn.Module):
    """Self-attention with one head over the positions of each frame, plus the input."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, f, y, width, c = x.shape
        h = Norm(self.config.dtype, name="norm")(x)
        h = Pointwise(self.config, 3 * c, name="qkv")(h).reshape(b, f, y * width, 3 * c)
        q, k, v = jnp.split(h, 3, axis=-1)
        logits = jnp.einsum("bftc,bfsc->bfts", q, k, preferred_element_type=jnp.float32)
        probs = jax.nn.softmax(logits * c**-0.5, axis=-1).astype(self.config.dtype)
        h = jnp.einsum("bfts,bfsc->bftc", probs, v).reshape(b, f, y, width, c)
        return x + Pointwise(self.config, c, name="out")(h)


class Downsample(nn.Module):
    """Halves rows and columns, and frames where `time`; the width stays.

    The cache is the last frame after the spatial convolution, [b, 1, y, x, c]. A first chunk has an
    odd number of frames, a later one an even number.
    """

    config: VAEConfig
    time: bool

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: bool) -> tuple[Array, Cache]:
        c = x.shape[-1]
        x = SpaceConv(self.config, c, stride=2, pad=(0, 1), name="conv")(x)
        if not self.time:
            return x, ()
        kept = x[:, -1:]
        if first and x.shape[1] == 1:
            return x, kept
        window = x if first else _with_past(x, cache, 1)
        conv = TimeConv(self.config, c, stride=2, name="time_conv")(window)
        return jnp.concatenate([x[:, :1], conv], axis=1) if first else conv, kept


class Upsample(nn.Module):
    """Doubles rows and columns, and frames where `time`; halves the width.

    The cache is the last two input frames, [b, 2, y, x, c]; the first frame of a video never enters
    it, and is not doubled.
    """

    config: VAEConfig
    time: bool

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: bool) -> tuple[Array, Cache]:
        kept: Cache = ()
        if self.time:
            opening, x = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
            window = _with_past(x, cache, 2)
            kept = window[:, -2:]
            if x.shape[1]:
                conv = TimeConv(self.config, 2 * x.shape[-1], name="time_conv")(window)
                # Of each pair of frames the earlier is in the first half of the channels.
                pairs = jnp.stack(jnp.split(conv, 2, axis=-1), axis=2)
                x = pairs.reshape(x.shape[0], 2 * x.shape[1], *x.shape[2:])
            x = jnp.concatenate([opening, x], axis=1)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return SpaceConv(self.config, x.shape[-1] // 2, name="conv")(x), kept


class TimeConv(nn.Module):
    """Three taps in time, one position in space: [b, 2 + n, y, x, c] -> [b, n / stride, y, x, d]."""

    config: VAEConfig
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, window: Array) -> Array:
        shape = (3, 1, 1, window.shape[-1], self.features)
        kernel, bias = _weights(self, shape, self.config.dtype)
        return _time_conv(window, kernel, self.stride, self.config.conv) + bias
