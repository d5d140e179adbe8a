"""Files of records: one JSON line each, of this format or an earlier one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.statistics import METRICS, close, moments, shown
from vqbank.store.errors import RecipeError, in_words, naming, unknown_name
from vqbank.store.ordinary import open_ordinary

MOST_RECORD_BYTES = 2**28
"""Ten heads on a hundred splits of 39,000 videos take 150 MB."""
MOST_RECORD_VALUES = 2**24
"""Numbers take some 32 bytes of memory each, however short they are in the file."""

SHARED = {
    "vqbank_results": "formats",
    "features": "features",
    "splits_sha256": "splits",
    "number_selected_by": "statistics",
    "mos_sha256": "scores or videos",
}
"""What records have in common that become one, and how it is called."""


def joined(records: Sequence[Record]) -> Record:
    """One record of the heads of several that have all else in common.

    Predictions are put into the order in which the first one has the videos.

    Raises:
        RecipeError: if they are of other features, videos, scores or splits, of another format, or
            name a head twice.
    """
    refuse_unlike(records, SHARED)
    first = records[0]
    heads = [head for record in records for head in in_order_of(first, record)]
    if len({head.name for head in heads}) < len(heads):
        raise RecipeError(f"heads share a name: {', '.join(head.name for head in heads)}")
    return first.model_copy(update={"heads": heads})


def refuse_unlike(records: Sequence[Record], shared: Mapping[str, str]) -> None:
    """Refuse records that cannot become one.

    Args:
        records: of several runs.
        shared: what they have in common beside videos and test sets, and how it is called.

    Raises:
        RecipeError: naming the first two that differ, and in what.
    """
    first, *others = records
    for record in others:
        for name, what in shared.items():
            if getattr(record, name) != getattr(first, name):
                raise RecipeError(
                    f"{record.title!r} and {first.title!r} have other {what}, and cannot be one "
                    "record; keep them apart"
                )
        if _sets_of(record) != _sets_of(first):
            raise RecipeError(
                f"{record.title!r} and {first.title!r} have other test sets, and cannot be one "
                "record; keep them apart"
            )
        if sorted(record.ids) != sorted(first.ids):
            raise RecipeError(
                f"{record.title!r} and {first.title!r} are of other videos, and cannot be one "
                "record; keep them apart"
            )


def alone(record: Record, name: str = "") -> Record:
    """The record of one thing that was tested, as if it had tested nothing else.

    Args:
        record: of a run.
        name: of a test set, which every split then tests; empty for the splits' own test parts.

    Raises:
        RecipeError: if there is no such test set, or splits have no test parts.
    """
    nothing_else: dict[str, object] = {
        "test_sets": [],
        "heads": [_without_sets(head) for head in record.heads],
    }
    if not name:
        if not record.tests_itself:
            raise RecipeError(f"splits {record.splits_name} of {record.title!r} test nothing")
        return record.model_copy(update=nothing_else)
    names = [one.name for one in record.test_sets]
    if name not in names:
        raise RecipeError(unknown_name(f"test set of {record.title!r}", name, names))
    number = names.index(name)
    one, splits = record.test_sets[number], len(record.test_videos)
    own: dict[str, object] = {
        "title": f"{record.title}, {name}",
        "score_name": one.score_name,
        "filled": one.filled,
        "left_out": one.left_out,
        "seen_by_weights": one.seen_by_weights,
        "seen_per_split": [one.seen_by_weights] * splits,
        "taken_for": one.taken_for,
        "labels": one.labels,
        "videos": len(one.ids),
        "ids": one.ids,
        "mos": one.mos,
        "mos_sha256": one.mos_sha256,
        "mos_kind": one.mos_kind,
        "test_videos": [len(one.ids)] * splits,
        "tests": [list(range(len(one.ids)))] * splits,
        "validations": [[]] * splits,
        "same_test_as": [0] * splits,
        "directions": [],
        "heads": [
            _without_sets(head).model_copy(update=dict(head.sets[number])) for head in record.heads
        ],
    }
    return record.model_copy(update=nothing_else | own)


def _without_sets(head: HeadRecord) -> HeadRecord:
    return head.model_copy(update={"sets": []})


def _sets_of(record: Record) -> list[tuple[str, str, list[str]]]:
    return [(one.name, one.mos_sha256, one.ids) for one in record.test_sets]


def in_order_of(first: Record, record: Record) -> list[HeadRecord]:
    """The heads of a record of the same videos and splits, with predictions in the first's order.

    Raises:
        RecipeError: if a split tests other videos.
    """
    if record.ids == first.ids:
        return record.heads
    orders = []
    for split, (own, tests) in enumerate(zip(record.tests, first.tests, strict=True)):
        place = {record.ids[row]: number for number, row in enumerate(own)}
        wanted = [first.ids[row] for row in tests]
        if place.keys() != set(wanted):
            raise RecipeError(
                f"{record.title!r} and {first.title!r} test other videos in split {split}, and "
                "cannot be one record; keep them apart"
            )
        orders.append([place[video_id] for video_id in wanted])
    return [
        head.model_copy(
            update={
                "predicted": [
                    [predicted[number] for number in order]
                    for predicted, order in zip(head.predicted, orders, strict=True)
                ]
            }
        )
        for head in record.heads
    ]


def to_json(record: Record) -> str:
    """The line that a file of records holds."""
    return f"{record.model_dump_json()}\n"


def write_record(record: Record, path: Path) -> None:
    """Write one JSON document; a `.jsonl` file gets one more line.

    Args:
        record: of a run.
        path: in a folder that is there.
    """
    with naming(path), path.open("a" if path.suffix == ".jsonl" else "w", encoding="utf-8") as file:
        file.write(to_json(record))


def read_records(path: Path) -> list[Record]:
    """What `write_record` wrote, in this format or an earlier one.

    Raises:
        RecipeError: naming file and line, if it is no record, or contradicts itself: statistics
            are computed again from the values that are kept.  Intervals, which take long to draw,
            are by `Row.confidence`, where they are shown.
    """
    records = []
    try:
        with open_ordinary(path) as file:
            lines = iter(lambda: file.readline(MOST_RECORD_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                if len(line) > MOST_RECORD_BYTES or line.count(b",") > MOST_RECORD_VALUES:
                    raise RecipeError(f"{path}:{number}: longer than any record of a run")
                if line.strip():
                    records.append(_record(line, f"{path}:{number}"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {in_words(error)}") from error
    if not records:
        raise RecipeError(f"{path} has no records; `vqbank evaluate --json {path.name}` writes one")
    return records


def _record(line: bytes, where: str) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{step}: " for step in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{where}: no record of a run: {place}{what}") from error
    names = [f" on {test_set.name}" for test_set in record.test_sets]
    every = [
        (f"{head.name}{name}", scores)
        for head in record.heads
        for name, scores in zip(["", *names], [head, *head.sets], strict=True)
    ]
    for name, scores in every:
        for metric in METRICS:
            values = np.array(scores.per_split[metric], np.float64)
            stated = scores.statistics[metric]
            median, mean, std = moments(values)
            if record.vqbank_results < KEEPS_PREDICTIONS:  # when a spread of 0 had other rules
                std = stated.std
            if not close([stated.median, stated.mean, stated.std], [median, mean, std]):
                raise RecipeError(
                    f"{where}: no record of a run: its {metric} of {name} says "
                    f"{shown(stated.median)}, and its splits come to {shown(median)}, or "
                    "so does their spread; run `vqbank evaluate` again"
                )
    return record
