"""Run a notebook's code in this process, and write it with what each cell printed and showed.

    python tools/run_notebook.py docs/tutorial.ipynb [--out docs/tutorial.ipynb]

It needs no notebook server. Of a cell's last line, an expression, pictures are kept as JPEG and all else as text.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the outputs of its code cells, which share their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell = cell | {"execution_count": count, "outputs": run_cell("".join(cell["source"]), names, count)}
        cells.append(cell)
    return notebook | {"cells": cells}


def run_cell(code: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run one cell; return its outputs in the notebook's format."""
    tree, printed = ast.parse(code), io.StringIO()
    last = tree.body.pop().value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        value = eval(compile(ast.Expression(last), f"cell {count}", "eval"), names) if last else None
    outputs = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        shown = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": describe(value)}
        outputs.append(shown)
    return outputs


def describe(value: Any) -> dict[str, Any]:
    """Return a value by its media types."""
    text = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_jpeg_"):
        text = {"text/plain": [f"<image of {value.width}x{value.height} pixels>"]}
        return text | {"image/jpeg": base64.b64encode(value._repr_jpeg_()).decode()}
    return text


def main() -> None:
    """Run the notebook that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, help="default: the notebook itself")
    options = parser.parse_args()
    done = run(json.loads(options.notebook.read_text()))
    (options.out or options.notebook).write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
