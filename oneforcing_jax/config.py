"""Config files: Python modules with `get_config()`, fields overridable on the command line."""

from __future__ import annotations

import ast
import difflib
import runpy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

PREFIX = "--config."


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    change: Callable[[ConfigDict], None] | None = None,
) -> ConfigDict:
    """The config of a file, with overrides applied, frozen.

    Args:
      path: a Python file that defines `get_config()`.
      overrides: arguments of the form "--config.stages.teacher.batch=4".
      change: what is done to it before.

    Raises:
      FileNotFoundError, ValueError: one line that says what was expected and what was found; for an
        unknown field it names the nearest.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"config: expected a Python file, found nothing at {path}; see configs/"
        )
    module = runpy.run_path(str(path))
    if "get_config" not in module:
        raise ValueError(f"config: expected a function get_config() in {path}, found none")
    config = module["get_config"]()
    if change:
        change(config)
    for override in overrides:
        _apply(config, override)
    config.lock()
    return config


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves by dotted name."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.removeprefix(PREFIX).partition("=")
    if not override.startswith(PREFIX) or not equals:
        raise ValueError(f"command line: expected {PREFIX}FIELD=VALUE, found {override!r}")
    known = dict(fields(config))
    if name not in known:
        raise ValueError(f"config: no field {name!r}; did you mean {_nearest(name, known)!r}?")
    parent = config
    for part in name.split(".")[:-1]:
        parent = parent[part]
    parent[name.split(".")[-1]] = _parse(name, text, known[name])


def _nearest(name: str, known: Iterable[str]) -> str:
    """The field whose last part is most like that of `name`; of several, the one most like all of it."""

    def likeness(field: str) -> tuple[float, float]:
        ends = difflib.SequenceMatcher(None, field.split(".")[-1], name.split(".")[-1])
        return round(ends.ratio(), 2), difflib.SequenceMatcher(None, field, name).ratio()

    return max(known, key=likeness)


def _parse(name: str, text: str, like: Any) -> Any:
    """`text` as a value of the type of `like`."""
    if isinstance(like, str):
        return text
    if isinstance(like, tuple) and like and all(isinstance(part, str) for part in like):
        return tuple(part.strip(" '\"()") for part in text.split(",") if part.strip(" '\"()"))
    wrong = ValueError(
        f"config: field {name!r}: expected {type(like).__name__} such as {like!r}, found {text!r}"
    )
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower())
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if isinstance(like, tuple) and not isinstance(value, tuple) and value is not None:
        value = (value,)
    if type(value) is not type(like):
        raise wrong
    return value
