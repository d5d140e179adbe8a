"""The score of the NTIRE 2024 challenge on short-form videos, of a record and files of pairs."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.results.record import Record
from vqbank.regressors.metrics import ntire_score
from vqbank.store.documents import file_text
from vqbank.store.errors import RecipeError

MOST_PAIRS = 1_000_000


def read_pairs(path: Path) -> list[tuple[str, str, int]]:
    """The pairs of a file: two videos, and 1 or 2 for the better one.

    The three columns of a sheet of the challenge's spreadsheet, exported as CSV, with or without a
    line of names above them.

    Args:
        path: text with commas, semicolons or tabs.

    Raises:
        RecipeError: naming file and line, if it is no such file.
    """
    text = file_text(path, RecipeError, what="CSV")
    begin = text.partition("\n")[0]
    delimiter = max(",;\t", key=begin.count)
    pairs = []
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        better = cells[2].removesuffix(".0") if len(cells) == 3 else ""
        if better in ("1", "2") and all(cells):
            pairs.append((cells[0], cells[1], int(better)))
        elif number > 1 or len(cells) != 3:
            raise RecipeError(
                f"{path}:{number}: {delimiter.join(row)!r} is no pair: a video, another one, and 1 "
                "or 2 for the better one; export a sheet of the spreadsheet as CSV"
            )
        if len(pairs) > MOST_PAIRS:
            raise RecipeError(f"{path}: more than {MOST_PAIRS:,} pairs")
    if not pairs:
        raise RecipeError(f"{path} has no pairs")
    return pairs


def challenge_scores(
    record: Record,
    nonsource: Sequence[tuple[str, str, int]],
    source: Sequence[tuple[str, str, int]],
) -> dict[str, dict[str, float]]:
    """By head: `score`, and the `srcc`, `plcc` (raw), `rank1` and `rank2` that it is made of.

    A video that several splits test has the mean of their predictions: one model for each split,
    averaged, where splits are those of a training part and all predict one test set.

    Args:
        record: whose own test parts are scored; `records.alone` gives that of a test set.
        nonsource: pairs of different contents.
        source: pairs of one content.

    Raises:
        RecipeError: if a pair names a video that is not tested, or several by its file name.
    """
    found = {}
    for head in record.heads:
        predicted = record.predictions_of(head)
        ids = list(predicted)
        mos = dict(zip(record.ids, record.mos, strict=True))
        found[head.name] = ntire_score(
            np.array([mos[video] for video in ids]),
            np.array(list(predicted.values())),
            nonsource=_rows(nonsource, ids),
            source=_rows(source, ids),
        )
    return found


def _rows(pairs: Sequence[tuple[str, str, int]], ids: Sequence[str]) -> NDArray[np.int64]:
    """[m, 3]: numbers of both videos, and which is better."""
    places: dict[str, list[int]] = {}
    for place, video in enumerate(ids):
        for name in {video, video.rpartition("/")[2]}:
            places.setdefault(name, []).append(place)
    return np.array(
        [[_only(places, one), _only(places, other), better] for one, other, better in pairs]
    )


def _only(places: dict[str, list[int]], name: str) -> int:
    found = places.get(name, [])
    if len(found) != 1:
        what = "is not among the tested videos" if not found else f"is the name of {len(found)}"
        raise RecipeError(
            f"pairs: {name!r} {what}; pairs name videos by their ids or by their files' names"
        )
    return found[0]
