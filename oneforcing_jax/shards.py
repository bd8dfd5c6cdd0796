"""Work shared out over processes by hand: "I/N", of N processes the I-th."""

from __future__ import annotations

import re


def parse(text: str) -> tuple[int, int]:
    """Reads "I/N".

    Raises:
      ValueError: another form, or a number that is too high.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard: expected I/N with I from 0 to N - 1, found {text!r}")
    return int(match[1]), int(match[2])
