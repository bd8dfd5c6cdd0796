"""A notebook as a page: its words, and its code as blocks. What code gives is left out."""

from __future__ import annotations

import json
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser

NAME = "notebook"


class Notebook(MystParser):
    """Reads .ipynb files."""

    supported = (NAME,)

    def parse(self, inputstring: str, document: Any) -> None:
        """Parses the Markdown that a notebook is."""
        super().parse(markdown(inputstring), document)


def markdown(text: str) -> str:
    """The cells of a notebook, one after the other."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    return "\n\n".join(
        f"```python\n{said}\n```" if kind == "code" else said for kind, said in cells
    )
