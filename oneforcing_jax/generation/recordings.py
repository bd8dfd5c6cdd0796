"""Noise and prompt embeddings from files, to compare runs across programs and frameworks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput

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
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise InputError(f"{path}: expected a .npz file, found another kind") from None
    if isinstance(loaded, np.ndarray):
        arrays = dict.fromkeys(expected, loaded)
    else:
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        raise InputError(
            f"{path}: expected arrays {_list(expected)}, found {_list(found)}; record them with the "
            "videos, frames, size and steps of this command"
        )
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _list(shapes: dict[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
