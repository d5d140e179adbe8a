"""Heads that were tried apart become one: the mean of what they say of every video."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vqbank.pipelines.experiments.fits import SetResult
from vqbank.pipelines.experiments.found import scores, sha256
from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord, Scores
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.records import SHARED, in_order_of, refuse_unlike
from vqbank.regressors.metrics import quality_metrics
from vqbank.store.errors import RecipeError

ALIKE = {name: what for name, what in SHARED.items() if name != "features"}
"""What records have in common whose heads are averaged: they may be of other features."""


def averaged(records: Sequence[Record], name: str) -> Record:
    """A record with one head: the mean of the predictions of all heads of these records.

    Predictions are in the unit of the training scores, so that heads need no weights.  They are
    averaged split by split, and measured anew: a head that is averaged has seen no more than the
    heads that it is made of.

    Args:
        records: of the same videos, scores, splits and test sets; features may be others.
        name: of the head, for tables.

    Raises:
        RecipeError: if they differ in more than features, keep no predictions, or have but one
            head together.
    """
    first = records[0]
    refuse_unlike(records, ALIKE)
    members = [head for record in records for head in in_order_of(first, record)]
    if first.vqbank_results < KEEPS_PREDICTIONS:
        raise RecipeError(
            f"{first.title!r} is of an earlier vqbank and keeps no predictions of splits; run "
            "`vqbank evaluate` again"
        )
    if len(members) < 2:
        raise RecipeError(f"one head alone, {members[0].name}, is no ensemble; give more of them")
    names = ", ".join(member.name for member in members)
    splits = len(first.test_videos)
    tests = [(first.mos, rows) for rows in first.tests]
    own = _measured(members, tests if first.tests_itself else [None] * splits, first.different)
    sets = [
        _measured(
            [member.sets[number] for member in members],
            [(one.mos, range(len(one.mos)))] * splits,
            [0],
        )
        for number, one in enumerate(first.test_sets)
    ]
    head = HeadRecord(
        **dict(own),
        name=name,
        parameters={"members": [member.name for member in members]},
        selection=[f"the mean of {names}, each as it was chosen"] * splits,
        seconds=np.sum([member.seconds for member in members], axis=0).tolist(),
        cell=sha256([member.cell for member in members]),
        sets=sets,
    )
    return first.model_copy(update={**_of_all(records), "title": name, "heads": [head]})


def _measured(
    members: Sequence[Scores],
    tests: Sequence[tuple[Sequence[float], Sequence[int]] | None],
    different: Sequence[int],
) -> Scores:
    """Of the mean prediction, split by split; None is a split that tests nothing."""
    results: list[SetResult | None] = []
    for split, test in enumerate(tests):
        if test is None:
            results.append(None)
            continue
        mos, rows = test
        mean = np.mean([member.predicted[split] for member in members], axis=0)
        results.append(SetResult(quality_metrics(np.array(mos)[list(rows)], mean), mean))
    return scores(results, different)


def _of_all(records: Sequence[Record]) -> dict[str, Any]:
    """What is to be said of features: of all records together."""
    features: dict[str, str] = {}
    for key in (key for record in records for key in record.features.items()):
        role, name = key
        if features.get(role, name) != name:
            role = next(r for r in _numbered(role) if features.get(r, name) == name)
        features[role] = name
    sources = {
        role: record.sources[own]
        for record in records
        for own, key in record.features.items()
        for role in features
        if features[role] == key and own in record.sources
    }
    lists = ("provenance_unknown", "seen_by_weights", "weights_unknown")
    return {
        "features": features,
        "sources": sources,
        "random_weights": any(record.random_weights for record in records),
        **{name: _union([getattr(record, name) for record in records]) for name in lists},
        "seen_per_split": [
            _union(split) for split in zip(*(r.seen_per_split for r in records), strict=True)
        ],
        **{name: _merged(records, name) for name in ("filled", "left_out")},
        "test_sets": [
            sets[0].model_copy(
                update={
                    "seen_by_weights": _union([one.seen_by_weights for one in sets]),
                    "trained_on": sorted({row for one in sets for row in one.trained_on}),
                    **{name: _merged(sets, name) for name in ("filled", "left_out")},
                }
            )
            for sets in zip(*(record.test_sets for record in records), strict=True)
        ],
    }


def _numbered(role: str) -> Iterator[str]:
    yield from (f"{role}-{number}" for number in range(2, 10_000))


def _union(lists: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(line for lines in lists for line in lines))


def _merged(parts: Sequence[Any], name: str) -> Mapping[str, int]:
    return {key: count for part in parts for key, count in getattr(part, name).items()}
