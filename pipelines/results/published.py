"""Numbers of a paper beside those of a record."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vqbank.pipelines.paper import Paper
from vqbank.pipelines.results.provenance import bare
from vqbank.pipelines.results.record import Record, Row
from vqbank.pipelines.results.statistics import METRICS, shown

if TYPE_CHECKING:
    from rich.table import Table


def data_of(record: Record, paper: Paper) -> list[str]:
    """The columns of a paper that a record is of; all of them where its videos name none."""
    every = [record.ids, *(one.ids for one in record.test_sets)]
    own = {bare(video_id.split("/", 1)[0]) for ids in every for video_id in ids}
    own |= {bare(one.name) for one in record.test_sets}
    named = [data for data in paper.data if bare(data) in own]
    return named or list(paper.data)


def published_table(record: Record, paper: Paper) -> "Table | None":
    """The table for a terminal: every row of the paper, and what the record has for it.

    None where the paper has no metric that records have, but costs.

    A row of the record stands beside the row of the paper that has the label of its head, also in
    another order; numbers of the paper that nobody can compare stand alone.
    """
    from rich.table import Table

    from vqbank.pipelines.console import styled

    data = data_of(record, paper)
    metrics = [metric for metric in paper.metrics if metric in METRICS]
    if not (metrics and paper.rows):
        return None
    caption = [*_cautions(record, paper, data), *record.cautions]
    table = Table(title=styled(f"{paper.name}, {paper.shows}"), caption=styled(*caption))
    table.add_column("row")
    for one in data:
        for metric in metrics:
            table.add_column(styled(f"{one} {metric.upper()}"), justify="right")
    for place in _places(record):
        for metric in metrics:
            here = f"{place} here" if place else "here"
            table.add_column(styled(f"{here} {metric.upper()}"), justify="right")
    published = {(one.row, one.data, one.metric): one.value for one in paper.numbers}
    ours = {(row.head.name, row.set_name): row for row in record.rows}
    for label in dict.fromkeys([*paper.rows, *(head.name for head in record.heads)]):
        theirs = [
            shown(published.get((label, one, metric), math.nan))
            for one in data
            for metric in metrics
        ]
        own = [ours.get((label, place)) for place in _places(record)]
        numbers = (number for row in own for number in _ours(row, metrics))
        table.add_row(styled(label), *theirs, *numbers)
    return table


def _places(record: Record) -> list[str]:
    """What is tested: the splits' own test parts, by an empty name, and each test set."""
    return [*([""] if record.tests_itself else []), *(one.name for one in record.test_sets)]


def _ours(row: Row | None, metrics: Sequence[str]) -> list[str]:
    if row is None:
        return [""] * len(metrics)
    return [shown(row.number(metric)) for metric in metrics]


def _cautions(record: Record, paper: Paper, data: Sequence[str]) -> list[str]:
    """What is to be known before two numbers are compared."""
    lines = [f"here: {record.number_selected_by}, {record.splits}."]
    if paper.protocol:
        lines.append(f"Published: {paper.protocol}.")
    if paper.chosen:
        lines.append(f"There, {paper.chosen}.")
    if len(data) == len(paper.data) > 1:
        lines.append(
            f"The ids of the videos here begin with the name of none of {', '.join(data)}: which "
            "column is theirs is not known."
        )
    return lines
