"""What the site shows beyond the Markdown that stands in the repository, where it must read well by itself.

- `<!-- site: ... -->` is text for the site alone, such as a table of contents; `<!-- site instead: ... -->` is there in
  place of the page.
- `<!-- generated: options -->`, `networks` and `messages THEME` are filled from the source of pujax.
- A notebook is a page: its text, its code, and what the code printed and showed.
"""

import json
import re
from pathlib import Path
from typing import Any

import config_reference
import messages
from sphinx.application import Sphinx
from sphinx.domains.std import ConfigurationValue


class Options(ConfigurationValue):
    """A directive for options of one kind: several names, that is, one for each place in the tree."""

    def run(self) -> list[Any]:
        """Make them configuration values, which the site can link to and find."""
        self.name = "confval"
        return super().run()

    def get_signatures(self) -> list[str]:
        """Return the names."""
        return self.arguments[0].split()


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make a page's source what the site is to show."""
    path = Path(app.env.doc2path(docname))
    text = notebook(json.loads(source[0])) if path.suffix == ".ipynb" else source[0]
    for module in messages.PACKAGE.rglob("*.py") if "<!-- generated:" in text else ():
        app.env.note_dependency(str(module))
    if instead := re.search(r"<!-- site instead:\n(.*?)-->", text, re.DOTALL):
        text = instead[1]
    text = re.sub(r"<!-- site:\n(.*?)-->", r"\1", text, flags=re.DOTALL)
    text = text.replace("<!-- generated: options -->", config_reference.markdown())
    text = text.replace("<!-- generated: networks -->", config_reference.networks())
    source[0] = re.sub(r"<!-- generated: messages (\w+) -->", lambda match: messages.markdown(match[1], text), text)


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring's `code`, in single backticks as everywhere in pujax, what reStructuredText calls code."""
    lines[:] = [re.sub("`([^`]+)`", r"``\1``\\ ", line) for line in lines]  # an escaped space is none


def notebook(content: dict[str, Any]) -> str:
    """Return a notebook as Markdown."""
    parts = []
    for cell in content["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text")})
    if "image/jpeg" in data:
        return f'<p><img alt="what the cell shows" src="data:image/jpeg;base64,{data["image/jpeg"]}"></p>'
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    app.add_directive("options", Options)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", as_rst)
    return {"parallel_read_safe": True}
