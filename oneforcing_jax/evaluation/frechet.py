"""Fréchet distance between videos by the features that a network of the user's gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.ranges import not_finite


def read_features(path: Path) -> np.ndarray:
    """Features of videos, float64 [n, d], from a .npy file.

    Raises:
      MissingInput, InputError: no such file, or something else in it.
    """
    if not path.is_file():
        raise MissingInput(f"features: expected a .npy file [videos, d], found nothing at {path}")
    try:
        found = np.load(path, allow_pickle=False)
    except Exception:  # NumPy parses headers as Python, which raises whatever damaged Python does
        found = None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: expected a .npy file of numbers, found another kind or a damaged one; write the "
            "features with numpy.save"
        )
    if found.ndim != 2 or len(found) < 2 or not found.shape[1]:
        raise InputError(
            f"{path}: expected features [videos, d] of 2 videos or more, found {list(found.shape)}"
        )
    if wrong := not_finite(found):
        raise InputError(f"{path}: expected finite features, found {wrong} that are not")
    return found.astype(np.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the normal distributions of two sets, each [n, d].

    It is too large where sets are small: compare only distances of equally many videos.

    Raises:
      InputError: features of different widths.
    """
    if one.shape[1] != other.shape[1]:
        raise InputError(
            f"features: expected one width, found {one.shape[1]} and {other.shape[1]}; use one network"
        )
    means = np.square(one.mean(0) - other.mean(0)).sum()
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (one, other))
    # The trace of the root is the sum of the singular values of a b^T, and those are the same for the
    # triangles of a and b, which are small. Covariances without full rank need no care in this form.
    a, b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, means + np.square(a).sum() + np.square(b).sum() - 2 * root))
