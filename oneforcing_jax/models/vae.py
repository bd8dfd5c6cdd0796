"""The video VAEs of Wan2.1 and Wan2.2: pixels <-> latents, whole; `vae_stream` decodes as frames come.

Public arrays are [b, f, c, y, x]: pixels in [-1, 1] (c = 3) and latents normalised by channel. 1 + 4k
pixel frames are 1 + k latent frames, and 8 x 8 pixels (Wan2.2: 16 x 16) one latent position. The
network is causal in time, so a whole encode or decode is the stream run to its end: a scan over chunks
of frames that carries what each layer keeps of the past. Its working memory does not depend on the
video's length. Sizes in the docstrings are Wan2.1's.

    model = WanVAE(config)
    params = flax.linen.meta.unbox(init_params(config, key))
    latents = model.apply({"params": params}, pixels, method="encode")
    pixels = clamp(model.apply({"params": params}, latents, method="decode"))
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.vae_convolutions import Array, Cache, Frames, placed
from oneforcing_jax.models.vae_layers import (
    CausalConv,
    Downsample,
    FrameAttention,
    Norm,
    Pointwise,
    ResBlock,
    Upsample,
    VAEConfig,
)
from oneforcing_jax.models.vae_shortcuts import averaged, patched, repeated, unpatched


def _sum(x: Frames, y: Frames) -> Frames:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _middle(config: VAEConfig, x: Frames, past: Cache, new: dict[str, Cache]) -> Frames:
    """Residual block, attention, residual block; adds what they keep to `new`."""
    c = x[0].shape[-1]
    x, new["mid_0"] = ResBlock(config, c, name="mid_0")(x, past.get("mid_0"))
    attention = FrameAttention(config, name="mid_attention")
    x = tuple(attention(frame) for frame in x)
    x, new["mid_1"] = ResBlock(config, c, name="mid_1")(x, past.get("mid_1"))
    return x


class Encoder(nn.Module):
    """A chunk of frames [b, y, x, c], 1 or 4, to one [b, y / 8, x / 8, 2 channels]; c has patches' pixels."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Frames, cache: Cache) -> tuple[Frames, Cache]:
        config, past = self.config, cache or {}
        new: dict[str, Cache] = {}
        x, new["conv_in"] = CausalConv(config, config.width, name="conv_in")(x, past.get("conv_in"))
        for i, multiplier in enumerate(config.multipliers):
            before, halves = x, i < len(config.time_downsample)
            time = halves and config.time_downsample[i]
            for j in range(config.blocks):
                name = f"stage_{i}_block_{j}"
                block = ResBlock(config, config.width * multiplier, name=name)
                x, new[name] = block(x, past.get(name))
            if halves:
                name = f"stage_{i}_down"
                x, new[name] = Downsample(config, time, name=name)(x, past.get(name))
            if config.shortcuts:
                x = _sum(x, averaged(before, x[0].shape[-1], 1 + time, 1 + halves))
        x = _middle(config, x, past, new)
        norm = Norm(config.dtype, name="norm_out")
        x = tuple(nn.silu(norm(frame)) for frame in x)
        head = CausalConv(config, 2 * config.channels, name="conv_out")
        x, new["conv_out"] = head(x, past.get("conv_out"))
        return x, new


