"""How figures are made: by matplotlib without a display, as PNG for the screen and SVG for print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import MissingPackage
from oneforcing_jax.system.files import write_whole

DPI = 150


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


def save(made: Any, path: Path) -> None:
    """Writes a figure to a .png file, and beside it as .svg.

    Raises:
      InputError: a file cannot be written.
    """
    for suffix in (".png", ".svg"):
        content = io.BytesIO()
        # Without a date, equal figures are equal files.
        made.savefig(
            content, format=suffix[1:], dpi=DPI, metadata={"Date": None} if suffix == ".svg" else {}
        )
        write_whole(path.with_suffix(suffix), content.getvalue())
