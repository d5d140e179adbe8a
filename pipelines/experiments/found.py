"""What was found of a cell, as records have it: scores on test parts and on test sets."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from vqbank.pipelines.experiments.fits import Cell, SetResult, SplitResult
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.experiments.shared_splits import SharedSplits
from vqbank.pipelines.labels import Labels
from vqbank.pipelines.results.head_record import HeadRecord, Mapped, Scores
from vqbank.pipelines.results.provenance import seen_by_weights
from vqbank.pipelines.results.set_record import SetRecord
from vqbank.pipelines.results.statistics import METRICS, Statistics
from vqbank.pipelines.splits.split import first_alike

SOFTWARE = ("vqbank", "numpy", "scipy", "scikit-learn", "torch")
"""What computes the numbers of a cell; another version may give others."""


def head_record(
    cell: Cell, key: str, splits: SharedSplits, results: Sequence[SplitResult]
) -> HeadRecord:
    """Of a cell, from what came of each split.

    Args:
        cell: that was tried.
        key: the hash of all that its fits depend on.
        splits: on which it was.
        results: one for each split, in any order.
    """
    results = sorted(results, key=lambda result: result.split)
    own = [None if r.metrics is None else SetResult(r.metrics, r.predicted) for r in results]
    sets = zip(*(result.sets for result in results), strict=True)
    return HeadRecord(
        **dict(scores(own, sorted(set(first_alike(splits.rows))))),
        name=cell.label,
        parameters=as_json(cell.head.get_params()),
        selection=[result.selection for result in results],
        held_out=[result.held_out for result in results if result.held_out is not None],
        seconds=[result.seconds for result in results],
        start_unknown=not cell.head.knows_what_was_seen(),
        cell=key,
        sets=[scores(of_set, [0]) for of_set in sets],
    )


def scores(results: Sequence[SetResult | None], different: Sequence[int]) -> Scores:
    """Of what came of each split on one part or set.

    Args:
        results: one for each split, in order; None where there is nothing to test.
        different: splits that are evidence of their own.
    """
    metrics = [None if result is None else result.metrics for result in results]
    per_split = {
        name: np.array([np.nan if one is None else getattr(one, name) for one in metrics])
        for name in METRICS
    }
    none = Mapped(kind="none", parameters=[])
    return Scores(
        undefined=sum(one is not None and bool(np.isnan(one.srcc)) for one in metrics),
        statistics={m: Statistics.of(values, different) for m, values in per_split.items()},
        per_split={metric: values.tolist() for metric, values in per_split.items()},
        fits=["" if one is None else one.fit for one in metrics],
        mappings=[
            none if one is None else Mapped(kind=one.mapping, parameters=list(one.parameters))
            for one in metrics
        ],
        predicted=[[] if result is None else result.predicted.tolist() for result in results],
    )


def set_record(further: FurtherSet, cell: Cell, *, trained_on: list[int]) -> SetRecord:
    """Of a test set, as a cell sees it.

    Args:
        further: the set.
        cell: by whose features it is seen.
        trained_on: those of its videos that are trained on.
    """
    own, ids = further.rated, [video.id for video in further.rated.table.videos]
    specs = {role: own.table.specs[role] for role in cell.roles}
    names = {spec.name for spec in specs.values()}
    return SetRecord(
        name=further.name,
        score_name=own.score_name,
        labels=labels_text(own.labels),
        ids=ids,
        mos=own.mos.tolist(),
        mos_sha256=scores_sha256(ids, own.mos.tolist()),
        mos_kind=own.labels.kind if own.labels is not None else "",
        files_sha256=sha256([files_sha256(own, role) for role in cell.roles]),
        seen_by_weights=seen_by_weights(specs, ids),
        trained_on=trained_on,
        dropped=len(own.dropped),
        filled={name: count for name, count in own.filled.items() if name in names},
        left_out={name: count for name, count in own.left_out.items() if name in names},
        taken_for=own.taken_for,
    )


def labels_text(labels: Labels | None) -> str | None:
    """The label file's name and layout."""
    return None if labels is None else f"{labels.path.name}: {labels.layout}"


def files_sha256(rated: RatedVideos, role: str) -> str:
    """A hash of whose features these are: of the videos' files, or of the values themselves."""
    table = rated.table
    files = rated.files.get(table.specs[role].key)
    if files is not None:
        return sha256(list(files))
    digest = hashlib.sha256()
    for row in range(len(table)):
        digest.update(np.ascontiguousarray(table.series(role, row)).tobytes())
    return digest.hexdigest()


def scores_sha256(ids: Sequence[str], mos: Sequence[float]) -> str:
    """Of every video's id and score, in any order."""
    return sha256(sorted(zip(ids, mos, strict=True)))


@cache
def software() -> dict[str, str]:
    """Versions of what computes numbers."""
    return {name: version(name) for name in SOFTWARE}


def as_json(value: Any) -> Any:
    """A value as JSON has it: tuples become lists."""
    return json.loads(json.dumps(value))


def sha256(content: object) -> str:
    """Of a value of JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
