"""Wan's VAE over frames, and the tiny decoder in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import records
from oneforcing_jax.families.codec import Call
from oneforcing_jax.models import tiny_decoder, vae, vae_stream
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.vae import WanVAE
from oneforcing_jax.models.vae_layers import VAEConfig

# How the mesh splits videos [b, f, y, x, 3], latents [b, f, c, y, x], and what a decoder keeps [b, y, x, c].
_VIDEO = ("batch", None, None, "columns", None)
_LATENTS = ("batch", None, None, None, "columns")
_KEPT = ("batch", None, "columns", None)


class WanCodec:
    """The Wan VAE over uint8 frames.

    Args:
      config, params: of the VAE.
      fingerprint: of their source.
      decoder: config and parameters of the tiny decoder, where that decodes and not the VAE.

    It follows the mesh of its weights: videos of a batch are split over `data` and `fsdp`, columns of
    the frames over `sequence`, each where the sizes allow it.
    """

    dtype: ClassVar[str] = "float16"

    def __init__(
        self,
        config: VAEConfig,
        params: Any,
        fingerprint: str = "",
        decoder: tuple[vae_stream.DecoderConfig, Any] | None = None,
    ) -> None:
        self.config, self.params, self._fingerprint = config, params, fingerprint
        self.decoder = decoder or (config, params)
        model = WanVAE(config)

        @jax.jit
        def encode(params: Any, video: jax.Array) -> jax.Array:
            pixels = jnp.moveaxis(video, -1, 2).astype(jnp.float32) / 127.5 - 1
            latents: Any = model.apply({"params": params}, pixels, method="encode")
            return latents

        @jax.jit
        def decode(params: Any, state: vae_stream.StreamState, latents: jax.Array) -> Any:
            pixels, state = vae_stream.decode_step(params, state, latents)
            shown = jnp.round((vae.clamp(pixels) + 1) * 127.5).astype(jnp.uint8)
            return jnp.moveaxis(shown, 2, -1), state

        self._encode, self._decode = encode, decode

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.config.channels

    def latent_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """The latent's (f, c, y, x) of a video of these sizes in pixels.

        Raises:
          InputError: sizes that the strides do not divide.
        """
        time, space = self.config.time_stride, self.config.space_stride
        if (frames - 1) % time or rows % space or columns % space:
            raise InputError(
                f"expected 1 + a multiple of {time} frames and sizes that {space} divides, found "
                f"{frames} frames of {rows}x{columns}; choose the nearest"
            )
        return 1 + (frames - 1) // time, self.channels, rows // space, columns // space

    def video_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, rows and columns in pixels of a latent of these sizes."""
        time, space = self.config.time_stride, self.config.space_stride
        return 1 + time * (frames - 1), space * rows, space * columns

    def encode(self, video: np.ndarray | jax.Array) -> jax.Array:
        """uint8 [..., f, y, x, 3] to float32 [..., f, c, y, x]."""
        batch = jnp.asarray(video).reshape(-1, *video.shape[-4:])
        with jax.set_mesh(self._mesh):
            latents = self._encode(self.params, self._share_out(batch, _VIDEO))
        return latents.reshape(*video.shape[:-4], *latents.shape[1:])

    def stream(self) -> Callable[[jax.Array], jax.Array]:
        """A decoder of one video: latents [b, n, c, y, x] to its next frames, uint8 [b, m, y, x, 3]."""
        state: vae_stream.StreamState | None = None
        config, params = self.decoder

        def decode(latents: jax.Array) -> jax.Array:
            nonlocal state
            if state is None:
                batch, _, _, rows, columns = latents.shape
                state = vae_stream.init_stream(config, batch, rows, columns)
            with jax.set_mesh(self._mesh):
                pixels, state = self._decode(params, state, self._share_out(latents, _LATENTS))
            return pixels

        return decode

    def programs(
        self, work: Literal["encode", "decode"], shape: tuple[int, int, int, int], mesh: Mesh
    ) -> list[Call]:
        """An encode of a whole clip; or the first step of a decode and the others, a latent frame each."""
        frames, channels, rows, columns = shape
        if work == "encode":
            params = _abstract(self.config, mesh)
            video = (1, *self.video_shape(frames, rows, columns), 3)
            pixels = _laid(mesh, jax.ShapeDtypeStruct(video, jnp.uint8), _VIDEO)
            return [Call("clip", 1, self._encode, (params, pixels), mesh, params)]
        config = self.decoder[0]
        params = _abstract(config, mesh)
        one = jax.ShapeDtypeStruct((1, 1, channels, rows, columns), jnp.float32)
        latents = _laid(mesh, one, _LATENTS)
        state: Any = vae_stream.init_stream(config, 1, rows, columns)
        found = []
        for name, runs in (("first step", 1), ("steady step", frames - 1)):
            arguments = (params, state, latents)
            found.append(Call(name, runs, self._decode, arguments, mesh, (params, state)))
            with jax.set_mesh(mesh):
                after = jax.eval_shape(self._decode, *arguments)[1]
            state = jax.tree.map(functools.partial(_laid, mesh, axes=_KEPT), after)
        return found

    @property
    def _mesh(self) -> Any:
        return jax.tree.leaves(self.decoder[1])[0].sharding.mesh

    def _share_out(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """An array on the devices of the weights, split by the axes that their mesh divides."""
        mesh = self._mesh
        return jax.device_put(x, sharding.named(mesh, sharding.dividing(mesh, x.shape, axes)))

    def digest(self) -> str:
        """A short fingerprint of the weights' source."""
        return self._fingerprint


def _laid(mesh: Mesh, x: Any, axes: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
    """An abstract array, split by the axes that the mesh divides."""
    place = sharding.named(mesh, sharding.dividing(mesh, x.shape, axes))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _abstract(config: vae_stream.DecoderConfig, mesh: Mesh) -> Any:
    """Abstract parameters in the compute dtype, whole on every device."""
    tiny = isinstance(config, TinyDecoderConfig)
    init: Any = tiny_decoder.init_params if tiny else vae.init_params
    shapes = sharding.unbox(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    place = sharding.named(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.dtype, sharding=place), shapes
    )


def tiny(folder: Path, mesh: Any, dtype: Any, codec: VAEConfig) -> tuple[Any, Any]:
    """Config and parameters of the tiny decoder for the latents of a VAE; see `net`.

    Raises:
      MissingInput, InputError: there is none, or one for other latents.
    """
    name = f"taew2_{2 if codec.shortcuts else 1}.pth"
    if not (folder / records.MODEL).is_file():
        raise MissingInput(
            f"decoder: expected {folder} as tools/convert_wan.py makes it, found none; run it with "
            f"--source {name} --out {folder.parent}"
        )
    config, params, _ = records.net(
        folder, mesh, TinyDecoderConfig, tiny_decoder.init_params, dtype
    )
    expected, found = ((c.channels, c.time_stride, c.space_stride) for c in (codec, config))
    if expected != found:
        raise InputError(
            f"decoder: expected {folder} to take latents of {expected[0]} channels with strides "
            f"{expected[1:]} as the VAE does, found {found[0]} and {found[1:]}; convert {name}"
        )
    return config, params
