"""What the codec and the text encoder of a family are, whichever family it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from oneforcing_jax.errors import InputError


class Call(NamedTuple):
    """One compiled program, and the shapes that it is called with.

    Attributes:
      name: what it does, in plans.
      runs: how often, of one clip or prompt.
      call: the jitted function.
      arguments: abstract, each with its place on the mesh.
      mesh: of its devices.
      state: those arguments that stay on the devices, such as parameters.
    """

    name: str
    runs: int
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    mesh: Mesh
    state: Any


class Codec(Protocol):
    """Videos to latents and back. `dtype` is what a store keeps of its latents."""

    dtype: ClassVar[str]

    @property
    def channels(self) -> int:
        """Channels of a latent."""

    def latent_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """The latent's (f, c, y, x) of a video of these sizes in pixels; InputError: none is so."""

    def video_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, rows and columns in pixels of a latent of these sizes."""

    def encode(self, video: np.ndarray | jax.Array) -> jax.Array:
        """uint8 [..., f, y, x, 3] to float32 [..., f, c, y, x]."""

    def stream(self) -> Callable[[jax.Array], jax.Array]:
        """A decoder of one video: latents [b, n, c, y, x] to its next frames, uint8 [b, m, y, x, 3]."""

    def programs(
        self, work: Literal["encode", "decode"], shape: tuple[int, int, int, int], mesh: Mesh
    ) -> list[Call]:
        """The programs that `encode` runs for one clip, or `stream` for its latents frame by frame.

        Args:
          work: which of the two.
          shape: (f, c, y, x) of the latents.
          mesh: of the devices.
        """

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

    def programs(self, devices: Sequence[Any]) -> list[Call]:
        """The programs that `encode` runs for the longest prompt, its weights over the devices."""

    def digest(self) -> str:
        """A short fingerprint: encoders with equal digests give equal embeddings."""


@runtime_checkable
class Waiting(Protocol):
    """A text encoder that reads its weights when they are first needed, and may have them on the host."""

    def ready(self) -> None:
        """Reads them now."""

    def on_host(self) -> TextEncoder:
        """The same, whose weights will lie in the memory of the host."""


class Encoders(NamedTuple):
    """What a folder holds, and the negative prompt that belongs to it."""

    codec: Codec
    text: TextEncoder
    negative: str


def pad(embedding: np.ndarray, length: int) -> np.ndarray:
    """An embedding [n, d] with zero rows up to `length`, as the networks read it."""
    return np.pad(embedding, ((0, length - len(embedding)), (0, 0)))


def pad_embeddings(embeddings: Sequence[np.ndarray], length: int) -> jax.Array:
    """Context of the diffusion model, [b, length, d]: zero past each prompt's end.

    Raises:
      InputError: there is no embedding, or one is longer than `length`.
    """
    longest = max((len(embedding) for embedding in embeddings), default=0)
    if not embeddings or longest > length:
        raise InputError(
            f"{len(embeddings)} embeddings, the longest of {longest} tokens, cannot be padded to "
            f"{length}; give at least one, and a length that holds the longest."
        )
    return jnp.asarray(np.stack([pad(row, length) for row in embeddings]))
