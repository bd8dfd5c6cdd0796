"""The Wan2.1 video VAE: pixels <-> latents, whole or as a stream.

Public arrays are [b, f, c, y, x]: pixels in [-1, 1] (c = 3) and latents normalised by channel. 1 + 4k
pixel frames are 1 + k latent frames, and 8 x 8 pixels one latent position. The network is causal in
time, so a whole encode or decode is the stream run to its end: a scan over chunks of frames that
carries what each layer keeps of the past. Its working memory does not depend on the video's length.

    model = WanVAE(config)
    params = flax.linen.meta.unbox(init_params(config, key))
    latents = model.apply({"params": params}, pixels, method="encode")
    pixels = clamp(model.apply({"params": params}, latents, method="decode"))

    step = jax.jit(decode_step)    # two programs: the first call, and the rest
    state = init_stream(config, batch, latent_y, latent_x)
    pixels, state = step(params, state, latents[:, :1])    # 1 frame
    pixels, state = step(params, state, latents[:, 1:2])   # 4 frames
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.vae_layers import (
    Array,
    Cache,
    CausalConv,
    Downsample,
    FrameAttention,
    Frames,
    Norm,
    Pointwise,
    ResBlock,
    Upsample,
    VAEConfig,
    placed,
)

__all__ = [
    "StreamState",
    "VAEConfig",
    "WanVAE",
    "clamp",
    "decode_step",
    "decode_tiled",
    "init_params",
    "init_stream",
]


def _middle(config: VAEConfig, x: Frames, past: Cache, new: dict[str, Cache]) -> Frames:
    """Residual block, attention, residual block; adds what they keep to `new`."""
    c = x[0].shape[-1]
    x, new["mid_0"] = ResBlock(config, c, name="mid_0")(x, past.get("mid_0"))
    attention = FrameAttention(config, name="mid_attention")
    x = tuple(attention(frame) for frame in x)
    x, new["mid_1"] = ResBlock(config, c, name="mid_1")(x, past.get("mid_1"))
    return x


class Encoder(nn.Module):
    """A chunk of frames [b, y, x, 3], 1 or 4, to one [b, y / 8, x / 8, 2 channels]."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Frames, cache: Cache) -> tuple[Frames, Cache]:
        config, past = self.config, cache or {}
        new: dict[str, Cache] = {}
        x, new["conv_in"] = CausalConv(config, config.width, name="conv_in")(x, past.get("conv_in"))
        for i, multiplier in enumerate(config.multipliers):
            for j in range(config.blocks):
                name = f"stage_{i}_block_{j}"
                block = ResBlock(config, config.width * multiplier, name=name)
                x, new[name] = block(x, past.get(name))
            if i < len(config.time_downsample):
                name = f"stage_{i}_down"
                down = Downsample(config, config.time_downsample[i], name=name)
                x, new[name] = down(x, past.get(name))
        x = _middle(config, x, past, new)
        norm = Norm(config.dtype, name="norm_out")
        x = tuple(nn.silu(norm(frame)) for frame in x)
        head = CausalConv(config, 2 * config.channels, name="conv_out")
        x, new["conv_out"] = head(x, past.get("conv_out"))
        return x, new


