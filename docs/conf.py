"""The site: `make docs`. It needs no network, neither to be built nor to be read."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parent.parent)]

import pujax  # noqa: E402 - from this checkout

project = "pujax"
release = version = pujax.__version__
copyright = "the authors of pujax, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pujax_site"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # [text](page.md#heading), as GitHub makes them
nitpicky = True
autodoc_typehints = "none"  # they stand in the signatures
autodoc_typehints_format = "short"
highlight_language = "none"
toc_object_entries = False

html_theme = "furo"
html_title = f"pujax {release}"
html_static_path = []
html_show_sourcelink = False
html_copy_source = False
