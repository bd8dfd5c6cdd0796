"""The card of a student: a README.md that says what its weights are."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from importlib import resources

README = "README.md"
# What nobody has filled in yet.
_OPEN = re.compile(r"<[^<>\n][^<>]*>")


def template() -> str:
    """The card, with what its author fills in between angle brackets."""
    return (resources.files("oneforcing_jax.pages") / "model_card.md").read_text(encoding="utf-8")


def draft(known: Mapping[str, str]) -> str:
    """The card of weights of which some words are known."""
    return string.Template(template()).substitute(known)


def wrong(page: str) -> list[str]:
    """What a card lacks, in words; none: it is complete."""
    front = re.match(r"---\n(.*?)^---$", page, re.MULTILINE | re.DOTALL)
    lacking = []
    if not front or not re.search(r"^license: *\S", front[1], re.MULTILINE):
        lacking.append("license, in lines between dashes at its beginning")
    for heading in re.findall("^## .*$", template(), re.MULTILINE):
        if not re.search(f"^{re.escape(heading)}$", page, re.MULTILINE):
            lacking.append(f"a section {heading!r}")
    code = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    left = _OPEN.findall(code.sub("", page))
    return [*lacking, *(f"words for {' '.join(words.split())[:60]}" for words in left)]
