"""Files of records: one JSON line each, of this format or an earlier one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from vqbank.pipelines.results.record import KEEPS_PREDICTIONS, Record
from vqbank.pipelines.results.statistics import METRICS, Statistics, shown
from vqbank.store.errors import RecipeError, in_words, naming
from vqbank.store.ordinary import open_ordinary

MOST_RECORD_BYTES = 2**28
"""Ten heads on a hundred splits of 39,000 videos take 150 MB."""
MOST_RECORD_VALUES = 2**24
"""Numbers take some 32 bytes of memory each, however short they are in the file."""


def joined(records: Sequence[Record]) -> Record:
    """One record of the heads of several that have all else in common.

    Raises:
        RecipeError: if they are of other features, videos, scores or splits, or name a head twice.
    """
    first, *others = records
    heads = [head for record in records for head in record.heads]
    for record in others:
        for name in ("features", "splits_sha256", "mos_sha256"):
            if getattr(record, name) != getattr(first, name):
                raise RecipeError(f"records of other {name} cannot be one; keep them apart")
    if len({head.name for head in heads}) < len(heads):
        raise RecipeError(f"heads share a name: {', '.join(head.name for head in heads)}")
    return first.model_copy(update={"heads": heads})


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
            are computed again from the values that are kept.
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
    for head in record.heads:
        for metric in METRICS:
            found = Statistics.of(np.array(head.per_split[metric]), record.different)
            stated = head.statistics[metric]
            if record.vqbank_results < KEEPS_PREDICTIONS:  # when intervals and 0 had other rules
                found = found.model_copy(
                    update={"std": stated.std, "confidence": stated.confidence}
                )
            if not found.is_close(stated):
                raise RecipeError(
                    f"{where}: no record of a run: its {metric} of {head.name} says "
                    f"{shown(stated.median)}, and its splits come to {shown(found.median)}, or so "
                    "do their spread and interval; run `vqbank evaluate` again"
                )
    return record
