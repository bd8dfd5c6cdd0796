"""The site of these pages, with Sphinx: python -m sphinx -W --keep-going docs build/site

Sphinx, for it has been there since 2008 and builds the docs of Python, NumPy and JAX. All pages stay plain
Markdown, and what is ours lies in extension/: references made from the code, and a gallery made by commands.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import oneforcing_jax  # noqa: E402

project = "oneforcing_jax"
author = "The maintainers of oneforcing_jax"
release = version = oneforcing_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "extension"]
# Of one name with a page; it is linked as a file.
exclude_patterns = ["extension", "live.ipynb"]

# As hosts of repositories name headings in links: page.md#heading.
myst_heading_anchors = 4
smartquotes = False  # of two hyphens it makes one dash
# Docstrings have words between single backticks, as in Markdown.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"oneforcing_jax {release}"
html_copy_source = False
