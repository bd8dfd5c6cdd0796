"""Pages name each other as one finds them in the repository, `docs/live.md`. On the site these are links."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

PAGE = re.compile(r"docs/([\w/]+?)(?:\.md|(?<=quickstart)\.ipynb|(?<=launch)/?)$")
FOLDERS = {"launch": "launch/README"}


def link(app: Any, tree: nodes.document) -> None:
    """Makes links of names of pages; a page that there is not is a warning, and so an error."""
    for name in list(tree.findall(nodes.literal)):
        found = PAGE.match(name.astext())
        if not found or isinstance(name.parent, nodes.reference | addnodes.pending_xref):
            continue
        target = f"/{FOLDERS.get(found[1], found[1])}"
        xref = addnodes.pending_xref(
            "", refdomain="std", reftype="doc", reftarget=target, refexplicit=True, refwarn=True,
            refdoc=app.env.docname,
        )  # fmt: skip
        name.replace_self(xref)
        xref += name