class Decoder(nn.Module):
    """A frame [b, y, x, channels] to frames [b, 8 y, 8 x, 3]: 1 of a video's first, else 4."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Frames, cache: Cache) -> tuple[Frames, Cache]:
        config, past = self.config, cache or {}
        new: dict[str, Cache] = {}
        widths = [config.width * m for m in reversed(config.multipliers)]
        x, new["conv_in"] = CausalConv(config, widths[0], name="conv_in")(x, past.get("conv_in"))
        x = _middle(config, x, past, new)
        for i, width in enumerate(widths):
            for j in range(config.blocks + 1):
                name = f"stage_{i}_block_{j}"
                x, new[name] = ResBlock(config, width, name=name)(x, past.get(name))
            if i < len(config.time_downsample):
                name = f"stage_{i}_up"
                up = Upsample(config, config.time_downsample[-1 - i], name=name)
                x, new[name] = up(x, past.get(name))
        norm = Norm(config.dtype, name="norm_out")
        x = tuple(nn.silu(norm(frame)) for frame in x)
        x, new["conv_out"] = CausalConv(config, 3, name="conv_out")(x, past.get("conv_out"))
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
        x = jnp.moveaxis(pixels.astype(self.config.dtype), 2, -1)
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
        return jnp.stack([jnp.moveaxis(frame, -1, 1) for frame in frames], axis=1), cache

    def decode_frames(self, latents: Array, cache: Cache) -> tuple[Array, Cache]:
        """`decode` of the next latent frames [b, n, c, y, x]; the cache is as for `decode_chunk`."""
        return _over_chunks(self, "decode_chunk", latents, cache, 1, self.config.time_stride)

    def moments(self, pixels: Array) -> tuple[Array, Array]:
        """Posterior of the latents, not normalised.

        Args:
          pixels: [b, 1 + 4k, 3, y, x] in [-1, 1]; y and x divide by 8.

        Returns:
          Mean and log-variance, each [b, 1 + k, c, y / 8, x / 8] f32.

        Raises:
          ValueError: the shape does not fit.
        """
        _check_pixels(self.config, pixels.shape)
        both, _ = _over_chunks(self, "encode_chunk", pixels, None, self.config.time_stride, 1)
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
          ValueError: the shape does not fit.
        """
        _check_latents(self.config, latents.shape)
        return self.decode_frames(latents, None)[0]


def _over_chunks(
    model: WanVAE, method: str, x: Array, cache: Cache, rate: int, made: int
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

    def body(model: WanVAE, carry: tuple[Cache, Array], step: Array) -> tuple[Any, None]:
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


def _check_latents(config: VAEConfig, shape: tuple[int, ...]) -> None:
    if len(shape) != 5 or shape[2] != config.channels or not shape[1]:
        raise InputError(
            f"latents have shape {shape}; expected [b, f, {config.channels}, y, x] with f >= 1. "
            "Channels are axis 2, after the frames."
        )


def init_params(config: VAEConfig, key: Array) -> Any:
    """Random parameters, f32, boxed with their logical axes (`flax.linen.meta.unbox` opens them).

    The distribution is that of `WanVAE.init`, from one draw: a draw for each of the kernels, in one
    program, takes longer to compile than everything else here together.
    """
    side = 2 * config.space_stride
    pixels = jax.ShapeDtypeStruct((1, 1 + config.time_stride, 3, side, side), jnp.float32)
    shapes = jax.eval_shape(WanVAE(config).init, key, pixels)["params"]

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


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cache"], meta_fields=["config", "size"]
)
@dataclasses.dataclass(frozen=True)
class StreamState:
    """Where a streaming decode stands.

    Attributes:
      cache: what each layer of the decoder keeps of the past; None before the first latent frame, so
        that under `jit` the first call and the later ones are two programs.
      config: of the VAE; static.
      size: videos, latent rows and columns; static.
    """

    cache: Cache
    config: VAEConfig
    size: tuple[int, int, int]


def init_stream(
    config: VAEConfig, batch: int, latent_y: int, latent_x: int, dtype: Any = None
) -> StreamState:
    """The state of a decode that has seen nothing.

    Args:
      config: of the VAE.
      batch: videos decoded side by side.
      latent_y, latent_x: latent rows and columns.
      dtype: compute dtype of the stream, `config.dtype` where it is None.
    """
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    return StreamState(None, config, (batch, latent_y, latent_x))


