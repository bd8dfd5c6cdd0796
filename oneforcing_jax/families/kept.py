"""Embeddings of prompts in a folder: each is made once, and later read without the encoder's weights."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from oneforcing_jax.families.codec import TextEncoder
from oneforcing_jax.system.files import write_whole


def encoder(text: TextEncoder, folder: Path) -> Callable[[str], np.ndarray]:
    """`text.encode` that reads what it has written before.

    Args:
      text: whose digest names the folder within, so that encoders do not take each other's.
      folder: for files of this user: prompts can be told from them.
    """
    place = folder / text.digest()

    def encode(prompt: str) -> np.ndarray:
        file = place / f"{hashlib.sha256(f'{text.length} {prompt}'.encode()).hexdigest()}.npz"
        if (found := _read(file)) is None:
            found = np.asarray(text.encode(prompt))
            content = io.BytesIO()
            # Zeros in the lower half of what was bfloat16 take no room.
            np.savez_compressed(
                content, embedding=found.astype(np.float32), dtype=np.array(found.dtype.name)
            )
            place.mkdir(parents=True, exist_ok=True)
            write_whole(file, content.getvalue())
        return found

    return encode


def _read(file: Path) -> np.ndarray | None:
    """An embedding [n, d]; None: there is none, or its checksum is not that of what was written."""
    try:
        with np.load(file) as held:
            wide, dtype = held["embedding"], str(held["dtype"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return wide.astype(jnp.dtype(dtype))
