"""The decoder of a Wan VAE, or the tiny one, as a stream: latent frames in, pixel frames out.

step = jax.jit(decode_step)    # two programs: the first call, and the rest
state = init_stream(config, batch, latent_y, latent_x)
pixels, state = step(params, state, latents[:, :1])    # 1 frame
pixels, state = step(params, state, latents[:, 1:2])   # 4 frames
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from oneforcing_jax.errors import InputError
from oneforcing_jax.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from oneforcing_jax.models.vae import WanVAE, check_latents
from oneforcing_jax.models.vae_convolutions import Array, Cache
from oneforcing_jax.models.vae_layers import VAEConfig

DecoderConfig = VAEConfig | TinyDecoderConfig


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["cache"], meta_fields=["config", "size"]
)
@dataclasses.dataclass(frozen=True)
class StreamState:
    """Where a streaming decode stands.

    Attributes:
      cache: what each layer of the decoder keeps of the past; None before the first latent frame, so
        that under `jit` the first call and the later ones are two programs.
      config: of the VAE, or of the tiny decoder; static.
      size: videos, latent rows and columns; static.
    """

    cache: Cache
    config: DecoderConfig
    size: tuple[int, int, int]


def init_stream(
    config: DecoderConfig, batch: int, latent_y: int, latent_x: int, dtype: Any = None
) -> StreamState:
    """The state of a decode that has seen nothing.

    Args:
      config: of the VAE, or of the tiny decoder.
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
      params: of the network with the stream's config.
      state: from `init_stream` or the call before. It may be donated, which saves its memory; but as
        its frames are read while new ones are written, the compiler then copies those once more.
      latents: [b, n, c, y, x], normalised; any n, a new n is a new program under `jit`.

    Returns:
      Pixels [b, m, 3, 8y, 8x], not clamped, and the next state. m = 4n, but 1 + 4(n - 1) in the
      first call.

    Raises:
      InputError: the latents do not fit the stream.
    """
    config = state.config
    check_latents(config, latents.shape)
    found = (latents.shape[0], *latents.shape[3:])
    if found != state.size:
        raise InputError(
            f"latents have batch, rows, columns {found}, but the stream was made for "
            f"{state.size}. Start a stream of the right size with init_stream."
        )
    net = TinyDecoder(config) if isinstance(config, TinyDecoderConfig) else WanVAE(config)
    pixels, cache = net.apply({"params": params}, latents, state.cache, method="decode_frames")
    return pixels, StreamState(cache, config, state.size)
