"""Writes the tables of figures into the pages, from one file of results.

    python tools/tables.py                            # writes README.md and docs again, where figures changed
    python tools/tables.py --check                    # writes nothing; fails where a page says something else
    python tools/tables.py --fill=h200=gpu/gpu.json   # takes a group's figures from what a measurement wrote

docs/results.toml has the figures, how each was come by, formulas of those that follow from others, and the
tables. A table stands in its page between two comments, `table: NAME` and `end of table`.
"""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, ending, named
from oneforcing_jax.system.files import read_record, write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("docs") / "results.toml"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
# What a unit of the file is in that of measurements: seconds, bytes, parts of one.
UNITS = {"ms": 1e3, "GB": 1e-9, "%": 100.0}
# Digits that a measurement gives a figure.
DIGITS = 3


class Figure(NamedTuple):
    """A figure, or the least and the most of several. Its format is digits, and "." for no unit."""

    values: tuple[float, ...]
    unit: str = ""

    def __format__(self, spec: str) -> str:
        digits = spec.rstrip(".")
        said = " to ".join(rounded(v, int(digits)) if digits else f"{v:g}" for v in self.values)
        gap = "" if self.unit in ("", "%") else " "
        return said if spec.endswith(".") else f"{said}{gap}{self.unit}"


def rounded(value: float, digits: int) -> str:
    """A number with so many significant digits: "0.80", "1,132", "36,200"."""
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, places):,.{max(places, 0)}f}"


def parsed(text: str) -> dict[str, Any]:
    """The groups and tables of the file of results.

    Raises:
      InputError: no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{RESULTS}: expected TOML, found: {error}") from None


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures by their names; formulas see the ones before them.

    Raises:
      InputError: a name given twice, or a formula of what is not there.
    """
    found: dict[str, Figure] = {}
    for group in results.values():
        for name, said in group.get("figures", {}).items():
            if name in found:
                raise InputError(f"{RESULTS}: expected one figure {name}, found two")
            value = said.get("value")
            if value is None:
                known = {other: figure.values[0] for other, figure in found.items()}
                try:
                    value = eval(said["formula"], {"__builtins__": {}}, known)
                except (KeyError, NameError) as error:
                    raise InputError(
                        f"{RESULTS}: expected a value or a formula of figures before it for {name}: {error}"
                    ) from None
            values = value if isinstance(value, list) else [value]
            found[name] = Figure(tuple(values), said.get("unit", ""))
    return found


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables by their names, as Markdown.

    Raises:
      InputError: a table of what is not there.
    """
    groups = {name: SimpleNamespace(**said) for name, said in results.items()}
    known = {**groups, **figures(results)}
    found = {}
    for name, text in results["tables"].items():
        try:
            found[name] = text.format_map(known)
        except (AttributeError, KeyError) as error:
            raise InputError(
                f"{RESULTS}: expected figures for table {name}, found no {error}"
            ) from None
    return found


def pages(root: Path, made: Mapping[str, str]) -> dict[Path, tuple[str, str]]:
    """Pages that have tables: what each says, and what it should.

    Raises:
      InputError: a page with a table that is not made, or a table that no page has.
    """
    found, seen = {}, set()
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = page.read_text()
        names = {name for _, name, _ in MARKED.findall(text)}
        if unknown := names - made.keys():
            raise InputError(f"{page}: expected tables of {RESULTS}, found {sorted(unknown)[0]!r}")
        if names:
            found[page] = text, MARKED.sub(lambda m: f"{m[1]}{made[m[2]].lstrip()}{m[3]}", text)
        seen |= names
    if unseen := made.keys() - seen:
        raise InputError(f"{RESULTS}: expected tables that pages have, found {sorted(unseen)[0]!r}")
    return found


def filled(text: str, group: str, measured: Mapping[str, Any]) -> str:
    """The file of results with a group's figures as a measurement has them; what it lacks stays.

    Raises:
      InputError: no such group, or nothing of it in the measurement.
    """
    said = parsed(text).get(group, {})
    new: dict[str, str] = {}
    for field, path in said.get("from", {}).items():
        if (value := at(measured, path)) is not None:
            new[rf'^({field} = )"[^"\n]*"'] = f'"{str(value)[:10] if field == "date" else value}"'
    for name, figure in said.get("figures", {}).items():
        if (value := at(measured, figure.get("from", ""))) is not None:
            taken = rounded(UNITS.get(figure.get("unit", ""), 1.0) * value, DIGITS)
            new[rf"^({name} = {{ value = )[^,}}]+?(?=,| }})"] = taken.replace(",", "")
    if not new:
        raise InputError(f"--fill: expected a measurement of a group of {RESULTS}, found {group!r}")
    start = text.index(f"[{group}]\n")
    end = text.find("\n\n", start)  # a group has no empty line
    part = text[start:end]
    for pattern, value in new.items():
        part = re.sub(pattern, rf"\g<1>{value}", part, flags=re.MULTILINE)
    return text[:start] + part + text[end:]


def at(measured: Any, path: str) -> Any:
    """What a measurement has at a path, "parts.vae.decode_s"; the mean of several; None: nothing."""
    for key in path.split("."):
        if isinstance(measured, list) and key.isdecimal():
            measured = measured[int(key)] if int(key) < len(measured) else None
        else:
            measured = measured.get(key) if isinstance(measured, dict) else None
    return sum(measured) / len(measured) if isinstance(measured, list) and measured else measured


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tables", description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing, and fail where a page is stale")
    add("--fill", type=named, metavar="GROUP=JSON", help="a group, and its measurement")
    given = parser.parse_args(arguments)
    with ending("nothing is half written"):
        file = root / RESULTS
        if given.fill:
            group, measurement = given.fill
            text = filled(file.read_text(), group, read_record(measurement))
            write_whole(file, text.encode())
        made = tables(parsed(file.read_text()))
        for page, (text, new) in pages(root, made).items():
            if text == new:
                continue
            if given.check:
                raise InputError(
                    f"{page}: expected the tables of {RESULTS}, found others; run tools/tables.py"
                )
            write_whole(page, new.encode())
            print(page)


if __name__ == "__main__":
    main()
