"""The toy's family: a linear codec and a list of words, and the folder that holds them.

python -m oneforcing_jax.toy.encoders runs/toy/world      # says their kind in a folder of version 0.1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneforcing_jax.errors import MissingInput
from oneforcing_jax.families import Family, Video, encoders, wan21
from oneforcing_jax.models import wan
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.toy import codec, text
from oneforcing_jax.toy.world import FPS, WORLD

# What their folder says they are.
KIND = "oneforcing_jax.toy.encoders"


def load(folder: Path, *_: Any) -> tuple[codec.Codec, text.TextEncoder]:
    """What `save` wrote; lengths, dtypes and devices are its own.

    Raises:
      MissingInput, InputError: files that are missing or damaged.
    """
    return codec.load(folder / codec.FILE), text.load(folder / text.FOLDER)


def outline(*_: Any) -> tuple[codec.Codec, text.TextEncoder]:
    """Both at the sizes of the default world, untrained."""
    size = 3 * codec.PATCH**2
    empty = codec.Codec(
        np.zeros(size, np.float32),
        np.zeros((size, codec.CHANNELS), np.float32),
        np.zeros((codec.CHANNELS, size), np.float32),
        codec.PATCH,
    )
    return empty, text.TextEncoder.train(WORLD.captions())


FAMILY = Family(
    Video(
        frames=WORLD.frames,
        rows=WORLD.size,
        columns=WORLD.size,
        fps=FPS,
        shift=3.0,
        steps=(1000.0,),
        first_steps=(1000.0, 750.0, 500.0, 250.0),
        sampling_steps=16,
        guidance=1.5,
        negative="",
    ),
    channels=codec.CHANNELS,
    strides=(1, codec.PATCH),
    model=wan.model,
    load=load,
    outline=outline,
    # Its transformer is Wan's, small.
    networks={"transformer": wan21.FAMILY.networks["transformer"]},
    students={"framewise": 1, "chunkwise": 3},
)


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