class Decoder(nn.Module):
    """A frame [b, y, x, channels] to frames [b, 8 y, 8 x, c]: 1 of a video's first, else 4."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Frames, cache: Cache) -> tuple[Frames, Cache]:
        config, past = self.config, cache or {}
        new: dict[str, Cache] = {}
        widths = config.decoder_widths
        x, new["conv_in"] = CausalConv(config, widths[0], name="conv_in")(x, past.get("conv_in"))
        x = _middle(config, x, past, new)
        for i, width in enumerate(widths):
            before = x
            for j in range(config.blocks + 1):
                name = f"stage_{i}_block_{j}"
                x, new[name] = ResBlock(config, width, name=name)(x, past.get(name))
            if i < len(config.time_downsample):
                name, time = f"stage_{i}_up", config.time_downsample[-1 - i]
                x, new[name] = Upsample(config, time, name=name)(x, past.get(name))
                if config.shortcuts:
                    x = _sum(x, repeated(before, width, 1 + time, 2, first=cache is None))
        norm = Norm(config.dtype, name="norm_out")
        x = tuple(nn.silu(norm(frame)) for frame in x)
        head = CausalConv(config, 3 * config.patch**2, name="conv_out")
        x, new["conv_out"] = head(x, past.get("conv_out"))
        return x, new


class WanVAE(nn.Module):
    """The VAE. `params` is its only collection; see the head of this file for how it is called."""

    config: VAEConfig

    def setup(self) -> None:
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant = Pointwise(config, 2 * config.channels)
        self.post_quant = Pointwise(config, config.channels)

    def __call__(self, pixels: Array) -> Array:
        """Encode and decode; with 5 frames or more it touches every parameter."""
        return self.decode(self.encode(pixels))

    def _statistics(self) -> tuple[Array, Array]:
        """Mean and std of the latents, [c, 1, 1]."""
        both = jnp.asarray((self.config.mean, self.config.std), jnp.float32)[:, :, None, None]
        return both[0], both[1]

    def _normalise(self, mu: Array) -> Array:
        mean, std = self._statistics()
        return (mu - mean) / std

    def encode_chunk(self, pixels: Array, cache: Cache) -> tuple[Array, Cache]:
        """Pixels to moments of one latent frame.

        Args:
          pixels: [b, n, 3, y, x]: the first frame of a video, or the next 4.
          cache: from the chunk before; None for the first.

        Returns:
          Mean and log-variance [b, 1, 2c, y / 8, x / 8] f32, and the cache.
        """
        x = patched(jnp.moveaxis(pixels.astype(self.config.dtype), 2, -1), self.config.patch)
        (x,), cache = self.encoder(tuple(placed(x[:, i]) for i in range(x.shape[1])), cache)
        return jnp.moveaxis(self.quant(x).astype(jnp.float32), -1, 1)[:, None], cache

    def decode_chunk(self, latents: Array, cache: Cache) -> tuple[Array, Cache]:
        """One latent frame to its pixels.

        Args:
          latents: [b, 1, c, y, x], normalised.
          cache: from the chunk before; None for the first.

        Returns:
          Pixels [b, m, 3, 8y, 8x], m = 1 for the first chunk and 4 for the others, and the cache.
        """
        mean, std = self._statistics()
        z = latents[:, 0].astype(jnp.float32) * std + mean
        x = self.post_quant(jnp.moveaxis(z.astype(self.config.dtype), 1, -1))
        frames, cache = self.decoder((placed(x),), cache)
        shown = [unpatched(frame, self.config.patch) for frame in frames]
        return jnp.stack([jnp.moveaxis(frame, -1, 1) for frame in shown], axis=1), cache

    def decode_frames(self, latents: Array, cache: Cache) -> tuple[Array, Cache]:
        """`decode` of the next latent frames [b, n, c, y, x]; the cache is as for `decode_chunk`."""
        return over_chunks(self, "decode_chunk", latents, cache, 1, self.config.time_stride)

    def moments(self, pixels: Array) -> tuple[Array, Array]:
        """Posterior of the latents, not normalised.

        Args:
          pixels: [b, 1 + 4k, 3, y, x] in [-1, 1]; y and x divide by 8.

        Returns:
          Mean and log-variance, each [b, 1 + k, c, y / 8, x / 8] f32.

        Raises:
          InputError: the shape does not fit.
        """
        _check_pixels(self.config, pixels.shape)
        both, _ = over_chunks(self, "encode_chunk", pixels, None, self.config.time_stride, 1)
        mu, logvar = jnp.split(both, 2, axis=2)
        return mu, logvar

    def encode(self, pixels: Array) -> Array:
        """Normalised latents [b, 1 + k, c, y / 8, x / 8] f32: the mean of `moments`, no sampling."""
        return self._normalise(self.moments(pixels)[0])

    def decode(self, latents: Array) -> Array:
        """Pixels [b, 1 + 4(f - 1), 3, 8y, 8x] in the compute dtype, not clamped (see `clamp`).

        Args:
          latents: [b, f, c, y, x], normalised.

        Raises:
          InputError: the shape does not fit.
        """
        check_latents(self.config, latents.shape)
        return self.decode_frames(latents, None)[0]


def over_chunks(
    model: nn.Module, method: str, x: Array, cache: Cache, rate: int, made: int
) -> tuple[Array, Cache]:
    """Run a chunk method over a video or the rest of one: [b, frames in, ...] -> [b, frames out, ...].

    A video's first frame is a chunk, and then each `rate` frames, which make `made`. Results are
    written in place into one buffer in its final layout: stacked outputs of the scan would be
    transposed, in a second copy of the video.
    """
    chunk = getattr(model, method)
    size = rate if cache is not None else 1
    y, cache = chunk(x[:, :size], cache)
    steps = (x.shape[1] - size) // rate
    if not steps:
        return y, cache

    def body(model: nn.Module, carry: tuple[Cache, Array], step: Array) -> tuple[Any, None]:
        cache, out = carry
        part = jax.lax.dynamic_slice_in_dim(x, size + step * rate, rate, axis=1)
        part, cache = getattr(model, method)(part, cache)
        start = y.shape[1] + step * part.shape[1]
        return (cache, jax.lax.dynamic_update_slice_in_dim(out, part, start, axis=1)), None

    scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False})
    rest = ((0, 0), (0, steps * made)) + ((0, 0),) * (y.ndim - 2)
    (cache, out), _ = scan(model, (cache, jnp.pad(y, rest)), jnp.arange(steps))
    return out, cache


def _check_pixels(config: VAEConfig, shape: tuple[int, ...]) -> None:
    if len(shape) != 5 or shape[2] != 3:
        raise InputError(
            f"pixels have shape {shape}; expected [b, f, 3, y, x]. "
            "Add a batch or frame axis of 1, or move the colours to axis 2."
        )
    space, time = config.space_stride, config.time_stride
    if shape[3] % space or shape[4] % space:
        raise InputError(
            f"frames of {shape[3]} x {shape[4]} pixels; rows and columns must divide by {space}. "
            f"Crop or resize to {shape[3] // space * space} x {shape[4] // space * space}."
        )
    if (shape[1] - 1) % time:
        raise InputError(
            f"{shape[1]} pixel frames; a video must have 1 + {time}k frames. "
            f"Drop the last {(shape[1] - 1) % time}."
        )


def check_latents(config: Any, shape: tuple[int, ...]) -> None:
    """Refuses latents that are not [b, f, c, y, x] with the channels of a config."""
    if len(shape) != 5 or shape[2] != config.channels or not shape[1]:
        raise InputError(
            f"latents have shape {shape}; expected [b, f, {config.channels}, y, x] with f >= 1. "
            "Channels are axis 2, after the frames."
        )


def init_params(config: VAEConfig, key: Array) -> Any:
    """Random parameters, f32, boxed with their logical axes (`flax.linen.meta.unbox` opens them)."""
    side = 2 * config.space_stride
    pixels = jax.ShapeDtypeStruct((1, 1 + config.time_stride, 3, side, side), jnp.float32)
    return drawn(jax.eval_shape(WanVAE(config).init, key, pixels)["params"], key)


def drawn(shapes: Any, key: Array) -> Any:
    """Random parameters of these shapes: the distribution is that of `init`, but from one draw.

    A program with a draw for each kernel takes longer to compile than everything else here together.
    """

    @jax.jit
    def draw(key: Array) -> Any:
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        # Without the barrier the compiler draws it anew inside every slice.
        noise = jax.lax.optimization_barrier(jax.random.normal(key, (size,)))
        start = 0

        def leaf(path: Any, shape: Any) -> Array:
            nonlocal start
            start += shape.size
            name = jax.tree_util.keystr(path)
            if "kernel" in name:
                part = noise[start - shape.size : start].reshape(shape.shape)
                return part * (shape.size // shape.shape[-1]) ** -0.5
            return (jnp.ones if "scale" in name else jnp.zeros)(shape.shape)

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw(key)


def clamp(pixels: Array) -> Array:
    """Pixels in [-1, 1], f32, as they are shown or stored."""
    return jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0)
