"""What a number may be, written beside its type: `fps: Positive`. Options and configs are checked by it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np

from oneforcing_jax.errors import InputError

Record = TypeVar("Record")

# Numbers stay below this, and positive ones above its inverse: float32 holds them with room to compute.
MOST = 1e30


class Range(NamedTuple):
    """In words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Range("a number above 0", lambda x: x > 1 / MOST)]
Rate = Annotated[float, Range("a number above 0, of 1000 at most", lambda x: 1 / MOST < x <= 1000)]
NotNegative = Annotated[float, Range("a number of 0 or more", lambda x: x >= 0)]
Share = Annotated[float, Range("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Decay = Annotated[float, Range("a number from 0 to below 1", lambda x: 0 <= x < 1)]
# Sizes and counts fit 32 bits, as those of arrays and programs do.
Count = Annotated[int, Range("a whole number of 1 or more, below 2^31", lambda x: 1 <= x < 2**31)]
# What a command lists before it starts.
Amount = Annotated[int, Range("a whole number from 1 to 1,000,000", lambda x: 1 <= x <= 10**6)]
# Latent frames of a clip that is trained on, which goes through the networks whole.
Frames = Annotated[int, Range("a whole number from 1 to 100,000", lambda x: 1 <= x <= 10**5)]
Natural = Annotated[int, Range("a whole number of 0 or more, below 2^31", lambda x: 0 <= x < 2**31)]
Quality = Annotated[int, Range("a whole number from 0 (best) to 51", lambda x: 0 <= x <= 51)]
Seed = Annotated[int, Range("a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32)]


def wrong(kind: Any, value: Any) -> str:
    """What was expected of a value whose field has this type; "" where it is that. Types are not checked."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return "" if value is None else wrong(parts[0], value)
    if origin is tuple and isinstance(value, tuple):
        inner = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        found = (wrong(k, v) for k, v in zip(inner, value, strict=False))
        return next((words for words in found if words), "")
    if isinstance(value, float) and not abs(value) < MOST:
        return "a finite number"
    if hasattr(kind, "__metadata__"):
        return next((r.words for r in kind.__metadata__ if not r.holds(value)), "")
    return ""


def not_finite(array: np.ndarray) -> int:
    """How many values of an array are no finite numbers; whole numbers all are."""
    return 0 if array.dtype.kind in "iub" else int(np.count_nonzero(~np.isfinite(array)))


def options(record: type[Record], given: Mapping[str, Any]) -> Record:
    """A frozen dataclass of the options of a command line that have its fields' names.

    Raises:
      InputError: an option outside its range.
    """
    hints = typing.get_type_hints(record, include_extras=True)
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    for name in names:
        if words := wrong(hints[name], given[name]):
            raise InputError(f"--{name}: expected {words}, found {given[name]}; change it")
    return record(**{name: given[name] for name in names})
