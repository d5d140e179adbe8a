"""The one way to the terminal.  Much of what is printed others wrote: ids, labels, roles, reasons.

Such text is only text.  Nothing in it is markup, and a control character, which could move the
cursor, hide a line or end one, is shown as its escape.  Tables and progress go through
`vqbank.pipelines.console`, which needs Rich.  Ruff's banned-API rule keeps `typer.echo`, and
Rich's own consoles and texts, out of all other files.
"""

from pathlib import Path

import typer


def plain(text: str) -> str:
    """One line: whatever is no printable character as its escape, such as `\\x1b` or `\\n`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def counted(number: int, noun: str) -> str:
    """Such as `1 video` and `2 videos`, of nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(*cells: "str | Path", err: bool = False) -> None:
    """Print a line, on standard output or standard error; between several cells stand tabs."""
    typer.echo("\t".join(plain(str(cell)) for cell in cells), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text whose line ends vqbank put there itself, such as a table or a JSON document."""
    for line in text.removesuffix("\n").split("\n"):
        say(*line.split("\t"), err=err)
