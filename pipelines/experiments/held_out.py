"""How far a head was off on videos that it had not seen, told by a record of the same head."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.results.head_record import HeadRecord
from vqbank.pipelines.results.record import Record
from vqbank.store.errors import RecipeError

SHARE = 0.9
"""Of the errors that lie in the range which is told beside a score."""
FEWEST_ERRORS = 20
"""Of fewer, one in twenty is none."""


def held_out_errors(records: Sequence[Record], experiment: Experiment) -> dict[str, Any]:
    """The range that holds SHARE of a head's errors on test parts, for its card.

    An error is score less prediction, of every video in every split that tests it.

    Args:
        records: of runs, one of which tried the experiment's head on its features and videos.
        experiment: of one cell, which is to be shipped.

    Raises:
        RecipeError: if no record has this head, or it has too few predictions.
    """
    (cell,), rated = experiment.cells, experiment.rated
    keys = {role: rated.table.specs[role].key for role in cell.roles}
    scores = dict(zip((v.id for v in rated.table.videos), rated.mos.tolist(), strict=True))
    why = "there is no record"
    for record in records:
        if record.features != keys:
            why = f"{record.title!r} is of {', '.join(record.features.values())}"
        elif dict(zip(record.ids, record.mos, strict=True)) != scores:
            why = f"{record.title!r} is of other videos or scores"
        elif (head := _same_head(record, cell)) is None:
            why = f"{record.title!r} has no head with the parameters of {cell.label}"
        else:
            return _range(record, head)
    raise RecipeError(
        f"--record has no errors of {cell.label} on {', '.join(keys.values())}: {why}; run "
        "`vqbank evaluate` with the same recipe and options, and `--json`"
    )


def _same_head(record: Record, cell: Cell) -> HeadRecord | None:
    parameters = json.loads(json.dumps(cell.head.get_params()))  # as records have them
    alike = cell.head.unkept - {"start"}  # from where training goes on makes another head
    kept = {n: v for n, v in parameters.items() if n not in alike}
    for head in record.heads:
        own = {n: v for n, v in head.parameters.items() if n not in alike}
        if head.name == cell.label and own == kept:
            return head
    return None


def _range(record: Record, head: HeadRecord) -> dict[str, Any]:
    mos = np.array(record.mos, np.float64)
    parts = zip(record.tests, head.predicted, strict=True)
    errors = np.concatenate([mos[test] - np.array(predicted) for test, predicted in parts])
    if len(errors) < FEWEST_ERRORS:
        raise RecipeError(
            f"{record.title!r} has {len(errors)} predictions of tested videos; a range of errors "
            f"needs {FEWEST_ERRORS}"
        )
    low, high = np.quantile(errors, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return {
        "share": SHARE,
        "low": float(low),
        "high": float(high),
        "errors": len(errors),
        "splits": record.splits_name,
    }
