"""Prompts with their dimensions, and the stratified draw of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import bounded, textfiles

FORMS = (
    'a JSON list of {"prompt": "a cat", "dimension": "color"}, VBench_full_info.json, or lines of a '
    "dimension, a tab and a prompt"
)


class Prompt(NamedTuple):
    """A prompt and its primary dimension, by which the draw is stratified."""

    words: str
    dimension: str


def read(path: Path) -> list[Prompt]:
    """Prompts of a file, each once.

    Args:
      path: .json, or text with a dimension, a tab and a prompt a line. Of several dimensions of a prompt
        the first is its primary one.

    Raises:
      MissingInput, InputError: no such file, or another form.
    """
    if not path.is_file():
        raise MissingInput(f"prompts: expected {FORMS}, found nothing at {path}")
    text = textfiles.read(path, bounded.JSON)
    try:
        rows = bounded.parsed(text) if path.suffix == ".json" else textfiles.lines(text)
        if not isinstance(rows, list):
            raise ValueError("no list")
    except ValueError as error:
        raise InputError(f"{path}: expected {FORMS}, found: {error}") from None
    found = [_prompt(f"{path}, row {i}", row) for i, row in enumerate(rows, 1) if row != ""]
    # VBench's list names two prompts twice.
    first: dict[str, Prompt] = {}
    for prompt in found:
        first.setdefault(prompt.words, prompt)
    return list(first.values())


def _prompt(where: str, row: Any) -> Prompt:
    words: Any = None
    dimension: Any = None
    if isinstance(row, str):
        dimension, _, words = row.partition("\t")
    elif isinstance(row, dict):
        words, dimension = row.get("prompt", row.get("prompt_en")), row.get("dimension")
        dimension = dimension[0] if isinstance(dimension, list) and dimension else dimension
    good = all(isinstance(text, str) and text.strip() for text in (words, dimension))
    if not good:
        raise InputError(f"{where}: expected {FORMS}, found {str(row)[:60]!r}; correct it")
    if len(textfiles.lines(words.strip())) > 1:
        raise InputError(
            f"{where}: expected a prompt in one line, found {words[:60]!r}; correct it"
        )
    return Prompt(words.strip(), dimension.strip())


def stratified(prompts: Sequence[Prompt], count: int, rng: np.random.Generator) -> list[Prompt]:
    """`count` prompts, of every dimension as many as of any other, give or take one where it has so many.

    Raises:
      InputError: fewer prompts than that.
    """
    if len(prompts) < count:
        raise InputError(
            f"prompts: expected {count} different ones or more, found {len(prompts)}; lower --count"
        )
    by_dimension: dict[str, list[Prompt]] = {}
    for i in rng.permutation(len(prompts)):
        by_dimension.setdefault(prompts[i].dimension, []).append(prompts[i])
    # Which dimensions have one more is drawn, too.
    names = sorted(by_dimension)
    order = [names[i] for i in rng.permutation(len(names))]
    most = max(map(len, by_dimension.values()))
    rounds = (by_dimension[name][i] for i in range(most) for name in order
              if i < len(by_dimension[name]))  # fmt: skip
    return [prompt for prompt, _ in zip(rounds, range(count), strict=False)]
