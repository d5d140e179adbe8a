"""The table of an ablation, made of records alone: what a set of features is worth and costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import prod

import numpy as np

from vqbank.pipelines.results.compare import Comparison, compare
from vqbank.pipelines.results.plain_table import PlainTable
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.statistics import shown
from vqbank.pipelines.terminal import plain
from vqbank.store.words import html_table

HEADER = (
    "features", "head", "SRCC median", "mean", "95 %", "gain", "better in", "Wilcoxon p",
    "corrected p", "PLCC", "numbers", "bytes", "Pareto",
)  # fmt: skip
NOTES = (
    "Gain: the median over splits of the difference in SRCC to the reference, the first line of "
    "the same head; first lines of further heads go against the very first.",
    "p of Wilcoxon's test, and of the t-test corrected for overlapping training parts; of many "
    "lines one in twenty has p below 0.05 by chance.",
    "Numbers and bytes: of a row of the features, as banked.  Pareto: no line has a higher median "
    "with as few bytes, or as high a one with fewer.",
)

GREEDY_NOTE = (
    "Greedy lines grow by the feature that helps most on scenes held out of the training parts; as "
    "these are tested in other splits, such lines are less independent of test parts."
)


@dataclass(frozen=True, slots=True)
class Line:
    """A head on a set of features, beside what it is compared with."""

    features: str
    """The name of the set."""
    head: str
    record: Record
    """Of this head alone."""
    compared: Comparison | None
    """With its reference; None of the very first line, and where splits are others."""
    numbers: int
    """Of a row of its features."""
    row_bytes: int
    """Of a row of its features, as banked."""
    is_first: bool
    """Of its head: the reference of the others."""
    is_pareto: bool = False

    @property
    def median(self) -> float:
        """Of the SRCC over the splits."""
        return self.record.heads[0].statistics["srcc"].median

    @property
    def cells(self) -> list[str]:
        """As HEADER has them."""
        found = self.record.heads[0].statistics
        low, high = found["srcc"].confidence
        interval = "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
        paired = ["", "", "", ""]
        if (one := self.compared) is not None:
            paired = [f"{one.paired.median_gain:+.4f}", one.better_in, *one.p_values]
        return [
            self.features, self.head, shown(self.median), shown(found["srcc"].mean), interval,
            *paired, shown(found["plcc"].median), f"{self.numbers}", f"{self.row_bytes}",
            "yes" if self.is_pareto else "",
        ]  # fmt: skip


def lines_of(tried: Sequence[tuple[str, str, Record]]) -> list[Line]:
    """What is shown of records that share videos and test parts.

    Args:
        tried: head, name of the set of features, and the record of it; the first line of each head
            is the reference of its others.
    """
    first: dict[str, Record] = {}
    lines = []
    for head, features, record in tried:
        is_first = head not in first
        first.setdefault(head, record)
        reference = next(iter(first.values())) if is_first else first[head]
        sources = record.sources.values()
        numbers = [prod(source.shape) for source in sources]
        sizes = [_itemsize(source.stored_dtype) for source in sources]
        compared = None
        same = record.splits_sha256 == reference.splits_sha256
        if reference is not record and same and record.tests_itself:
            compared = compare([reference, record])[0]
        row_bytes = sum(n * size for n, size in zip(numbers, sizes, strict=True))
        lines.append(Line(features, head, record, compared, sum(numbers), row_bytes, is_first))
    return [replace(line, is_pareto=_is_pareto(line, lines)) for line in lines]


def _itemsize(stored_dtype: str) -> int:
    return 2 if stored_dtype == "bfloat16" else np.dtype(stored_dtype).itemsize


def _is_pareto(line: Line, lines: Sequence[Line]) -> bool:
    """Whether no other line is as good in both, and better in one."""
    if math.isnan(line.median):
        return False
    own = line.median, -line.row_bytes
    others = [(one.median, -one.row_bytes) for one in lines]
    return not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in others)


@dataclass(frozen=True)
class Ablation:
    """What was tried, line by line; a table in notebooks."""

    lines: Sequence[Line]

    @property
    def records(self) -> list[Record]:
        """One for each line."""
        return [line.record for line in self.lines]

    def written(self, form: str) -> str:
        """The table as "markdown", "latex" or "csv"."""
        return ablation_table(self.lines).written(form)

    def __repr__(self) -> str:
        return f"<Ablation of {len(self.lines)} lines>"

    def _repr_html_(self) -> str:
        table = ablation_table(self.lines)
        said = "".join(f"<p>{escape(plain(note))}</p>" for note in table.notes)
        return html_table(repr(self), table.header, table.rows) + said


def ablation_table(lines: Sequence[Line]) -> PlainTable:
    """What is printed of lines, with what has to be said of them."""
    said = dict[str, None]()
    for line in lines:  # what is said of features, the first lines say of all
        own = line.record.cautions if line.is_first else line.record.cautions_of_numbers
        said |= dict.fromkeys([*own, line.record.splits])
    greedy = any(line.features.startswith("greedy ") for line in lines)
    said |= dict.fromkeys([*NOTES, *([GREEDY_NOTE] if greedy else [])])
    return PlainTable(HEADER, [line.cells for line in lines], list(said), words=2)


def matrix_table(tried: Mapping[str, Sequence[Record]]) -> PlainTable:
    """From each data set to each: the number that records print of the SRCC.

    Args:
        tried: by the data set that is trained on, a record for each head, whose test sets are the
            others; on its own data set a head is tested by the test parts of the splits.
    """
    names = list(tried)
    rows, said = [], dict[str, None]()
    for name, records in tried.items():
        for record in records:
            (head,) = record.heads
            numbers = {row.set_name: row.number("srcc") for row in record.rows}
            own = [numbers.get("" if other == name else other, math.nan) for other in names]
            rows.append([name, head.name, *map(shown, own)])
            notes = (*record.cautions, f"{name}: {record.splits}")
            said |= dict.fromkeys(notes)
    header = ("trained on", "head", *names)
    how = "SRCC by the data set that is tested, over splits of the one that is trained on."
    return PlainTable(header, rows, [how, *said], words=2)