def decode_step(params: Any, state: StreamState, latents: Array) -> tuple[Array, StreamState]:
    """Decode the next latent frames of a stream.

    The calls together give what one `decode` gives, however the frames are shared out among them.

    Args:
      params: of `WanVAE`.
      state: from `init_stream` or the call before. It may be donated, which saves its memory; but as
        its frames are read while new ones are written, the compiler then copies those once more.
      latents: [b, n, c, y, x], normalised; any n, a new n is a new program under `jit`.

    Returns:
      Pixels [b, m, 3, 8y, 8x], not clamped, and the next state. m = 4n, but 1 + 4(n - 1) in the
      first call.

    Raises:
      ValueError: the latents do not fit the stream.
    """
    config = state.config
    _check_latents(config, latents.shape)
    found = (latents.shape[0], *latents.shape[3:])
    if found != state.size:
        raise InputError(
            f"latents have batch, rows, columns {found}, but the stream was made for "
            f"{state.size}. Start a stream of the right size with init_stream."
        )
    pixels, cache = WanVAE(config).apply(
        {"params": params}, latents, state.cache, method="decode_frames"
    )
    return pixels, StreamState(cache, config, state.size)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles that cover `size`; the last ends at the edge."""
    return [*range(0, size - tile, tile - overlap), size - tile]


def decode_tiled(
    config: VAEConfig,
    params: Any,
    latents: Array,
    tile: tuple[int, int] = (32, 32),
    overlap: int = 8,
) -> Array:
    """Decode frame by tile, for frames whose whole decode does not fit in memory.

    Not equal to `decode`: a tile does not see beyond its border, and the middle attention sees one
    tile. Tiles fade into each other over the middle half of the overlap. One tile is decoded at a
    time, all by one program.

    Args:
      config: of the VAE.
      params: of `WanVAE`.
      latents: [b, f, c, y, x], normalised.
      tile: latent rows and columns of a tile; a frame smaller than that is one tile.
      overlap: latent positions that neighbours share; best at most half the tile.

    Returns:
      Pixels [b, 1 + 4(f - 1), 3, 8y, 8x] f32, not clamped.

    Raises:
      ValueError: the shape does not fit, or the overlap is not smaller than the tile.
    """
    _check_latents(config, latents.shape)
    b, f, _, rows, columns = latents.shape
    ty, tx = min(tile[0], rows), min(tile[1], columns)
    if min(ty, tx) < 1 or not 0 <= overlap < min(ty, tx):
        raise InputError(
            f"tiles of {ty} x {tx} latent positions with an overlap of {overlap}; "
            "choose an overlap of at least 0 that is smaller than the tile."
        )
    corners = [(y, x) for y in _starts(rows, ty, overlap) for x in _starts(columns, tx, overlap)]
    stride = config.space_stride

    def fade(size: int) -> np.ndarray:
        # The outer quarter of an overlap is the tile that sees least of its surroundings: nearly no
        # weight, but some, for at the border of the frame there is no other tile.
        position = np.arange(size * stride) + 0.5
        border = np.minimum(position, size * stride - position) / max(overlap * stride, 0.5)
        return np.clip(2 * border - 0.5, 1e-3, 1.0).astype(np.float32)

    weight = fade(ty)[:, None] * fade(tx)
    total = np.zeros((rows * stride, columns * stride), np.float32)
    for y, x in corners:
        total[y * stride :, x * stride :][: ty * stride, : tx * stride] += weight

    def body(out: Array, corner: Array) -> tuple[Array, None]:
        y, x = corner[0], corner[1]
        part = jax.lax.dynamic_slice(latents, (0, 0, 0, y, x), (b, f, config.channels, ty, tx))
        pixels = cast(Array, WanVAE(config).apply({"params": params}, part, method="decode"))
        at = (0, 0, 0, y * stride, x * stride)
        below = jax.lax.dynamic_slice(out, at, pixels.shape)
        return jax.lax.dynamic_update_slice(out, below + weight * pixels, at), None

    frames = 1 + config.time_stride * (f - 1)
    out = jnp.zeros((b, frames, 3, *total.shape), jnp.float32)
    out, _ = jax.lax.scan(body, out, jnp.asarray(corners))
    return out / total
