"""Turns pixels and prompts into what the networks see, and back: Wan's VAE and UMT5, or a folder's own kind.

codec, text, negative = load("weights")          # what tools/convert_wan.py wrote
latents = codec.encode(video)                     # uint8 [f, y, x, 3] -> [f, c, y, x]
embedding = text.encode("a cat")                  # [n, d], without padding
decode = codec.stream()                           # a decoder that carries its state
for block in student.stream(...):
    show(decode(block))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import sharding
from oneforcing_jax.convert import sizes
from oneforcing_jax.convert.sizes import MODEL, TOKENIZER
from oneforcing_jax.data import converted, text
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.models import umt5, vae, vae_stream
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae import WanVAE
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup import parts
from oneforcing_jax.system import places
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.system.files import record as record_of

# Decoders that take the place of the codec's own.
DECODERS = ("tiny",)
# In a store this file names the folder of the encoders that filled it. In a folder of encoders it names their
# kind, the dotted path of a module with a function `load` like the one here; without it they are Wan's.
ENCODERS = "encoders.json"


class Codec(Protocol):
    """Videos to latents and back. `dtype` is what a store keeps of its latents."""

    dtype: ClassVar[str]

    @property
    def channels(self) -> int:
        """Channels of a latent."""

    def latent_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """The latent's (f, c, y, x) of a video of these sizes in pixels."""

    def video_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, rows and columns in pixels of a latent of these sizes."""

    def encode(self, video: np.ndarray | jax.Array) -> jax.Array:
        """uint8 [..., f, y, x, 3] to float32 [..., f, c, y, x]."""

    def stream(self) -> Callable[[jax.Array], jax.Array]:
        """A decoder of one video: latents [b, n, c, y, x] to its next frames, uint8 [b, m, y, x, 3]."""

    def digest(self) -> str:
        """A short fingerprint: codecs with equal digests give equal latents."""


class TextEncoder(Protocol):
    """Prompts to embeddings. `dtype` is what a store keeps of them."""

    dtype: ClassVar[str]

    @property
    def length(self) -> int:
        """The most tokens a prompt may have."""

    @property
    def dim(self) -> int:
        """Width of an embedding."""

    def encode(self, prompt: str) -> np.ndarray:
        """Embedding [n, dim] of a prompt, without padding; InputError if it is too long."""

    def check(self, prompt: str) -> None:
        """Refuses what `encode` would, at less cost."""

    def digest(self) -> str:
        """A short fingerprint: encoders with equal digests give equal embeddings."""


class Encoders(NamedTuple):
    """What `load` found, and the negative prompt that belongs to it."""

    codec: Codec
    text: TextEncoder
    negative: str


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
        axes = ("batch", None, None, "columns", None)
        with jax.set_mesh(self._mesh):
            latents = self._encode(self.params, self._share_out(batch, axes))
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
            axes = ("batch", None, None, None, "columns")
            with jax.set_mesh(self._mesh):
                pixels, state = self._decode(params, state, self._share_out(latents, axes))
            return pixels

        return decode

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


class WanText:
    """The UMT5 encoder with its tokenizer and the original's cleaning of prompts."""

    dtype: ClassVar[str] = "bfloat16"

    def __init__(
        self,
        config: UMT5Config,
        params: Any,
        tokenizer: Any,
        length: int = text.MAX_TOKENS,
        fingerprint: str = "",
    ) -> None:
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.length, self._fingerprint = length, fingerprint

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.width

    def encode(self, prompt: str) -> np.ndarray:
        """Embedding [n, dim] of a prompt, without padding.

        Raises:
          InputError: a prompt of more than `length` tokens.
        """
        embeddings, _ = text.embed_prompts(
            self.config, self.params, self.tokenizer, [prompt], self.length
        )
        return embeddings[0]

    def digest(self) -> str:
        """A short fingerprint of the weights' source."""
        return self._fingerprint

    def check(self, prompt: str) -> None:
        """Refuses what `encode` would, without the transformer."""
        text.tokenize(self.tokenizer, [prompt], self.length)


