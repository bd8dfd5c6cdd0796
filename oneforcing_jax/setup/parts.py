"""Parts that a config names and a module holds: training methods, kinds of stages, families of models.

A part is a module. Its short name is that of a file in the room where such parts lie. The part of somebody
else is named by the dotted path of its module.

To import a module is to run its code. A config is a program of the user's, and what it names is the user's
word. A folder that is read may come from anywhere, and may name parts of this package alone, and those from
elsewhere that a config of the user's names, or `trust`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError

PACKAGE, OPTION = __name__.partition(".")[0], "--trust_parts"
LONGEST = 200  # characters of a name
# Dotted paths of modules from elsewhere, by the user's word; it holds as long as the process.
_trusted = set[str]()


def trust(modules: Sequence[str]) -> None:
    """Lets folders that are read name parts from elsewhere.

    Args:
      modules: dotted paths, each of one module.
    """
    _trusted.update(modules)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option by which a user trusts parts of somebody else, to a command that reads folders."""
    words = (
        "a module that folders may name as their method or family; its code runs (docs/security.md)"
    )
    parser.add_argument(OPTION, action=_Trust, metavar="MODULE", help=words)


class _Trust(argparse.Action):
    def __call__(self, parser: Any, given: Any, value: Any, option: str | None = None) -> None:
        trust([name.strip() for name in value.split(",")])


def is_ours(name: str) -> bool:
    """Whether a part's name is short, or the dotted path of a module of this package."""
    return "." not in name or name.startswith(f"{PACKAGE}.")


def find(name: str, room: str, attribute: str, form: type, folders: Path | None = None) -> Any:
    """What a module holds under `attribute`.

    Args:
      name: of a module in `room`, or the dotted path of one anywhere.
      room: dotted path of our package of such parts.
      attribute: "METHOD", "KIND", "FAMILY": what makes a module such a part.
      form: the type that it has there.
      folders: the file that names it, of a folder that is read; None: a config of the user's.

    Raises:
      InputError: there is no such module, or it is no such part; a folder names one from elsewhere that
        nobody trusts, of which nothing was imported.
    """
    path = str(name) if "." in str(name) else f"{room}.{name}"  # a damaged record may hold anything
    found = None
    if re.fullmatch(r"\w+(\.\w+)*", path) and len(path) <= LONGEST:
        if folders is not None and not is_ours(path) and path not in _trusted:
            raise InputError(
                f"{folders}: expected a part of {PACKAGE}, found {path!r}, whose code would run; if you know "
                f"that code and trust it, give {OPTION}={path}"
            )
        try:
            found = getattr(importlib.import_module(path), attribute, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
    if not isinstance(found, form):
        where = f"{folders}: " if folders else ""
        shown = str(name)[:LONGEST]
        raise InputError(
            f"{where}expected one of {_known(room, attribute)}, or the dotted path of a module that has "
            f"{attribute} and can be imported, found {shown!r}; name one of them, or see PYTHONPATH"
        )
    if folders is None:
        trust([path])
    return found


def _known(room: str, attribute: str) -> list[str]:
    package = importlib.import_module(room)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{room}.{name}") for name in names}
    return [name for name in names if hasattr(modules[name], attribute)]
