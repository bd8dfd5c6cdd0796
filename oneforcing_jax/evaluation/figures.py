"""Figures of the reports, by matplotlib without a display."""

from __future__ import annotations

from typing import Any

from oneforcing_jax.errors import MissingPackage


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure; sizes in inches.

    Raises:
      MissingPackage: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage(
            'a plot needs the package matplotlib: pip install "oneforcing_jax[plots]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
