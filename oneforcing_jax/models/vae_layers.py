"""Layers of the Wan2.1 video VAE, each a function of (chunk, what it kept of the past).

A chunk is a tuple of frames [b, y, x, c]: frames are never stacked, so that a shift in time is a choice
of arrays and not a copy, and every convolution is one of images, channels last. A layer that looks back
in time takes what it kept and returns what it keeps next; `None` stands for the start of a video. The
first frame of a video is a chunk of its own: it passes by the temporal resampling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError

Array = jax.Array
Cache = Any
Frames = tuple[Array, ...]

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
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time_downsample: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = LATENT_MEAN
    std: tuple[float, ...] = LATENT_STD
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


def placed(x: Array, columns: str | None = "columns") -> Array:
    """A frame [b, y, x, c] on the mesh in use: videos and columns split where the mesh divides them."""
    axes = ("batch", None, columns, None)
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else sharding.constrain(x, *sharding.dividing(mesh, x.shape, axes))


def _conv(x: Array, kernel: Array, stride: int = 1, pad: tuple[int, int] | None = None) -> Array:
    """Convolution of a frame: [b, y, x, c], kernel [k, k, in, out]; its border is padded by k // 2."""
    side = kernel.shape[0]
    if side == 1:
        return x @ kernel[0, 0]
    pad = pad or (side // 2, side // 2)
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=layout
    )


def _side_by_side(frames: Sequence[Array], kernel: Array) -> Array:
    """The taps in time as one convolution of as many times the channels.

    Args:
      frames: one [b, y, x, c] for each tap.
      kernel: [taps, k, k, in, out].
    """
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    return _conv(jnp.concatenate(frames, axis=-1), flat)


def _pair(frames: Sequence[Array], kernel: Array) -> tuple[Array, Array]:
    """Three taps in time at two frames, by four convolutions where six would be.

    This is the minimal filtering F(2, 3) of Winograd over time: exact but for rounding.

    Args:
      frames: four [b, y, x, c], the two frames and the two before them.
      kernel: [3, k, k, in, out].
    """
    a, b, c, d = (frame.astype(jnp.float32) for frame in frames)
    wide = kernel.astype(jnp.float32)
    outer, inner = (wide[0] + wide[2]) / 2, wide[1] / 2
    plus, minus = ((outer + sign * inner).astype(kernel.dtype) for sign in (1, -1))
    given = ((a - c, kernel[0]), (b + c, plus), (c - b, minus), (b - d, kernel[2]))
    m = [_conv(x.astype(k.dtype), k).astype(jnp.float32) for x, k in given]
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _causal(frames: Sequence[Array], past: Cache, kernel: Array) -> Frames:
    """Three taps in time, the last on the frame itself.

    Args:
      frames: [b, y, x, c] each.
      past: the two frames before them; None at the start of a video.
      kernel: [3, k, k, in, out].
    """
    window, made = [*_before(frames, past), *frames], []
    # With few channels it is what is written that counts, not the products.
    alone = len(frames) % 2 if 3 * kernel.shape[-2] > kernel.shape[-1] else len(frames)
    for i in range(alone):
        if i == 0 and past is None:
            made.append(_conv(frames[0], kernel[2]))
        else:
            made.append(_side_by_side(window[i : i + 3], kernel))
    for i in range(alone, len(frames), 2):
        made += _pair(window[i : i + 4], kernel)
    return tuple(made)


def _narrowing(frames: Sequence[Array], past: Cache, kernel: Array) -> tuple[Frames, Cache]:
    """`_causal` for few output channels: a frame is convolved once with all taps.

    The products [b, y, x, 3 out] of the last two frames are what it keeps, and takes as `past`.
    """
    flat = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], -1)
    found = tuple(_conv(frame, flat) for frame in frames)
    window = [jnp.split(x.astype(jnp.float32), 3, -1) for x in (*_before(found, past), *found)]
    made = [window[i][0] + window[i + 1][1] + window[i + 2][2] for i in range(len(frames))]
    return tuple(made), _last(found, past)


