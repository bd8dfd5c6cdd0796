"""Wan's tiny decoders (taew2_1, taew2_2): latents to pixels with little work, for previews and fast serving.

Arrays are those of `vae`, and `vae_stream` decodes with it as frames come. A block of convolutions also
reads what it read of the frame before: zeros at the start of a video. Every latent frame makes four
pixel frames; of the first one's the last is kept, so that a video has as many as the VAE gives it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.vae import check_latents, drawn, over_chunks
from oneforcing_jax.models.vae_convolutions import Array, Cache, Frames, conv, enlarged, placed
from oneforcing_jax.models.vae_layers import kernel, weights
from oneforcing_jax.models.vae_shortcuts import unpatched


@dataclasses.dataclass(frozen=True)
class TinyDecoderConfig:
    """Architecture and arithmetic; the defaults are taew2_1's.

    Attributes:
      channels: of the latents.
      widths: channels of each stage, and of the last convolution's input. Each stage ends by doubling rows
        and columns.
      blocks: of a stage.
      time_upsample: whether a stage ends by doubling frames, too.
      patch: rows and columns of pixels that the last convolution makes of one position (taew2_2: 2).
      dtype: compute dtype. Parameters are kept as given.
    """

    channels: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    blocks: int = 3
    time_upsample: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        if len(self.time_upsample) != len(self.widths) - 1:
            raise InputError(
                f"TinyDecoderConfig.time_upsample has {len(self.time_upsample)} entries for "
                f"{len(self.widths)} widths; give one entry between each two."
            )

    @property
    def space_stride(self) -> int:
        """Pixel rows of one latent row."""
        return int(self.patch * 2 ** len(self.time_upsample))

    @property
    def time_stride(self) -> int:
        """Pixel frames of one latent frame, other than the first."""
        return int(2 ** sum(self.time_upsample))


class Conv(nn.Module):
    """3x3 convolution of a frame."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        made, bias = weights(self, (3, 3, x.shape[-1], self.features), self.dtype)
        return placed(conv(x, made) + bias)


class Block(nn.Module):
    """Three convolutions of each frame and the one before it, plus the frame.

    Returns the frames, and what it keeps: its last input.
    """

    dtype: Any

    @nn.compact
    def __call__(self, frames: Frames, past: Cache) -> tuple[Frames, Cache]:
        c = frames[0].shape[-1]
        convs = [Conv(c, self.dtype, name=f"conv_{i}") for i in range(3)]
        past = placed(jnp.zeros_like(frames[0])) if past is None else past
        made = []
        for frame in frames:
            h = jnp.concatenate([frame, past], axis=-1)
            for one in convs[:-1]:
                h = nn.relu(one(h))
            made.append(nn.relu(convs[-1](h) + frame))
            past = frame
        return tuple(made), placed(past)


class Up(nn.Module):
    """Doubles rows and columns of a frame [b, y, x, c], and makes `count` frames of it.

    The published network doubles them, makes frames by a matrix on the channels and convolves each. All
    that is linear: here it is one kernel on the small frame.
    """

    features: int
    count: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Frames:
        c = x.shape[-1]
        grow = kernel(self, (c, self.count * c), jnp.float32, "grow_kernel")
        each = kernel(self, (3, 3, c, self.features), jnp.float32)
        both = jnp.einsum(
            "isc,yxco->yxiso", grow.reshape(c, self.count, c), each, precision="highest"
        )
        both = both.reshape(3, 3, c, -1).astype(self.dtype)
        made = jnp.split(enlarged(x, both), self.count, axis=-1)
        return tuple(placed(frame) for frame in made)


class TinyDecoder(nn.Module):
    """The decoder. `params` is its only collection."""

    config: TinyDecoderConfig

    def setup(self) -> None:
        c = self.config
        self.conv_in = Conv(c.widths[0], c.dtype)
        self.blocks = [Block(c.dtype) for _ in range(c.blocks * len(c.time_upsample))]
        self.ups = [
            Up(width, 2 if time else 1, c.dtype)
            for width, time in zip(c.widths[1:], c.time_upsample, strict=True)
        ]
        self.conv_out = Conv(3 * c.patch**2, c.dtype)

    def __call__(self, latents: Array) -> Array:
        """Pixels [b, 1 + 4(f - 1), 3, 8y, 8x] f32 of latents [b, f, c, y, x]; not clamped.

        Raises:
          InputError: the shape does not fit.
        """
        check_latents(self.config, latents.shape)
        return self.decode_frames(latents, None)[0]

    def decode_frames(self, latents: Array, cache: Cache) -> tuple[Array, Cache]:
        """The next latent frames [b, n, c, y, x] to pixels; the cache is as for `decode_chunk`."""
        return over_chunks(self, "decode_chunk", latents, cache, 1, self.config.time_stride)

    def decode_chunk(self, latents: Array, cache: Cache) -> tuple[Array, Cache]:
        """One latent frame to its pixels.

        Args:
          latents: [b, 1, c, y, x], normalised.
          cache: from the chunk before; None for the first.

        Returns:
          Pixels [b, m, 3, 8y, 8x] f32, m = 1 for the first chunk and 4 for the others, and the cache.
        """
        c = self.config
        bounded = 3 * jnp.tanh(latents[:, 0].astype(jnp.float32) / 3)
        x = placed(jnp.moveaxis(bounded, 1, -1).astype(c.dtype))
        frames: Frames = (nn.relu(self.conv_in(x)),)
        past, kept = cache or (None,) * len(self.blocks), []
        for i, up in enumerate(self.ups):
            for j in range(i * c.blocks, (i + 1) * c.blocks):
                frames, last = self.blocks[j](frames, past[j])
                kept.append(last)
            frames = tuple(new for frame in frames for new in up(frame))
        shown = frames if cache is not None else frames[-1:]
        pixels = [self.conv_out(nn.relu(frame)).astype(jnp.float32) for frame in shown]
        pixels = [unpatched(frame, c.patch, rows_first=True) for frame in pixels]
        # It was trained on pixels in [0, 1].
        return 2 * jnp.stack([jnp.moveaxis(x, -1, 1) for x in pixels], axis=1) - 1, tuple(kept)


def init_params(config: TinyDecoderConfig, key: Array) -> Any:
    """Random parameters, f32, boxed with their logical axes; see `vae.init_params`."""
    latents = jax.ShapeDtypeStruct((1, 2, config.channels, 1, 1), jnp.float32)
    return drawn(jax.eval_shape(TinyDecoder(config).init, key, latents)["params"], key)
