"""Two runs over the same splits: which is better, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vqbank.pipelines.results.record import HeadRecord, Record
from vqbank.pipelines.results.statistics import LESS_IS_BETTER, METRICS
from vqbank.regressors.significance import Paired, better_by_variance, paired_test
from vqbank.store.errors import RecipeError, unknown_name


@dataclass(frozen=True, slots=True)
class Comparison:
    """A head against the reference, over the splits that count as evidence of their own."""

    reference: str
    other: str
    metric: str
    made: int
    """Splits of the runs."""
    repeated: int
    """Of these, those that are left out because an earlier one has the same test part."""
    paired: Paired
    less_variance: int
    """Splits in which its residuals vary less than the reference's, by the F-test."""
    more_variance: int

    @property
    def better_in(self) -> str:
        """In how many of the compared splits, and why others are not among them."""
        left_out = {"undefined": self.paired.undefined, "repeated": self.repeated}
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        text = f"{self.paired.wins} of {self.paired.splits}"
        return f"{text} ({why}, of {self.made})" if why else text

    @property
    def p_values(self) -> tuple[str, str]:
        """Wilcoxon's, and the corrected one: never 0, and a dash where there is none."""
        return _p_text(self.paired.wilcoxon_p), _p_text(self.paired.corrected_p)


def _p_text(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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
        (record, head, f"{head.name} on {record.feature_names}" + (f", {source}" if source else ""))
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
                f"({_mos_of(record)}; {_mos_of(first)}); their numbers cannot be compared"
            )
    share = float(np.mean(np.array(first.test_videos) / np.array(first.train_videos)))
    different = first.different
    videos = np.array(first.test_videos)[different]
    sign = -1.0 if metric in LESS_IS_BETTER else 1.0
    return [
        Comparison(
            reference=against,
            other=name,
            metric=metric,
            made=len(first.test_videos),
            repeated=len(first.test_videos) - len(different),
            paired=paired_test(
                sign * _values(reference, metric)[different],
                sign * _values(head, metric)[different],
                test_share=share,
            ),
            less_variance=variance[0],
            more_variance=variance[1],
        )
        for _, head, name in others
        for variance in [
            better_by_variance(
                _values(reference, "rmse")[different], _values(head, "rmse")[different], videos
            )
        ]
    ]


def _values(head: HeadRecord, metric: str) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array(head.per_split[metric], np.float64)


def _mos_of(record: Record) -> str:
    return record.mos_kind or record.labels or f"{record.score_name} of {record.title}"
