"""Sphinx: the pages of this folder, by `make docs`."""

import ast
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "extractors", "regressors", "store")

project = "vqbank"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["decisions"]
html_theme = "furo"
html_title = "vqbank"
autodoc_typehints = "description"
napoleon_use_rtype = False
nitpicky = False


def tree() -> list[str]:
    """A line for every file of the four rooms: its path, and the first line of its docstring."""
    lines = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            if text:
                lines.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    return lines


class Tree(SphinxDirective):
    """`{tree}`: every file, by its first line."""

    def run(self) -> list[nodes.Node]:
        """A definition list."""
        listed = nodes.definition_list()
        for line in tree():
            path, _, words = line.partition(": ")
            listed += nodes.definition_list_item(
                "",
                nodes.term("", "", nodes.literal("", path)),
                nodes.definition("", nodes.paragraph("", words)),
            )
        return [listed]


def as_restructured(
    app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with code in backticks: `[t, *shape]` holds no emphasis."""
    for at, line in enumerate(lines):
        code = re.split("`([^`]+)`", line)
        code[0::2] = [words.replace("*", r"\*") for words in code[0::2]]
        code[1::2] = [f"``{words}``\\ " for words in code[1::2]]
        lines[at] = "".join(code)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of both."""
    app.add_directive("tree", Tree)
    app.connect("autodoc-process-docstring", as_restructured, priority=100)
    return {"parallel_read_safe": True}
