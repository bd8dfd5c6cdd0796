"""Students that come with the package: which they are, and what they know."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.files import read_record

# Folders of converted weights, from that of the package, by the names of `--demo`.
DEMOS = {"toy": Path("toy") / "demo"}
FIRST = "toy"
# In a demo's folder: a record of what it is, with `KNOWS`, its words, in words.
CARD, KNOWS = "card.json", "knows"
# Its frames are small. Where they are shown, their longer side has so many pixels.
SIDE = 384


class Demo(NamedTuple):
    """A folder of converted weights with their encoders, and what prompts may say."""

    folder: Path
    knows: str


def find(name: str = FIRST) -> Demo:
    """A demo, by its name.

    Raises:
      InputError: there is none of that name, or its card is damaged.
    """
    if name not in DEMOS:
        raise InputError(
            f"demo: expected one of {', '.join(DEMOS)}, found {name!r}; name one of them"
        )
    place = folder(name)
    return Demo(place, f"{name} knows {read_record(place / CARD)[KNOWS]}")


def folder(name: str) -> Path:
    """Where a demo of `DEMOS` lies."""
    return Path(__file__).parent / DEMOS[name]


def add_option(parser: Any) -> None:
    """Adds the option that names a demo in place of `--checkpoint`."""
    words = "a small student that comes with the package, in place of --checkpoint; it says what it knows"
    parser.add_argument(
        "--demo", nargs="?", const=FIRST, choices=DEMOS, action=_Demo, metavar="NAME", help=words
    )


class _Demo(argparse.Action):
    """Keeps the name, and names the checkpoint."""

    def __call__(self, parser: Any, given: Any, value: Any, option: str | None = None) -> None:
        given.demo, given.checkpoint = value, folder(value)
