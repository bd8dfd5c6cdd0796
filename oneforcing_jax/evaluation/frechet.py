"""Fréchet distance between videos by the features that a network of the user's gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.setup.ranges import not_finite
from oneforcing_jax.system import bounded


def read_features(path: Path) -> np.ndarray:
    """Features of videos, float64 [n, d], from a .npy file.

    Raises:
      MissingInput, InputError: no such file, or something else in it.
    """
    if not path.is_file():
        raise MissingInput(f"features: expected a .npy file [videos, d], found nothing at {path}")
    try:
        found = bounded.arrays(path, "fiu").get("")
    except ValueError:
        found = None
    if found is None:
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


def distance(one: np.ndarray, other: np.ndarray, shrinkage: float = 0.0) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the normal distributions of two sets, each [n, d].

    It is too large where sets are small: compare only distances of equally many videos. Samples of about d
    videos want covariances shrunk towards a multiple of the identity, C <- (1 - s) C + s tr(C)/d I.

    Raises:
      InputError: features of different widths.
    """
    if one.shape[1] != other.shape[1]:
        raise InputError(
            f"features: expected one width, found {one.shape[1]} and {other.shape[1]}; use one network"
        )
    means = np.square(one.mean(0) - other.mean(0)).sum()
    a, b = (_root(x, shrinkage) for x in (one, other))
    # The trace of the root is the sum of the singular values of a b^T, and those are the same for the
    # triangles of a and b, which are small. Covariances without full rank need no care in this form.
    a, b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, means + np.square(a).sum() + np.square(b).sum() - 2 * root))


def _root(features: np.ndarray, shrinkage: float) -> np.ndarray:
    """A matrix a, [n or more, d], of which a^T a is the covariance."""
    a = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    if not shrinkage:
        return a
    width = a.shape[1]
    more = np.sqrt(shrinkage * np.square(a).sum() / width) * np.eye(width)
    return np.concatenate([np.sqrt(1 - shrinkage) * a, more])
