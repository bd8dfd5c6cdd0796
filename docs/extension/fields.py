"""The reference of configs: every field, from the records that configs are read into."""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from extension.commands import plain
from oneforcing_jax import methods, training
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.dtypes import DTYPES, Dtype
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import Kind
from oneforcing_jax.toy import stages as toy

# Fields of a run that no config has, and what has headings of its own.
NOT_SAID = ("stages", "sections", "text", "low_rank", "read_from")
# A default that is longer is read in the file.
LONGEST = 80
PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


class Field(NamedTuple):
    """A field: its dotted name, its type and its meaning in words, and its default as it is shown."""

    name: str
    kind: str
    words: str
    default: str


def text() -> str:
    """All fields, in Markdown."""
    base = dict(configs.fields(configs.load("base")))
    parts = ["## Of every run", _table(_fields(Run, base, "", NOT_SAID))]
    single, grouped = [], dict[Any, list[str]]()
    for name, (kind, words) in sections().items():
        if dataclasses.is_dataclass(kind):
            grouped.setdefault(kind, []).append(name)
        else:
            single.append(Field(name, said(kind), words, _default(base.get(name, ...))))
    for record, names in grouped.items():
        rows = [list(_fields(record, base, f"{name}.")) for name in names]
        parts += [
            f"## {', '.join(names)}",
            _intro(record),
            _table(map(_joined, zip(*rows, strict=True))),
        ]
    parts += ["## Single values", _table(single)]
    for path, kind in kinds().items():
        short = path.removeprefix(f"{training.__name__}.")
        parts += [f"## Stages of kind {short}", _intro(sys.modules[path])]
        parts.append(_table(_fields(kind.fields, _of_stage(base, short), "stages.NAME.")))
    return "\n\n".join(parts)


def kinds() -> dict[str, Kind]:
    """Kinds of stages, ours and the toy's, by the dotted paths of their modules."""
    return {
        name: module.KIND for name, module in _modules(training, toy) if hasattr(module, "KIND")
    }


def sections() -> dict[str, tuple[Any, str]]:
    """Sections that methods, and kinds of stages, read: type and meaning by name."""
    found: dict[str, tuple[Any, str]] = {}
    for _, module in _modules(methods, training, toy):
        views = [module.METHOD.config] if hasattr(module, "METHOD") else []
        views += [module.Config] if hasattr(module, "KIND") and hasattr(module, "Config") else []
        for view in views:
            words = meanings(view)
            for name, kind in typing.get_type_hints(view, include_extras=True).items():
                found.setdefault(name, (_without_none(kind), words.get(name, "")))
    return found


def meanings(record: type) -> dict[str, str]:
    """What the docstring of a record says of its fields, under "Attributes"."""
    _, _, listed = inspect.getdoc(record).partition("Attributes:\n")
    found: dict[str, str] = {}
    for names, words in re.findall(r"^  ([\w, ]+): (.*(?:\n    .*)*)", listed, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), re.sub(r"\s*\n\s*", " ", words))
    return found


def said(kind: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Dtype:
        return f"one of {', '.join(DTYPES)}"
    if origin is Annotated:
        return parts[1].words
    if origin is tuple:
        return "a list of: " + " and ".join(dict.fromkeys(said(k) for k in parts if k is not ...))
    if origin is collections.abc.Mapping:
        return f"for each name: {said(parts[1])}"
    if dataclasses.is_dataclass(kind):
        return "a section"
    return PLAIN[kind]


def _fields(
    record: Any, base: Mapping[str, Any], prefix: str, left_out: tuple[str, ...] = ()
) -> Iterator[Field]:
    """The fields of a record, and of those in it.

    Raises:
      AssertionError: its docstring says nothing of one of them.
    """
    words, kinds = meanings(record), typing.get_type_hints(record, include_extras=True)
    for field in dataclasses.fields(record):
        name, kind = f"{prefix}{field.name}", _without_none(kinds[field.name])
        if field.name in left_out:
            continue
        assert field.name in words, f"{record.__qualname__} does not say what {field.name} is"
        inner, below = kind, f"{name}."
        default = ... if field.default is dataclasses.MISSING else field.default
        default = {
            k.removeprefix(below): v for k, v in base.items() if k.startswith(below)
        } or default
        default = base.get(name, default)
        if typing.get_origin(kind) is collections.abc.Mapping:
            inner, below = typing.get_args(kind)[1], f"{name}.NET."
        nested = dataclasses.is_dataclass(inner)
        yield Field(name, said(kind), words[field.name], "" if nested else _default(default))
        if nested:
            yield from _fields(inner, base, below)


def _joined(same: Iterable[Field]) -> Field:
    """The same field of several sections."""
    names, defaults = [row.name for row in same], {row.name: row.default for row in same}
    first = same[0]._replace(name=names[0].partition(".")[2]) if len(names) > 1 else same[0]
    if len(set(defaults.values())) == 1:
        return first
    return first._replace(
        default=", ".join(f"{n.partition('.')[0]} {d}" for n, d in defaults.items())
    )


def _of_stage(base: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Values of the base's only stage, of which it is an example."""
    if kind != "train":
        return {}
    begin, found = "stages.one_forcing.", {}
    for name, value in base.items():
        if name.startswith(begin):
            own = name.removeprefix(begin)
            for record in ("optimisers", "low_rank"):
                own = own.replace(f"{record}.generator", f"{record}.NET")
            found[f"stages.NAME.{own}"] = value
    return found


def _default(value: Any) -> str:
    """A default as it is shown; ...: there is none, and the field must be given."""
    if value is ...:
        return "none"
    shown = repr(np.dtype(value).name if isinstance(value, type) else value)
    return f"`{shown}`" if len(shown) <= LONGEST else "in `configs/base.py`"


def _intro(said: Any) -> str:
    """The first words of a docstring."""
    return plain(inspect.getdoc(said).partition("\n\n")[0])


def _table(rows: Iterable[Field]) -> str:
    lines = [f"| `{r.name}` | {plain(r.kind)} | {r.default} | {plain(r.words)} |" for r in rows]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *lines])


def _without_none(kind: Any) -> Any:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind)[0] if union else kind


def _modules(*packages: types.ModuleType) -> Iterator[tuple[str, types.ModuleType]]:
    """All modules in some packages, with their dotted paths."""
    for package in packages:
        for found in pkgutil.iter_modules(package.__path__):
            path = f"{package.__name__}.{found.name}"
            yield path, importlib.import_module(path)
