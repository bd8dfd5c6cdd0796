"""Config files: Python modules with `get_config()`, overridden on the command line, read into typed records.

`load` gives the fields of a file. `read` makes a frozen dataclass of them. A dataclass says what it expects:
its fields' names and types, and in `__post_init__` what no type says. An error names the field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.setup import ranges
from oneforcing_jax.setup.dtypes import DTYPES, Dtype
from oneforcing_jax.system import textfiles
from oneforcing_jax.system.files import read_record

PREFIX = "--config."
Record = TypeVar("Record")


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    change: Callable[[ConfigDict], None] | None = None,
) -> ConfigDict:
    """The config of a file, with overrides applied, frozen.

    Args:
      path: a Python file that defines `get_config()`, or the bare name of one of ours: "toy".
      overrides: arguments of the form "--config.stages.teacher.batch=4".
      change: what is done to it before.

    Raises:
      MissingInput, InputError: one line that says what was expected and what was found; for an
        unknown field it names the nearest.
    """
    known = ours()
    path = known.get(str(path), Path(path))
    if not path.is_file():
        raise MissingInput(
            f"config: expected a Python file, found nothing at {path}; ours are {', '.join(known)}"
        )
    config = _made(path)
    if change:
        change(config)
    for override in overrides:
        _apply(config, override)
    config.lock()
    return config


def ours() -> dict[str, Path]:
    """The configs of this package by bare name. They lie in it where it was installed from a wheel, and
    beside it in a clone."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def _made(path: Path) -> ConfigDict:
    """What `get_config()` of a file gives.

    Raises:
      InputError: names the file, and the line at which it fails.
    """
    try:
        module = runpy.run_path(str(path))
        config = module["get_config"]() if "get_config" in module else None
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as error:  # a config is a program of the user's, which may also call sys.exit
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if Path(frame.filename).name == path.name]  # fmt: skip
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        said = next(iter(_words(error).splitlines()), "")[:200]
        raise InputError(
            f"config: {path}, line {line}: {type(error).__name__}: {said}; mend the file"
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config: expected in {path} a function get_config() that returns a ConfigDict, found "
            f"{type(config).__name__}; see configs/base.py"
        )
    return config


def _words(error: BaseException) -> str:
    """What an error says; what a config raises may fail at that, too."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001
        return ""


def of_json(file: Path) -> ConfigDict:
    """The config that a run wrote down; `Run.read` makes a run of it.

    Raises:
      InputError: the file is damaged.
    """
    found = read_record(file)
    try:
        return ConfigDict(found)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: expected a run's config, found a damaged one ({error}); restore it from a copy"
        ) from None


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
        raise InputError(f"command line: expected {PREFIX}FIELD=VALUE, found {override!r}")
    try:
        known = dict(fields(config))
    except RecursionError:
        raise InputError(
            "config: expected sections, found one that holds itself; mend the file"
        ) from None
    if inner := [field for field in known if field.startswith(f"{name}.")]:
        raise InputError(
            f"config: expected a field, found the section {name!r}; name a field of it, such as {inner[0]!r}"
        )
    if name not in known:
        raise InputError(f"config: no field {name!r}; did you mean {nearest(name, known)!r}?")
    parent = config
    for part in name.split(".")[:-1]:
        parent = parent[part]
    textfiles.check_unicode(f"config: field {name!r}", text)
    parent[name.split(".")[-1]] = _parse(name, text, known[name])


def nearest(name: str, known: Iterable[str]) -> str:
    """The field whose last part is most like that of `name`; a tie goes to the one most like all of it."""

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
    wrong = InputError(
        f"config: field {name!r}: expected {type(like).__name__} such as {like!r}, found {text!r}"
    )
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = {"true": True, "false": False}.get(text.lower())
    if isinstance(like, float) and type(value) is int:
        value = float(value) if abs(value) < ranges.MOST else math.inf
    if isinstance(like, tuple) and not isinstance(value, tuple) and value is not None:
        value = (value,)
    if type(value) is not type(like):
        raise wrong
    return value


def read(record: type[Record], values: Mapping[str, Any], where: str = "") -> Record:
    """A frozen dataclass from the fields of a config that have its names.

    Args:
      record: the dataclass; types of fields may be numbers, bool, str, Dtype, tuples, mappings from names,
        and dataclasses.
      values: by field; every field without a default must be there, and no other.
      where: dotted name of `values` in the config, for errors.

    Raises:
      InputError: a field that is missing, unknown or not of its type, or that the dataclass itself refuses.
    """
    expected = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for name in values:
        if name not in expected:
            raise InputError(
                f"config: no field {_dotted(where, name)!r}; did you mean "
                f"{_dotted(where, nearest(name, expected))!r}?"
            )
    kinds, made = typing.get_type_hints(record, include_extras=True), dict[str, Any]()
    for name, field in expected.items():
        if name in values:
            made[name] = _value(kinds[name], values[name], _dotted(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(
                f"config: expected a field {_dotted(where, name)!r}, found none; add it"
            )
    try:
        return record(**made)
    except InputError as error:
        place = f"section {where!r}: " if where else ""
        raise InputError(f"config: {place}{error}") from None


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(kind: Any, value: Any, name: str) -> Any:
    """A config's value as a field's type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated or kind is float:
        found = _plain(parts[0] if parts else float, value, name)
        if words := ranges.wrong(kind, found):
            raise InputError(
                f"config: field {name!r}: expected {words}, found {value!r}; change it"
            )
        return found
    if kind is Dtype:
        if not isinstance(value, str) or value not in DTYPES:
            raise InputError(
                f"config: field {name!r}: expected one of {sorted(DTYPES)}, found {value!r}"
            )
        return DTYPES[value]
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(parts[0], value, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping | ConfigDict):
        return read(kind, value, name)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, tuple | list):
        inner = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(inner) == len(value):
            return tuple(_value(k, v, name) for k, v in zip(inner, value, strict=True))
    maps = isinstance(origin, type) and issubclass(origin, Mapping)
    if maps and isinstance(value, Mapping | ConfigDict):
        return {key: _value(parts[1], v, _dotted(name, key)) for key, v in value.items()}
    return _plain(kind, value, name)


def _plain(kind: Any, value: Any, name: str) -> Any:
    """A number, word or switch as it is; a whole number may stand for another."""
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    shown = kind.__name__ if isinstance(kind, type) else str(kind)
    found = "a section" if isinstance(value, ConfigDict) else repr(value)
    raise InputError(f"config: field {name!r}: expected {shown}, found {found}; change it")


def section(record: Any, **changes: Any) -> dict[str, Any]:
    """The fields of a dataclass as a config file holds them, some of them changed."""
    made = dataclasses.asdict(dataclasses.replace(record, **changes))
    return {
        name: np.dtype(value).name if name == "dtype" else value for name, value in made.items()
    }
