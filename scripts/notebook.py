"""Run the cells of a notebook in order, in one namespace, and store what they give: scripts/notebook.py FILE.

Cells are plain Python. What a cell prints and the picture or text of its last line are kept, as Jupyter keeps them.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    """The notebook with the outputs of its cells; `parameters` replace values that the cell tagged so assigns."""
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]), f"cell {number}")
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            printed, value = io.StringIO(), None
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"cell {number}", "exec"), space)
                if "parameters" in cell["metadata"].get("tags", ()):
                    space |= parameters
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space)
            cell = {**cell, "execution_count": number, "outputs": outputs(printed.getvalue(), value, number)}
        cells.append(cell)
    return {**notebook, "cells": cells}


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """What Jupyter stores of a cell: its text, and the value of its last line."""
    found: list[dict[str, Any]] = []
    if printed:
        found.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
        found.append(result)
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(json.dumps(run(json.loads(path.read_text())), indent=1, ensure_ascii=False) + "\n")
