"""Two runs over the same splits: which is better, and how sure that is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.results.head_record import Scores
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.statistics import LESS_IS_BETTER, METRICS
from vqbank.regressors.significance import Paired, better_by_variance, paired_test
from vqbank.store.errors import RecipeError, unknown_name


@dataclass(frozen=True, slots=True)
class Comparison:
    """A head against the reference, over the splits that count as evidence of their own.

    On a test set, which all splits share, no split is evidence of its own: gains are counted over
    all of them, and there are no paired tests.  Nor are there of one split.
    """

    reference: str
    other: str
    """With the name of the test set where it is not the splits' own test parts."""
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

    Returns:
        One for each further head, and one for each test set that both have, by name and scores.

    Raises:
        RecipeError: if there is no such metric, nothing to compare, or the splits or the scores
            are not the same.
    """
    if metric not in METRICS:
        raise RecipeError(unknown_name("metric", metric, METRICS))
    heads = [
        (record, head, f"{head.name} on {names}" + (f", {source}" if source else ""))
        for record, source in zip(records, sources or [""] * len(records), strict=True)
        for head in record.heads
        for names in [record.feature_names_of(head)]
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
    found = []
    for record, head, name in others:
        if first.tests_itself:
            found.append(_own(first, reference, head, metric=metric, names=(against, name)))
        theirs = zip(record.test_sets, head.sets, strict=True)
        scores = {(one.name, one.mos_sha256): own for one, own in theirs}
        for one, own in zip(first.test_sets, reference.sets, strict=True):
            if (other := scores.get((one.name, one.mos_sha256))) is not None:
                names = against, f"{name}, {one.name}"
                found.append(_on_set(own, other, metric=metric, videos=len(one.ids), names=names))
    if not found:
        raise RecipeError(
            "these runs test nothing that they have in common: no split has a test part, and no "
            "test set has the same name and the same scores"
        )
    return found


def _own(
    record: Record, reference: Scores, other: Scores, *, metric: str, names: tuple[str, str]
) -> Comparison:
    """On the test parts of the splits, of which repeated ones count once."""
    videos = np.array(record.test_videos)
    share = float(np.mean(videos / np.array(record.train_videos)))
    different = record.different
    # One split is no evidence of its own, as a test set is none.
    tests = partial(paired_test, test_share=share) if len(different) > 1 else _gains
    return _compared(
        reference, other, metric=metric, names=names, of=different, videos=videos, tests=tests
    )


def _on_set(
    reference: Scores, other: Scores, *, metric: str, videos: int, names: tuple[str, str]
) -> Comparison:
    """On a test set that all splits share."""
    every = range(len(reference.fits))
    counts = np.full(len(every), videos)
    return _compared(
        reference, other, metric=metric, names=names, of=every, videos=counts, tests=_gains
    )


def _compared(
    reference: Scores,
    other: Scores,
    *,
    metric: str,
    names: tuple[str, str],
    of: Sequence[int],
    videos: NDArray[np.int64],
    tests: Callable[[NDArray[np.float64], NDArray[np.float64]], Paired],
) -> Comparison:
    """Over some of the splits, by some tests of values of which more is better."""
    some = list(of)
    sign = -1.0 if metric in LESS_IS_BETTER else 1.0
    less, more = better_by_variance(
        _values(reference, "rmse")[some], _values(other, "rmse")[some], videos[some]
    )
    return Comparison(
        reference=names[0],
        other=names[1],
        metric=metric,
        made=len(videos),
        repeated=len(videos) - len(some),
        paired=tests(sign * _values(reference, metric)[some], sign * _values(other, metric)[some]),
        less_variance=less,
        more_variance=more,
    )


def _gains(reference: NDArray[np.float64], other: NDArray[np.float64]) -> Paired:
    """What can be said without a test."""
    gains = other - reference
    defined = gains[np.isfinite(gains)]
    return Paired(
        splits=len(defined),
        undefined=len(gains) - len(defined),
        median_gain=float(np.median(defined)) if len(defined) else math.nan,
        wins=int((defined > 0).sum()),
        wilcoxon_p=math.nan,
        corrected_p=math.nan,
    )


def _values(scores: Scores, metric: str) -> NDArray[np.float64]:
    return np.array(scores.per_split[metric], np.float64)


def _mos_of(record: Record) -> str:
    return record.mos_kind or record.labels or f"{record.score_name} of {record.title}"
