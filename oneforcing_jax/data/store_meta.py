"""The description of a store, its meta.json: made, checked, read, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import bounded

VERSION = 2
DTYPES = ("float32", "float16", "bfloat16", "int32", "uint8")

Fields = Mapping[str, tuple[Sequence[int], str]]


def describe(count: int, fields: Fields, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a description and returns it as JSON would give it back, without the layout.

    Args:
      count: number of samples.
      fields: name -> (shape of one sample, dtype out of DTYPES).
      attributes: free JSON.

    Raises:
      InputError: no sample, no field, a bad field, or attributes that JSON cannot hold.
    """
    if count < 1:
        raise InputError(f"expected a store of 1 sample or more, found count={count}")
    if not fields:
        raise InputError("expected a store of 1 field or more, found none")
    for name, (shape, dtype) in fields.items():
        if not name.isidentifier():
            raise InputError(f"expected a field name like a variable's, found {name!r}")
        if dtype not in DTYPES:
            raise InputError(f"field {name}: expected a dtype of {DTYPES}, found {dtype!r}")
        if any(size < 1 for size in shape):
            raise InputError(f"field {name}: expected sizes of 1 or more, found {list(shape)}")
    meta = {
        "count": int(count),
        "fields": {
            name: {"shape": [int(size) for size in shape], "dtype": dtype}
            for name, (shape, dtype) in fields.items()
        },
        "attributes": dict(attributes),
    }
    try:
        return json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"expected attributes that JSON can hold, found: {error}") from None


def read(file: Path) -> dict[str, Any]:
    """Reads a meta.json.

    Raises:
      MissingInput: there is none.
      InputError: it is damaged, or of another format version.
    """
    if not file.is_file():
        raise MissingInput(f"no store at {file.parent}: no {file.name} in it; check the path")
    try:
        meta = bounded.parsed(bounded.content(file))
        found = meta["version"]
        if found == VERSION:
            fields = {
                name: (field["shape"], field["dtype"]) for name, field in meta["fields"].items()
            }
            describe(meta["count"], fields, meta["attributes"])
            counts = [meta["count"], meta["samples_per_shard"]]
            sizes = [size for shape, _ in fields.values() for size in shape]
            if not all(type(number) is int and 1 <= number < 2**31 for number in counts + sizes):
                raise ValueError("no whole numbers")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{file}: expected the description of a store, found a damaged file; restore it from "
            "a copy, or fill a new folder"
        ) from None
    if found != VERSION:
        raise InputError(
            f"{file}: expected format version {VERSION}, found {found!r}; fill a new folder"
        )
    return meta


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Names the first difference of two descriptions, "" when they are identical."""
    for key in sorted(old.keys() | new.keys()):
        if key not in old or key not in new:
            where = "only on disk" if key in old else "not on disk"
            return f"{prefix}{key} is {where}"
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            inner = difference(old[key], new[key], f"{prefix}{key}.")
            if inner:
                return inner
        elif old[key] != new[key]:
            return f"{prefix}{key} is {_short(old[key])} on disk, {_short(new[key])} now"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
