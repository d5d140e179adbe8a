"""How things are told to people: plurals, the first few names, one printable line, small tables."""

import html
from collections.abc import Iterable, Sequence

FEW = 3
"""How many names a message gives of many."""


def counted(number: int, noun: str) -> str:
    """Such as `1 video` and `2 videos`, of nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(names: Sequence[str]) -> str:
    """The first FEW names, and whether there are more."""
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def plain(text: str) -> str:
    """One line: whatever is no printable character as its escape, such as `\\x1b` or `\\n`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def text_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A title and columns of plain text, for a terminal."""
    cells = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n  ".join([plain(title), *lines])


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as HTML, for a notebook; every text is escaped."""

    def row(cells: Sequence[str], tag: str) -> str:
        of_row = (f"<{tag}>{html.escape(plain(cell))}</{tag}>" for cell in cells)
        return f"<tr>{''.join(of_row)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return (
        f"<table><caption>{html.escape(plain(title))}</caption><thead>{row(head, 'th')}</thead>"
        f"<tbody>{body}</tbody></table>"
    )
