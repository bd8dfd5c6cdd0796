"""What a video file says of how it was made: the software; for a model's video its weights, prompt, seed and
settings, and a digest of these.

It is a line of JSON in the field "comment", which every container has, and which a copy of the streams keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from oneforcing_jax import __version__
from oneforcing_jax.system import places

PACKAGE, FIELD = __name__.split(".")[0], "comment"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a video was made; None where nothing is known, or no model made it.

    Attributes:
      checkpoint: names the weights (`saved.identity`).
      prompt: what was embedded; the file holds its SHA-256 alone.
      seed, sample: of the noise.
      settings: what else decided on the pixels, by name, as JSON holds it; files by their `digest`.
    """

    checkpoint: str | None = None
    prompt: str | None = None
    seed: int | None = None
    sample: int | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def said(self) -> dict[str, Any]:
        """What a file says beside the software, and with settings the digest of it all."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        if self.prompt is not None:
            found["prompt"] = digest(self.prompt)
        if self.settings is None:
            return found
        # As it is read back: tuples are lists.
        found = json.loads(json.dumps(found))
        return found | {"digest": digest(json.dumps(found, sort_keys=True))}

    @property
    def text(self) -> str:
        """As it stands in a file."""
        return json.dumps({"software": software(), **self.said})

    def difference(self, path: Path) -> str:
        """What a file's origin has that is not this; "" where they are one.

        Args:
          path: of a video, of any origin.
        """
        try:
            found = read_origin(path)
        except (OSError, ValueError, av.FFmpegError):
            found = None
        if found is None or "digest" not in found:
            return "a video that does not say what it was made from"
        if found["digest"] == self.said["digest"]:
            return ""
        ours, theirs = flat(self.said), flat(found)
        names = [
            n
            for n in theirs | ours
            if n not in ("software", "digest") and ours.get(n) != theirs.get(n)
        ]
        listed = (f"{n} {_short(theirs.get(n))} and not {_short(ours.get(n))}" for n in names)
        return f"a video made with {', '.join(listed) or 'other settings'}"


UNSAID = Origin()


def digest(content: str | bytes) -> str:
    """SHA-256 of bytes or of words, which may be bytes of a shell that are no text."""
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()


def flat(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, its settings among the rest."""
    inner = said.get("settings")
    return {n: v for n, v in said.items() if n != "settings"} | (
        inner if isinstance(inner, dict) else {}
    )


def _short(value: Any) -> str:
    """A value in a line; of a digest the beginning tells it."""
    if isinstance(value, list | tuple):
        return ",".join(_short(item) for item in value)
    words = f"{value:g}" if isinstance(value, float) else str(value)
    return "none" if value is None else words[:12] if len(words) == 64 else words[:40]


def software() -> str:
    """This package and its version."""
    return f"{PACKAGE} {__version__}"


def read_origin(path: Path) -> dict[str, Any] | None:
    """What a readable video says of its origin; None where it does not say that this package wrote it."""
    source = io.BytesIO(places.read(path)) if places.is_url(path) else str(path)
    with av.open(source) as container:
        found = {name.lower(): text for name, text in container.metadata.items()}
    try:
        said = json.loads(found.get(FIELD, ""))
    except (ValueError, RecursionError):
        return None
    ours = isinstance(said, dict) and str(said.get("software")).startswith(PACKAGE)
    return said if ours else None
