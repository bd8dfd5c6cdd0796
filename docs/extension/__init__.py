"""What the site has beside pages as they are written: parts made from the code, notebooks, links."""

from __future__ import annotations

from typing import Any

from extension import commands, fields, gallery, links, notebook

# Where a page says one of these, it is made.
MADE = {"<!-- commands -->": commands.text, "<!-- fields -->": fields.text}


def fill(app: Any, page: str, source: list[str]) -> None:
    """Puts in a page what is made from the code."""
    for mark, text in MADE.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, text())
    if page == "gallery" and app.builder.format == "html":
        source[0] = gallery.shown(source[0], app.outdir / gallery.FOLDER)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_source_suffix(".ipynb", notebook.NAME)
    app.add_source_parser(notebook.Notebook)
    app.connect("source-read", fill)
    app.connect("doctree-read", links.link)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
