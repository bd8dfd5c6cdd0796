"""VBench's list of prompts, and the file names that its evaluator looks for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.generation import jobs as listing
from oneforcing_jax.system import bounded, textfiles

INFO, TEXT = Path("vbench/VBench_full_info.json"), Path("prompts/all_dimension.txt")
# The standard evaluator reads samples 0 to 4 of a prompt.
SAMPLES = 5
EXPECTED = f"a checkout of VBench (with {INFO} or {TEXT}), its JSON list, or a text file of prompts"


@dataclasses.dataclass(frozen=True)
class Suite:
    """A list of prompts.

    Attributes:
      path: of its file.
      lines: its prompts, equal ones included.
      dimensions: which each line is for; None for a text file, which does not say.
    """

    path: Path
    lines: Sequence[str]
    dimensions: Sequence[frozenset[str]] | None

    @property
    def digest(self) -> str:
        """SHA-256 of the lines, each with its newline."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.lines).encode()).hexdigest()

    def first(self) -> dict[str, int]:
        """Different prompts in order, and the number of the first line of each, from 0."""
        found: dict[str, int] = {}
        for number, words in enumerate(self.lines):
            found.setdefault(words, number)
        return found

    def repeats(self) -> list[tuple[int, int]]:
        """Lines that repeat another, and the line that counts, both from 1."""
        first = self.first()
        pairs = [(n + 1, first[words] + 1) for n, words in enumerate(self.lines)]
        return [(line, one) for line, one in pairs if line != one]

    def prompts(self, dimensions: Collection[str] = ()) -> list[str]:
        """Different prompts in order: all, or those that some dimensions need.

        Raises:
          InputError: a text file does not know dimensions, or no prompt is for them.
        """
        if not dimensions:
            return list(self.first())
        if self.dimensions is None:
            raise InputError(
                f"--dimension: expected VBench's JSON list with it, found {self.path}, which does not say "
                f"what its prompts are for; give a checkout of VBench or its {INFO.name}"
            )
        wanted = {
            words
            for words, its in zip(self.lines, self.dimensions, strict=True)
            if its & set(dimensions)
        }
        if not wanted:
            raise InputError(
                f"{self.path}: expected prompts for {', '.join(dimensions)}, found none"
            )
        return [words for words in self.first() if words in wanted]

    def rewritten(self, path: Path) -> dict[str, str]:
        """What is embedded in place of each prompt: a line for each of ours. Of equal lines the first counts.

        Raises:
          MissingInput, InputError: no file, or another number of lines.
        """
        texts = [prompt.words for prompt in listing.read_prompts(path)]
        if len(texts) != len(self.lines):
            raise InputError(
                f"{path}: expected {len(self.lines)} prompts, one for each line of {self.path}, found "
                f"{len(texts)}"
            )
        return {words: texts[number] for words, number in self.first().items()}


def names(prompts: Sequence[str], samples: int = SAMPLES) -> list[str]:
    """The files that VBench looks for, all samples of a prompt together."""
    return [f"{words}-{k}.mp4" for words in prompts for k in range(samples)]


def read(path: Path) -> Suite:
    """The list of a checkout of VBench, its JSON list, or a text file.

    Raises:
      MissingInput, InputError: nothing there, another kind of file, a blank line, or a prompt that no file
        can be named after.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in (INFO, INFO.name, TEXT) if (path / name).is_file()]
        if not found:
            raise MissingInput(f"--vbench: expected {EXPECTED}, found none in {path}")
        file = found[0]
    if not file.is_file():
        raise MissingInput(f"--vbench: expected {EXPECTED}, found nothing at {path}")
    suite = _info(file) if file.suffix == ".json" else _text(file)
    for number, words in enumerate(suite.lines, 1):
        if listing.file_name(words) != words:
            raise InputError(
                f"{file}, line {number}: VBench looks for a file named after the whole prompt: expected "
                f"{listing.NAME_BYTES} bytes at most, no slash, no control character, no dot before it, "
                "and é as one character (NFC), "
                f"found {len(words.encode())} bytes: {words[:60]!r}; change or remove it"
            )
    return suite


def _text(file: Path) -> Suite:
    return Suite(file, [prompt.words for prompt in listing.read_prompts(file)], None)


def _info(file: Path) -> Suite:
    text = textfiles.read(file, bounded.JSON)
    try:
        rows = bounded.parsed(text)
        lines = [row["prompt_en"] for row in rows]
        dimensions = [frozenset(row["dimension"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        lines, dimensions = [], []
    if not lines or not all(isinstance(words, str) and words.strip() for words in lines):
        raise InputError(
            f'{file}: expected VBench\'s list, [{{"prompt_en": "a cat", "dimension": ["color"]}}, ...], '
            "found something else; take it from its repository again"
        )
    return Suite(file, lines, dimensions)