def _before(frames: Sequence[Array], past: Cache) -> Frames:
    """The two frames before a chunk; zeros at the start of a video."""
    return (placed(jnp.zeros_like(frames[0])),) * 2 if past is None else past


def _last(frames: Sequence[Array], past: Cache) -> Frames:
    """What a layer with three taps in time keeps: its last two frames."""
    return tuple(placed(frame) for frame in [*_before(frames, past), *frames][-2:])


def _enlarged(x: Array, kernel: Array) -> Array:
    """3x3 convolution of a frame whose rows and columns are doubled: [b, y, x, c] -> [b, 2y, 2x, out].

    Of the four positions made from one, each sees 2x2 of the frame: taps that fall on the same
    position are added up, and the enlarged frame is never there.
    """
    wide = kernel.astype(jnp.float32)

    def merged(k: Array, axis: int, second: int) -> Array:
        a, b, c = (jax.lax.index_in_dim(k, i, axis) for i in range(3))
        return jnp.concatenate([a + b, c] if second else [a, b + c], axis)

    places = [(i, j) for i in (0, 1) for j in (0, 1)]
    kernels = [merged(merged(wide, 0, i), 1, j).astype(kernel.dtype) for i, j in places]
    # Position (i, j) sees the frame from (i - 1, j - 1) on.
    found = _conv(x, jnp.concatenate(kernels, -1))
    b, y, width, _ = x.shape
    parts = [
        part[:, i : i + y, j : j + width]
        for (i, j), part in zip(places, jnp.split(found, 4, axis=-1), strict=True)
    ]
    rows = [jnp.stack(parts[:2], axis=3), jnp.stack(parts[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * y, 2 * width, -1)


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
        kernel, bias = _weights(self, shape, self.config.dtype)
        if 3 * self.features < frames[0].shape[-1]:
            made, kept = _narrowing(frames, past, kernel)
        else:
            made, kept = _causal(frames, past, kernel), _last(frames, past)
        return tuple(placed((m + bias).astype(bias.dtype)) for m in made), kept


class Pointwise(nn.Module):
    """1x1x1 convolution: a matrix on the channels."""

    config: VAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, (x.shape[-1], self.features), self.config.dtype)
        return x @ kernel + bias


class SpaceConv(nn.Module):
    """3x3 convolution of a frame that halves rows and columns, or doubles them beforehand."""

    config: VAEConfig
    features: int
    halves: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, (3, 3, x.shape[-1], self.features), self.config.dtype)
        made = _conv(x, kernel, 2, (0, 1)) if self.halves else _enlarged(x, kernel)
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
    """Doubles rows and columns, and frames where `time`; halves the width.

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
            kept = _before(x, None)
        elif self.time:
            kept = _last(x, past)
            both = TimeConv(self.config, 2 * c, name="time_conv")(x, past)
            # Of each two frames the earlier is in the first half of the channels.
            x = tuple(half for frame in both for half in jnp.split(frame, 2, axis=-1))
        conv = SpaceConv(self.config, c // 2, halves=False, name="conv")
        return tuple(conv(frame) for frame in x), kept


class TimeConv(nn.Module):
    """Three taps in time, one position in space; with a stride of 2, at every second frame."""

    config: VAEConfig
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, frames: Frames, past: Frames) -> Frames:
        shape = (3, 1, 1, frames[0].shape[-1], self.features)
        kernel, bias = _weights(self, shape, self.config.dtype)
        if self.stride == 1:
            made = _causal(frames, past, kernel)
        else:
            window = [*past, *frames]
            made = tuple(_side_by_side(window[i : i + 3], kernel) for i in range(0, len(frames), 2))
        return tuple((m + bias).astype(bias.dtype) for m in made)
