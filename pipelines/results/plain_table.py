"""A table of cells that are text already, for the terminal and for papers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vqbank.pipelines.results.tables import LATEX, MARKDOWN, Form

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("markdown", "latex", "csv")
"""Beside the terminal."""


@dataclass(frozen=True)
class PlainTable:
    """Cells in columns, and notes below."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    words: int
    """So many first columns hold words, the others numbers."""

    def terminal(self, title: str) -> "Table":
        """For the terminal."""
        from rich.table import Table

        from vqbank.pipelines.console import styled

        table = Table(title=styled(title), caption=styled(*self.notes))
        for number, column in enumerate(self.header):
            table.add_column(styled(column), justify="left" if number < self.words else "right")
        for row in self.rows:
            table.add_row(*map(styled, row))
        return table

    def written(self, form: str) -> str:
        """In one of FORMATS; LaTeX for booktabs, with notes as comments, and CSV without."""
        if form == "csv":
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
            return text.getvalue()
        if form == "markdown":
            own = replace(MARKDOWN, rule=f"|{' --- |' * len(self.header)}")
            lines = [*self._lines(own), "", *self._notes(own)]
        else:
            columns = "l" * self.words + "r" * (len(self.header) - self.words)
            start = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
            end = ["\\bottomrule", "\\end{tabular}"]
            lines = [*start, *self._lines(LATEX), *end, *self._notes(LATEX)]
        return "\n".join(lines) + "\n"

    def _lines(self, form: Form) -> list[str]:
        header, *rows = ([form.escape(cell) for cell in row] for row in [self.header, *self.rows])
        return [form.row(header), form.rule, *map(form.row, rows)]

    def _notes(self, form: Form) -> list[str]:
        return [f"{form.note}{form.escape(note)}" for note in self.notes]
