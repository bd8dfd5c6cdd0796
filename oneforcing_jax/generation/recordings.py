"""Noise and prompt embeddings from files, to compare runs across programs and frameworks."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.ranges import not_finite

Shape = tuple[int, ...]


def read_noise(
    path: Path, videos: int, frames: Shape, steps: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays "noise" and "renoise" of a .npz file, float32.

    Args:
      path: of the file.
      videos: rows that it must have, one for each video of the command in order.
      frames: (f, c, y, x) of the latents that are made.
      steps: of the block that has most.

    Returns:
      The noise that blocks start from, [videos, f, c, y, x], and the noise added between steps, [videos,
      steps - 1, f, c, y, x], None without a second step. Frames with fewer steps do not use theirs.

    Raises:
      MissingInput, InputError: no such file, or other arrays in it.
    """
    expected = {"noise": (videos, *frames)}
    if steps > 1:
        expected["renoise"] = (videos, steps - 1, *frames)
    arrays = _read(path, expected)
    return arrays["noise"], arrays.get("renoise")


def read_embeddings(path: Path, shape: Shape) -> np.ndarray:
    """Prompt embeddings of `shape` (prompts, s, d) out of "prompt_embeds" in a .npz file, or of a .npy
    file; rows beyond a prompt's end are zero.

    Raises:
      MissingInput, InputError: no such file, or another array in it.
    """
    return _read(path, {"prompt_embeds": shape})["prompt_embeds"]


def _read(path: Path, expected: dict[str, Shape]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise MissingInput(f"expected a .npz file with {_list(expected)}, found nothing at {path}")
    try:
        # What headers claim is compared before an array is read: it may not fit the memory.
        found = _headers(path) or dict.fromkeys(expected, _header(path.open("rb")))
        if found != expected:
            raise InputError(
                f"{path}: expected arrays {_list(expected)}, found {_list(found)}; record them with the "
                "videos, frames, size and steps of this command"
            )
        loaded = np.load(path, allow_pickle=False)
        whole = zipfile.is_zipfile(path)
        read = {name: np.asarray(loaded[name] if whole else loaded) for name in found}
    except InputError:
        raise
    except Exception:  # NumPy parses headers as Python, which raises whatever damaged Python does
        raise InputError(
            f"{path}: expected a .npz file, found another kind or a damaged one; record it again"
        ) from None
    for name, array in read.items():
        if array.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: expected numbers in {name}, found {array.dtype}; record it as float32"
            )
    arrays = {name: array.astype(np.float32) for name, array in read.items()}
    for name, array in arrays.items():
        if wrong := not_finite(array):
            raise InputError(
                f"{path}: expected finite numbers in {name}, found {wrong} that are not; record it again"
            )
    return arrays


def _headers(path: Path) -> dict[str, Shape]:
    """Shapes of the arrays in a .npz file; none in another."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _header(archive.open(name)) for name in names}


def _header(file: IO[bytes]) -> Shape:
    """The shape that a .npy file says it has."""
    with file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, _ = read.get(version, np.lib.format.read_array_header_2_0)(file)
        return tuple(shape)


def _list(shapes: dict[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
