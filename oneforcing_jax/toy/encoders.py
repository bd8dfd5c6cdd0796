"""The toy's encoders in a folder: a linear codec and a list of words.

python -m oneforcing_jax.toy.encoders runs/toy/world      # says their kind in a folder of version 0.1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.data import encoders
from oneforcing_jax.data.encoders import Encoders
from oneforcing_jax.errors import MissingInput
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.toy import codec, text

# What their folder says they are.
KIND = "oneforcing_jax.toy.encoders"


def load(folder: Path, text_len: int, dtype: Any, mesh: Any) -> Encoders:
    """What `save` wrote; lengths, dtypes and devices are its own.

    Raises:
      MissingInput, InputError: files that are missing or damaged.
    """
    return Encoders(codec.load(folder / codec.FILE), text.load(folder / text.FOLDER), "")


def save(folder: Path, fitted: codec.Codec, words: text.TextEncoder) -> None:
    """Writes both, and their kind."""
    fitted.save(folder / codec.FILE)
    words.save(folder / text.FOLDER)
    encoders.say_kind(folder, KIND)


def main(arguments: Sequence[str] | None = None) -> None:
    """Says the kind of the encoders in a folder that does not say it."""
    parser = argparse.ArgumentParser(
        prog="oneforcing_jax.toy.encoders", description=main.__doc__, formatter_class=Help
    )
    parser.add_argument("folder", type=any_path, help="of a toy's world, as WORKDIR/world")
    folder = parser.parse_args(arguments).folder
    with ending("nothing was written"):
        if not (folder / codec.FILE).is_file():
            raise MissingInput(
                f"expected a toy's {codec.FILE} in {folder}, found none; give the folder of its world"
            )
        encoders.say_kind(folder, KIND)


if __name__ == "__main__":
    main()
