"""The one way to the terminal.  Much of what is printed others wrote: ids, labels, roles, reasons.

Such text is only text.  Nothing in it is markup, and a control character, which could move the
cursor, hide a line or end one, is shown as its escape.  Tables and progress go through
`vqbank.pipelines.console`, which needs Rich.  Ruff's banned-API rule keeps `typer.echo`, and
Rich's own consoles and texts, out of all other files.
"""

from pathlib import Path

import typer

from vqbank.store.words import counted as counted
from vqbank.store.words import plain as plain


def say(*cells: "str | Path", err: bool = False) -> None:
    """Print a line, on standard output or standard error; between several cells stand tabs."""
    typer.echo("\t".join(plain(str(cell)) for cell in cells), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text whose line ends vqbank put there itself, such as a table or a JSON document."""
    for line in text.removesuffix("\n").split("\n"):
        say(*line.split("\t"), err=err)
