"""A linear codec between pixels and latents: PCA of the patches of single frames.

Each latent channel has mean zero and deviation one over the frames it was fitted on, as diffusion
wants it. Time is not compressed, so a codec serves any number of frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families.codec import Call
from oneforcing_jax.system import bounded, places
from oneforcing_jax.system.files import write_whole

# The fewest channels with which the default world keeps its shapes; see tests/test_toy_world.py.
CHANNELS = 12
# Its name in a folder of encoders.
FILE = "codec.npz"
PATCH = 4
# Latents below this deviation (of pixels in 0..1) are rounding noise blown up to deviation one.
LEAST_DEVIATION = 1e-3


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "analysis", "synthesis"],
    meta_fields=["patch"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """The arrays of a codec, a pytree; p = patch * patch * 3 values a patch, c channels.

    Attributes:
      mean: the mean patch, pixels in 0..1, float32 [p].
      analysis: patch to latent, float32 [p, c].
      synthesis: latent to patch, float32 [c, p].
      patch: rows and columns of a patch.
    """

    mean: np.ndarray | jax.Array
    analysis: np.ndarray | jax.Array
    synthesis: np.ndarray | jax.Array
    patch: int

    dtype: ClassVar[str] = "float32"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.synthesis.shape[0]

    def latent_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int, int]:
        """The latent's (f, c, y, x) of a video of these sizes in pixels.

        Raises:
          InputError: the patch does not divide the size.
        """
        _check_size(rows, columns, self.patch)
        return frames, self.channels, rows // self.patch, columns // self.patch

    def video_shape(self, frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """Frames, rows and columns in pixels of a latent of these sizes."""
        return frames, rows * self.patch, columns * self.patch

    def encode(self, video: np.ndarray | jax.Array) -> jax.Array:
        """uint8 [..., f, y, x, 3] to float32 [..., f, c, y/patch, x/patch]; works under `jit`.

        Raises:
          InputError: another shape or dtype, or sizes that the patch does not divide.
        """
        if video.dtype != jnp.uint8 or video.ndim < 4 or video.shape[-1] != 3:
            raise InputError(
                f"expected a video uint8 [..., f, y, x, 3], found {video.dtype} {list(video.shape)}"
            )
        patches = _to_patches(jnp.asarray(video).astype(jnp.float32) / 255, self.patch)
        latents = jnp.matmul(patches - self.mean, self.analysis, precision="highest")
        return jnp.moveaxis(latents, -1, -3)

    def decode(self, latents: np.ndarray | jax.Array) -> jax.Array:
        """float [..., f, c, y, x] to uint8 [..., f, patch*y, patch*x, 3]; works under `jit`.

        Raises:
          InputError: another rank or number of channels.
        """
        if latents.ndim < 4 or latents.shape[-3] != self.channels:
            raise InputError(
                f"expected latents [..., f, c={self.channels}, y, x], found {list(latents.shape)}"
            )
        values = jnp.moveaxis(jnp.asarray(latents).astype(jnp.float32), -3, -1)
        patches = jnp.matmul(values, self.synthesis, precision="highest") + self.mean
        pixels = _from_patches(patches, self.patch)
        return jnp.clip(jnp.round(pixels * 255), 0, 255).astype(jnp.uint8)

    def stream(self) -> Callable[[jax.Array], jax.Array]:
        """`decode`, which keeps nothing from frame to frame."""
        return self.decode

    def programs(
        self, work: Literal["encode", "decode"], shape: tuple[int, int, int, int], mesh: Mesh
    ) -> list[Call]:
        """A whole clip, either way."""
        place, (frames, _, rows, columns) = sharding.named(mesh), shape

        def abstract(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        pixels = jax.ShapeDtypeStruct((*self.video_shape(frames, rows, columns), 3), jnp.uint8)
        latents = jax.ShapeDtypeStruct(shape, jnp.float32)
        call, given = (Codec.encode, pixels) if work == "encode" else (Codec.decode, latents)
        codec = jax.tree.map(abstract, self)
        return [Call("clip", 1, jax.jit(call), (codec, abstract(given)), mesh, codec)]

    def digest(self) -> str:
        """A short fingerprint: codecs with equal digests give equal latents."""
        arrays = (self.mean, self.analysis, self.synthesis)
        content = b"".join(np.asarray(array).tobytes() for array in arrays)
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Writes one .npz file.

        Raises:
          InputError: the target cannot be written.
        """
        content = io.BytesIO()
        np.savez(
            content,
            mean=np.asarray(self.mean),
            analysis=np.asarray(self.analysis),
            synthesis=np.asarray(self.synthesis),
            patch=np.int32(self.patch),
        )
        write_whole(path, content.getvalue())


