"""Cells in named columns: what text, .mat and VMAF files have in common."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vqbank.store.errors import ManifestError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table of text cells, before anybody said what its columns mean."""

    path: Path
    seen: str
    """What kind of file this is, for messages: `text, ';' between cells`."""
    columns: Mapping[str, Sequence[str]]
    """Cells by column; columns without a header are called `1`, `2`, ...

    Those of text are of one length; a .mat file holds sizes and lists of other things, too.
    """
    has_header: bool
    head_place: str
    """Where the names of the columns stand, or the first row."""
    row_place: Callable[[int], str]
    """Where row i stands."""
    cell_place: Callable[[int, str], str]
    """Where the cell of row i in a column stands."""
    matrices: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Numeric matrices by name: the `index` of .mat files."""
    unended: bool = False
    """The last line has no line end, so that its last cell may be cut off."""

    def __len__(self) -> int:
        return max((len(cells) for cells in self.columns.values()), default=0)

    def numbers(self, column: str, *, missing: Collection[str] = ()) -> list[float | None]:
        """The column as numbers; a decimal comma is one where no cell has a point.

        Args:
            column: its name.
            missing: cells, in lower case, that stand for no number and become None.

        Raises:
            ManifestError: with the place of the first cell that is no finite number.
        """
        cells = self.columns[column]
        point = next((row for row, cell in enumerate(cells) if "." in cell), None)
        comma = next((row for row, cell in enumerate(cells) if "," in cell), None)
        if point is not None and comma is not None:
            raise ManifestError(
                f"{self.cell_place(comma, column)}: {cells[comma]!r} has a decimal comma, and "
                f"{cells[point]!r} ({self.row_place(point)}) a point"
            )
        found: list[float | None] = []
        for row, cell in enumerate(cells):
            if cell.lower() in missing:
                found.append(None)
            elif is_number(cell):
                found.append(float(cell.replace(",", ".")))
            else:
                what = "empty" if not cell else f"{cell!r}, which is no finite number"
                raise ManifestError(f"{self.cell_place(row, column)} is {what}")
        return found


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number, with point or decimal comma."""
    return _NUMBER.fullmatch(cell) is not None and abs(float(cell.replace(",", "."))) < 1e300
