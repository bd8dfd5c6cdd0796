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


def _conv2d(x: Array, kernel: Array, stride: int, pad: tuple[Any, Any]) -> Array:
    """2-D convolution of every frame: [b, f, y, x, c], kernel [ky, kx, in, out]."""
    b, f = x.shape[:2]
    y = jax.lax.conv_general_dilated(
        x.reshape(b * f, *x.shape[2:]),
        kernel,
        (stride, stride),
        pad if isinstance(pad[0], tuple) else (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, f, *y.shape[1:])


def _taps(frames: Array, kernel: Array) -> Array:
    """3x3 or 1x1 convolution of every frame: [b, f, y, x, c], kernel [ky, kx, in, out]."""
    side = kernel.shape[0]
    return frames @ kernel[0, 0] if side == 1 else _conv2d(frames, kernel, 1, (side // 2, side // 2))


def _side_by_side(window: Array, kernel: Array, stride: int = 1) -> Array:
    """The three taps in time as one convolution of three times the channels.

    Args:
      window: [b, 2 + n, y, x, c]; with a stride of 2, [b, 1 + n, y, x, c].
      kernel: [3, ky, kx, in, out].
      stride: of time.
    """
    last = window.shape[1] - 3
    taps = jnp.concatenate([window[:, t : t + last + 1 : stride] for t in range(3)], axis=-1)
    ky, kx = kernel.shape[1:3]
    return _taps(taps, jnp.moveaxis(kernel, 0, 2).reshape(ky, kx, -1, kernel.shape[-1]))


def _pairs(window: Array, kernel: Array) -> Array:
    """Three taps in time, two frames at once by four products where six would be.

    This is the minimal filtering F(2, 3) of Winograd, over time alone.

    Args:
      window: [b, 2 + n, y, x, c], n even.
      kernel: [3, ky, kx, in, out].
    """
    w0, w1, w2, w3 = (window[:, i : window.shape[1] - 3 + i : 2] for i in range(4))
    wide = kernel.astype(jnp.float32)
    outer, inner = (wide[0] + wide[2]) / 2, wide[1] / 2
    m0 = _taps(w0 - w2, kernel[0])
    m1 = _taps(w1 + w2, (outer + inner).astype(kernel.dtype))
    m2 = _taps(w2 - w1, (outer - inner).astype(kernel.dtype))
    m3 = _taps(w1 - w3, kernel[2])
    m0, m1, m2, m3 = (m.astype(jnp.float32) for m in (m0, m1, m2, m3))
    both = jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=2)
    b, n = both.shape[0], both.shape[1] * 2
    return both.reshape(b, n, *both.shape[3:])


def _causal(x: Array, past: Cache, kernel: Array) -> Array:
    """Three taps in time, the last on the frame itself: [b, n, y, x, c] -> [b, n, y, x, out]."""
    odd = x.shape[1] % 2
    parts = []
    if odd and past is None:
        parts.append(_taps(x[:, :1], kernel[2]))
    window = _with_past(x, past, 2)
    if odd and past is not None:
        parts.append(_side_by_side(window[:, :3], kernel))
    if x.shape[1] > 1:
        parts.append(_pairs(window[:, odd:], kernel).astype(x.dtype))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _upsampled(x: Array, kernel: Array) -> Array:
    """3x3 convolution after doubling rows and columns: [b, f, y, x, c] -> [b, f, 2y, 2x, out].

    Of the positions that share an input position, each sees 2x2 of them: taps that fall on the same
    one are added up beforehand, and nothing is doubled.
    """
    wide = kernel.astype(jnp.float32)

    def merged(k: Array, axis: int, second: int) -> Array:
        a, b, c = (jax.lax.index_in_dim(k, i, axis, keepdims=True) for i in range(3))
        return jnp.concatenate([a + b, c] if second else [a, b + c], axis)

    rows = []
    for i in (0, 1):
        line = []
        for j in (0, 1):
            k = merged(merged(wide, 0, i), 1, j).astype(kernel.dtype)
            line.append(_conv2d(x, k, 1, ((1 - i, i), (1 - j, j))))
        rows.append(jnp.stack(line, axis=4))
    both = jnp.stack(rows, axis=3)  # [b, f, y, 2, x, 2, out]
    b, f, y, _, width, _, c = both.shape
    return both.reshape(b, f, 2 * y, 2 * width, c)


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
        return _causal(x, cache, kernel) + bias, _with_past(x, cache, 2)[:, -2:]


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
        conv = TimeHalf(self.config, c, name="time_conv")(window)
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
        c = x.shape[-1]
        if self.time:
            opening, x = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
            kept = _with_past(x, cache, 2)[:, -2:]
            if x.shape[1]:
                conv = TimeConv(self.config, 2 * c, name="time_conv")(x, cache)
                # Of each pair of frames the earlier is in the first half of the channels.
                pairs = jnp.stack(jnp.split(conv, 2, axis=-1), axis=2)
                x = pairs.reshape(x.shape[0], 2 * x.shape[1], *x.shape[2:])
            x = jnp.concatenate([opening, x], axis=1) if first else x
        return UpConv(self.config, c // 2, name="conv")(x), kept


class UpConv(nn.Module):
    """Doubles rows and columns, each value four times, then a 3x3 convolution of each frame."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, (3, 3, x.shape[-1], self.features), self.config.dtype)
        return _upsampled(x, kernel) + bias


class TimeConv(nn.Module):
    """Three causal taps in time, one position in space: [b, n, y, x, c] -> [b, n, y, x, d]."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array, cache: Cache) -> Array:
        shape = (3, 1, 1, x.shape[-1], self.features)
        kernel, bias = _weights(self, shape, self.config.dtype)
        return _causal(x, cache, kernel) + bias


class TimeHalf(nn.Module):
    """Three taps in time at every second frame: [b, 1 + n, y, x, c] -> [b, n / 2, y, x, d]."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, window: Array) -> Array:
        shape = (3, 1, 1, window.shape[-1], self.features)
        kernel, bias = _weights(self, shape, self.config.dtype)
        return _side_by_side(window, kernel, 2) + bias
