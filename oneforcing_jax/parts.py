"""Parts that a config names and a module holds: training methods, kinds of stages, encoders.

A part is a module. Its short name is that of a file in the room where such parts lie. The part of somebody
else is named by the dotted path of its module.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

from oneforcing_jax.errors import InputError


def find(name: str, room: str, attribute: str) -> Any:
    """What a module holds under `attribute`.

    Args:
      name: of a module in `room`, or the dotted path of one anywhere.
      room: dotted path of our package of such parts.
      attribute: "METHOD", "KIND", "load": what makes a module such a part.

    Raises:
      InputError: there is no such module, or it is no such part.
    """
    path = str(name) if "." in str(name) else f"{room}.{name}"  # a damaged record may hold anything
    found = None
    if re.fullmatch(r"\w+(\.\w+)*", path):
        try:
            found = getattr(importlib.import_module(path), attribute, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
    if found is None:
        raise InputError(
            f"expected one of {_known(room, attribute)}, or the dotted path of a module that has "
            f"{attribute}, found {name!r}; name one of them"
        )
    return found


def _known(room: str, attribute: str) -> list[str]:
    package = importlib.import_module(room)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{room}.{name}") for name in names}
    return [name for name in names if hasattr(modules[name], attribute)]