def load(path: str | Path) -> Codec:
    """Reads what `Codec.save` wrote.

    Raises:
      MissingInput: there is no such file.
      InputError: the file is no codec.
    """
    path = places.path(path)
    if not path.is_file():
        raise MissingInput(f"no codec at {path}; check the path")
    try:
        file = bounded.arrays(path)
        mean, analysis, synthesis, patch = (
            file[name] for name in ("mean", "analysis", "synthesis", "patch")
        )
        size, channels = int(patch) ** 2 * 3, len(synthesis)
        if not size or not channels or any(not np.isfinite(x).all() for x in file.values()):
            raise ValueError("no codec")
        shapes = [(size,), (size, channels), (channels, size)]
        if [array.shape for array in (mean, analysis, synthesis)] != shapes:
            raise ValueError("shapes of another codec")
        return Codec(mean, analysis, synthesis, int(patch))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: expected a codec (.npz), found another file; fit it again"
        ) from (None)


def fit(frames: np.ndarray, channels: int = CHANNELS, patch: int = PATCH) -> Codec:
    """Fits a codec in closed form.

    Args:
      frames: uint8 [n, y, x, 3].
      channels: latent channels, at most patch * patch * 3.
      patch: rows and columns of a patch.

    Raises:
      InputError: another shape or dtype, sizes that the patch does not divide, or frames with
        less variety than `channels` directions.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(
            f"expected frames uint8 [n, y, x, 3], found {frames.dtype} {list(frames.shape)}"
        )
    size = patch * patch * 3
    if not 1 <= channels <= size:
        raise InputError(f"expected 1..{size} channels for patches of {patch}, found {channels}")
    _check_size(frames.shape[1], frames.shape[2], patch)
    patches = np.asarray(_to_patches(jnp.asarray(frames, jnp.float32) / 255, patch), np.float64)
    patches = patches.reshape(-1, size)
    mean = patches.mean(0)
    variances, directions = np.linalg.eigh(np.cov(patches - mean, rowvar=False, bias=True))
    # eigh sorts upwards and leaves the signs open: make both the same on every machine.
    basis = directions[:, ::-1][:, :channels]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(channels)])
    deviations = np.sqrt(np.maximum(variances[::-1][:channels], 0))
    if deviations[-1] < LEAST_DEVIATION:
        varied = int((deviations >= LEAST_DEVIATION).sum())
        raise InputError(
            f"expected frames that vary in {channels} directions, found {varied}; pass more varied "
            "frames or fewer channels"
        )
    # Unit variance in all, as a diffusion model expects. The channels differ by the root of their
    # deviation: with equal ones, most of what there is to learn would be the finest detail.
    scale = np.sqrt(deviations) * np.sqrt(deviations.mean())
    return Codec(
        mean.astype(np.float32),
        (basis / scale).astype(np.float32),
        (basis * scale).T.astype(np.float32),
        patch,
    )


def _check_size(rows: int, columns: int, patch: int) -> None:
    if rows % patch or columns % patch or not rows or not columns:
        raise InputError(
            f"expected frames whose sizes {patch} divides, found {rows}x{columns}; resize or crop"
        )


def _to_patches(pixels: jax.Array, patch: int) -> jax.Array:
    """[..., y, x, 3] to [..., y/patch, x/patch, p]."""
    *lead, rows, columns, _ = pixels.shape
    _check_size(rows, columns, patch)
    cells = pixels.reshape(*lead, rows // patch, patch, columns // patch, patch, 3)
    return jnp.swapaxes(cells, -4, -3).reshape(*lead, rows // patch, columns // patch, -1)


def _from_patches(patches: jax.Array, patch: int) -> jax.Array:
    """[..., y, x, p] to [..., y*patch, x*patch, 3]."""
    *lead, rows, columns, _ = patches.shape
    cells = patches.reshape(*lead, rows, columns, patch, patch, 3)
    return jnp.swapaxes(cells, -4, -3).reshape(*lead, rows * patch, columns * patch, 3)
