"""What a video file says of how it was made: the software; for a model's video its weights, prompt and seed.

It is a line of JSON in the field "comment", which every container has, and which a copy of the streams keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import av

PACKAGE, FIELD = __name__.split(".")[0], "comment"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a video was made; None where nothing is known, or no model made it.

    Attributes:
      checkpoint: names the weights (`checkpoint.identity`).
      prompt: what was embedded; the file holds its SHA-256 alone.
      seed, sample: of the noise.
    """

    checkpoint: str | None = None
    prompt: str | None = None
    seed: int | None = None
    sample: int | None = None

    @property
    def text(self) -> str:
        """As it stands in a file."""
        said = {"software": software(), **dataclasses.asdict(self)}
        if self.prompt is not None:
            words = self.prompt.encode(
                errors="surrogatepass"
            )  # of bytes in a shell that are no text
            said["prompt"] = hashlib.sha256(words).hexdigest()
        return json.dumps({name: value for name, value in said.items() if value is not None})


UNSAID = Origin()


@functools.cache
def software() -> str:
    """This package and its version."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return PACKAGE


def read_origin(path: Path) -> dict[str, Any] | None:
    """What a readable video says of its origin; None where it does not say that this package wrote it."""
    with av.open(str(path)) as container:
        found = {name.lower(): text for name, text in container.metadata.items()}
    try:
        said = json.loads(found.get(FIELD, ""))
    except (ValueError, RecursionError):
        return None
    ours = isinstance(said, dict) and str(said.get("software")).startswith(PACKAGE)
    return said if ours else None
