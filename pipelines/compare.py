"""Two runs over the same splits: which is better, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.results import LESS_IS_BETTER, METRICS, HeadRecord, Record
from regressors.significance import Paired, better_by_variance, paired_test
from store.errors import RecipeError, unknown_name


@dataclass(frozen=True, slots=True)
class Comparison:
    """A head against the reference."""

    reference: str
    other: str
    metric: str
    paired: Paired
    less_variance: int
    """Splits in which its residuals vary less than the reference's, by the F-test."""
    more_variance: int


def compare(
    records: Sequence[Record], *, metric: str = "srcc", sources: Sequence[str] = ()
) -> list[Comparison]:
    """Every head of the records against the first head of the first.

    Args:
        records: of runs.
        metric: of METRICS.
        sources: what tells the runs apart, one for each, where heads and features may not.

    Raises:
        RecipeError: if there is no such metric, nothing to compare, or the splits or the scores
            are not the same.
    """
    if metric not in METRICS:
        raise RecipeError(unknown_name("metric", metric, METRICS))
    heads = [
        (record, head, f"{head.name} on {_features(record)}" + (f", {source}" if source else ""))
        for record, source in zip(records, sources or [""] * len(records), strict=True)
        for head in record.heads
    ]
    if len(heads) < 2:
        raise RecipeError("one head only; give a second file, or a run with several heads")
    (first, reference, against), *others = heads
    for record, _, name in others:
        if record.splits_sha256 != first.splits_sha256:
            raise RecipeError(
                f"{name} was tried on other splits than {against} ({record.splits_name}, "
                f"{record.videos} videos; {first.splits_name}, {first.videos} videos); paired "
                "tests need the same"
            )
        if record.mos_sha256 != first.mos_sha256:
            raise RecipeError(
                f"{name} was tried on other scores of the same videos than {against} "
                f"({_scores(record)}; {_scores(first)}); their numbers cannot be compared"
            )
    share = float(np.mean(np.array(first.test_videos) / np.array(first.train_videos)))
    sign = -1.0 if metric in LESS_IS_BETTER else 1.0
    return [
        Comparison(
            reference=against,
            other=name,
            metric=metric,
            paired=paired_test(
                sign * _values(reference, metric), sign * _values(head, metric), test_share=share
            ),
            less_variance=variance[0],
            more_variance=variance[1],
        )
        for _, head, name in others
        for variance in [
            better_by_variance(
                _values(reference, "rmse"), _values(head, "rmse"), np.array(first.test_videos)
            )
        ]
    ]


def _values(head: HeadRecord, metric: str) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array(head.per_split[metric], np.float64)


def _scores(record: Record) -> str:
    return record.mos_kind or record.labels or f"{record.score_name} of {record.title}"


def _features(record: Record) -> str:
    return " + ".join(key.partition("@")[0] for key in record.features.values())