def load(
    folder: str | Path,
    text_len: int = text.MAX_TOKENS,
    dtype: Any = None,
    mesh: Any = None,
    decoder: str | None = None,
    weights: bool = True,
) -> Encoders:
    """The encoders in a folder.

    Args:
      folder: what tools/convert_wan.py wrote (`vae/` and `text/` in it); encoders of another kind; or a
        store, which knows the encoders that filled it.
      text_len: the most tokens of a prompt, where the encoder does not fix it.
      dtype: of the VAE's arithmetic; None: as its weights are stored.
      mesh: over which Wan's VAE splits videos and their columns; None: all devices, a video each.
      decoder: of `DECODERS`, for Wan's latents; None: the codec's own.
      weights: read Wan's, which takes a minute; without them there are sizes and digests alone.

    Raises:
      MissingInput, InputError: nothing of the kind there, or damaged.
    """
    if decoder not in (None, *DECODERS):
        raise InputError(f"decoder: expected one of {', '.join(DECODERS)}, found {decoder!r}")
    folder = places.path(folder)
    said = _said(folder)
    if "folder" in said:
        folder = places.normal(places.within(folder, said["folder"]))
        said = _said(folder)
    if "kind" in said:
        if decoder:
            raise InputError(
                f"decoder: expected Wan's latents, which {decoder} is for, found encoders of "
                f"{said['kind']} in {folder}; leave it out"
            )
        return _of_kind(folder, str(said["kind"]), text_len, dtype, mesh)
    if not (folder / "vae" / MODEL).is_file() or not (folder / "text" / MODEL).is_file():
        raise MissingInput(
            f"no encoders in {folder}: expected vae/ and text/ as tools/convert_wan.py writes them, "
            f"or an {ENCODERS} that says their kind; give the folder that holds them"
        )
    if not weights:
        return _outlines(folder, text_len, decoder)
    every = _mesh(converted.described(folder / "text", UMT5Config))
    config, params, fingerprint = converted.net(
        folder / "vae", mesh or every, VAEConfig, vae.init_params, dtype
    )
    tiny = converted.tiny(folder / decoder, mesh or every, dtype, config) if decoder else None
    codec = WanCodec(config, params, fingerprint, tiny)
    sizes.verify(folder / "text", TOKENIZER)
    tokenizer = text.load_tokenizer(folder / "text" / TOKENIZER)
    config, params, fingerprint = converted.net(
        folder / "text", every, UMT5Config, umt5.init_params
    )
    encoder = WanText(config, params, tokenizer, text_len, fingerprint)
    return Encoders(codec, encoder, text.NEGATIVE_PROMPT)


def _of_kind(folder: Path, kind: str, text_len: int, dtype: Any, mesh: Any) -> Encoders:
    """Encoders that a folder says to be of another kind than Wan's."""
    file = folder / ENCODERS
    load: Any = parts.find(kind, __package__, "load", Callable, file)  # type: ignore[arg-type]
    # Other modules of ours have a function of that name, which loads something else.
    if parts.is_ours(kind) and parts.find(kind, __package__, "KIND", str, file) != kind:
        raise InputError(f"{file}: expected a kind of encoders, found {kind!r}; restore the file")
    found: Encoders = load(folder, text_len, dtype, mesh)
    return found


def _outlines(folder: Path, text_len: int, decoder: str | None) -> Encoders:
    """Wan's encoders without weights; the digest of the codec is also that of its decoder."""
    vae_config = converted.described(folder / "vae", VAEConfig)
    text_config = converted.described(folder / "text", UMT5Config)
    both = [converted.fingerprint(folder / part) for part in ("vae", decoder) if part]
    codec = WanCodec(cast(VAEConfig, vae_config), None, "+".join(both))
    words = converted.fingerprint(folder / "text")
    encoder = WanText(cast(UMT5Config, text_config), None, None, text_len, words)
    return Encoders(codec, encoder, text.NEGATIVE_PROMPT)


def _said(folder: Path) -> dict[str, str]:
    file = folder / ENCODERS
    said: dict[str, str] = read_record(file) if file.is_file() else {}
    return said


def are_in(folder: Path) -> bool:
    """Whether a folder holds encoders, or is a store that knows its own."""
    return (folder / ENCODERS).is_file() or (folder / "vae").exists()


def say_kind(folder: str | Path, kind: str) -> None:
    """Notes in a folder of encoders what kind they are: the dotted path of the module that loads them."""
    write_whole(places.path(folder) / ENCODERS, record_of({"kind": kind}))


def record(store: str | Path, folder: str | Path) -> None:
    """Notes in a store where its encoders are, by a path that holds when both are moved."""
    inner = places.relative(places.path(folder), places.path(store))
    write_whole(places.path(store) / ENCODERS, record_of({"folder": inner}))


def _mesh(config: Any) -> Any:
    """All devices of this process, as far as they divide the width of the text encoder."""
    devices = jax.local_devices()
    count = math.gcd(len(devices), config.width)
    return sharding.make_mesh({"fsdp": count}, devices[:count])
