"""The parts of pages that browsers show: files of HTML, CSS and JavaScript beside this one."""

from __future__ import annotations

from pathlib import Path


def part(name: str) -> str:
    """The text of one of these files."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
