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
nitpick_ignore_regex = [("py:(class|data|obj)", ".*")]  # types in signatures, of other libraries most of them
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
highlight_language = "none"
toc_object_entries = False

html_theme = "furo"
html_title = f"pujax {release}"
html_static_path = []
html_show_sourcelink = False
html_copy_source = False
