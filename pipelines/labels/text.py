"""Text files to sheets: encoding, delimiter and header are found, never assumed."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from vqbank.pipelines.labels.sheet import Sheet, is_number
from vqbank.pipelines.manifest import VIDEO_SUFFIXES
from vqbank.store.errors import ManifestError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MOST_CELLS = 4_000_000
"""Of 150,000 videos, 26 columns each; a million cells take some 100 MB."""
MOST_COLUMNS = 10_000
"""The published files have up to some hundred, with a column for each person who rated."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def decode(path: Path, content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ManifestError: with line and column of the first byte that is neither; or if it is other
            data, such as a video.
    """
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if path.suffix.lower() in VIDEO_SUFFIXES or b"\0" in content:
            raise ManifestError(
                f"{path} is no text but a video or other data; give the file that lists names "
                "and scores"
            ) from error
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise ManifestError(
            f"{path}:{line}:{column}: byte 0x{content[error.start]:02x} is no "
            f"{'UTF-16' if encoding == 'utf-16' else 'UTF-8'} text; if the file is Latin-1, "
            "convert it: iconv -f latin1 -t utf8"
        ) from error
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        column = control.start() - text.rfind("\n", 0, control.start())
        raise ManifestError(
            f"{path}:{line}:{column}: character {control[0]!r} has no place in a text file"
        )
    return text


def sheets(path: Path, text: str) -> list[Sheet]:
    """Every way in which the text is a table: usually one.

    Raises:
        ManifestError: if it is none, with the line that breaks the best try.
    """
    if not text.strip():
        raise ManifestError(f"{path} is empty")
    cells = text.count("\n") + max(text.count(delimiter) for delimiter in DELIMITERS)
    if cells > MOST_CELLS:
        raise ManifestError(f"{path} has some {cells:,} cells; {MOST_CELLS:,} are the most")
    for number, line in enumerate(text.splitlines(), 1):
        between = max(line.count(delimiter) for delimiter in (*DELIMITERS, " "))
        if between >= MOST_COLUMNS:
            raise _too_wide(path, number, between + 1)
    found: list[Sheet] = []
    failed: dict[str, ManifestError] = {}
    for delimiter, name in DELIMITERS.items():
        try:
            rows = _cells(path, text, delimiter)
            if len(rows[0][1]) > 1:
                found.append(_sheet(path, text, rows, f"text with {name} between cells"))
        except ManifestError as error:
            failed[delimiter] = error
    if not found and not failed and not any(delimiter in text for delimiter in DELIMITERS):
        rows = [
            (number, line.split())
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
        _refuse_ragged(path, rows, "white space")
        if len(rows[0][1]) > 1:
            return [_sheet(path, text, rows, "text with white space between cells")]
    if found:
        return found
    first = text.splitlines()[0]
    if failed:  # the delimiter that the first line has most of is the one that was meant
        raise failed[max(failed, key=first.count)]
    raise ManifestError(
        f"{path}:1: {first[:60]!r} is one cell, whether comma, semicolon, tab or bar stand between "
        "cells; a label file has a name and a score in each line"
    )


def _cells(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, with their lines.

    Raises:
        ManifestError: if the delimiter occurs, but not alike in every row.
    """
    # A quote that is closed and then followed by text is damage; csv alone would read on.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    line = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if len(cells) > MOST_COLUMNS:  # whose quoted cells hold line ends
                raise _too_wide(path, line, len(cells))
            if any(stripped):
                rows.append((line, stripped))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}: {error}") from error
    if not rows:
        raise ManifestError(f"{path} has no cells but blank ones")
    _refuse_ragged(path, rows, DELIMITERS[delimiter])
    return rows


def _too_wide(path: Path, line: int, columns: int) -> ManifestError:
    return ManifestError(
        f"{path}:{line}: some {columns:,} columns; a label file has {MOST_COLUMNS:,} at most, and "
        "a line for each video"
    )


def _refuse_ragged(path: Path, rows: Sequence[tuple[int, list[str]]], delimiter: str) -> None:
    first_line, first = rows[0]
    for line, cells in rows:
        if len(cells) != len(first):
            raise ManifestError(
                f"{path}:{line}: {len(cells)} cells with {delimiter} between them, and "
                f"{len(first)} in line {first_line}"
            )


def _sheet(path: Path, text: str, rows: list[tuple[int, list[str]]], seen: str) -> Sheet:
    width = whole_width = len(rows[0][1])
    # Blank cells after the last row, as spreadsheets leave them, end it as well as a line end.
    ends_with_row = any(cell.strip() for cell in re.split(r"[,;|\s]", text.splitlines()[-1]))
    while len(rows) > 1 and width > 1 and not any(cells[width - 1] for _, cells in rows):
        width -= 1  # trailing empty columns, as spreadsheets write them
    head_line, head = rows[0][0], rows[0][1][:width]
    has_header = not any(is_number(cell) for cell in head)
    numbered = has_header and not head[0] and _are_row_numbers([cells[0] for _, cells in rows[1:]])
    if has_header:
        for number, cell in enumerate(head, 1):
            if numbered and number == 1:
                continue
            if not cell and any(cells[number - 1] for _, cells in rows):
                raise ManifestError(
                    f"{path}:{head_line}, column {number} has cells and no name in the header"
                )
            if cell and cell in head[: number - 1]:
                raise ManifestError(
                    f"{path}:{head_line}, column {number}: {cell!r} stands in the header twice"
                )
        rows = rows[1:]
    names = head if has_header else [str(number) for number in range(1, width + 1)]
    columns = {
        name: [cells[number] for _, cells in rows] for number, name in enumerate(names) if name
    }
    numbers = {name: number for number, name in enumerate(names, 1)}
    lines = [line for line, _ in rows]

    def cell_place(row: int, column: str) -> str:
        name = f" ({column})" if has_header else ""
        return f"{path}:{lines[row]}, column {numbers[column]}{name}"

    return Sheet(
        path=path,
        seen=f"{seen}, {'with' if has_header else 'without'} a header"
        f"{', and row numbers before it' if numbered else ''}",
        columns=columns,
        has_header=has_header,
        head_place=f"{path}:{head_line}",
        row_place=lambda row: f"{path}:{lines[row]}",
        cell_place=cell_place,
        unended=width == whole_width and not text.endswith(("\n", "\r")) and ends_with_row,
    )


def _are_row_numbers(cells: Sequence[str]) -> bool:
    """Whether a column without a name is the index that pandas writes: distinct whole numbers."""
    return all(cell.isdecimal() for cell in cells) and 0 < len(set(cells)) == len(cells)
