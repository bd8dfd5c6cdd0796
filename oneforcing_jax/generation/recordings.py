"""Noise and prompt embeddings from files, to compare runs across programs and frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.setup.ranges import not_finite
from oneforcing_jax.system import bounded
from oneforcing_jax.system.bounded import Shape


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

    def check(found: Mapping[str, Shape]) -> None:
        if "" in found:  # a single array has no name
            found = dict.fromkeys(expected, found[""])
        if found != expected:
            raise InputError(
                f"{path}: expected arrays {_list(expected)}, found {_list(found)}; record them with the "
                "videos, frames, size and steps of this command"
            )

    try:
        read = bounded.arrays(path, "fiu", check)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path}: expected a .npz file of numbers such as float32, found another kind or a damaged one "
            f"({error}); record it again"
        ) from None
    named = dict.fromkeys(expected, read[""]) if "" in read else read
    arrays = {name: array.astype(np.float32) for name, array in named.items()}
    for name, array in arrays.items():
        if wrong := not_finite(array):
            raise InputError(
                f"{path}: expected finite numbers in {name}, found {wrong} that are not; record it again"
            )
    return arrays


def _list(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
