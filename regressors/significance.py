"""Whether one run over some splits is better than another over the same splits.

Of SciPy only `scipy.special` is used, where a test is computed: `scipy.stats` takes as long to
import as all else that `vqbank compare` does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import HeadError

RESAMPLES = 10_000
"""Of the bootstrap: the ends of an interval of 95 % then vary by a hundredth of its width."""
BLOCK_VALUES = 2**20
"""Drawn at a time: 8 MiB, and three times that with what a median takes."""
LEVEL = 0.05
FEWEST = 6
"""Values whose smallest and largest enclose the median that they come from with 95 %: of k values
they miss it with 2 / 2^k.  Of fewer no interval of 95 % can be made."""
MOST_EXACT = 50
"""Differences whose signs are counted through, as `scipy.stats.wilcoxon` does without ties."""
ROUNDING = 1e-12
"""Relative spread below which values count as the same: what is left is rounding."""


@dataclass(frozen=True, slots=True)
class Paired:
    """One run against a reference, split by split."""

    splits: int
    """In which both runs have a value: these are compared."""
    undefined: int
    """Splits in which one of them has none."""
    median_gain: float
    """Of the differences, not the difference of the medians."""
    wins: int
    """Splits in which the run is better."""
    wilcoxon_p: float
    """Wilcoxon's signed-rank test, two-sided, as the field reports it.

    It takes splits for independent; random splits of one data set share videos, so that it is too
    sure of itself."""
    corrected_p: float
    """The t-test with Nadeau and Bengio's correction for that (Machine Learning 52, 2003).

    NaN where all splits differ by the same: without spread there is nothing to test with."""


def paired_test(
    reference: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    test_share: float,
) -> Paired:
    """Compare a metric, of which more is better, over the same splits.

    Args:
        reference: [k], one value per split.
        other: [k].
        test_share: test videos per training video; 0.25 for splits of 80/20.

    Raises:
        HeadError: if there are fewer than two splits, or the two differ in number.
    """
    if reference.shape != other.shape or reference.ndim != 1 or len(reference) < 2:
        raise HeadError(
            f"paired tests need the same splits, at least 2: got {reference.shape} and "
            f"{other.shape}"
        )
    defined = np.isfinite(reference) & np.isfinite(other)
    gains = (other - reference)[defined]
    k = len(gains)
    if k < 2:
        raise HeadError(f"only {k} splits have a value in both runs; paired tests need 2")
    undefined = len(reference) - k
    if not gains.any():
        return Paired(k, undefined, 0.0, 0, 1.0, 1.0)
    corrected = np.nan
    if not _agree(gains):
        from scipy import special

        t = gains.mean() / np.sqrt(gains.var(ddof=1) * (1 / k + test_share))
        corrected = _never_zero(2 * special.stdtr(k - 1, -abs(t)))
    return Paired(
        splits=k,
        undefined=undefined,
        median_gain=float(np.median(gains)),
        wins=int((gains > 0).sum()),
        wilcoxon_p=_never_zero(wilcoxon_p(gains)),
        corrected_p=float(corrected),
    )


def wilcoxon_p(gains: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences of 0 say nothing and are left out.

    Exact for up to MOST_EXACT differences, equal ones included: every choice of signs is counted.
    Of more by the normal distribution, with the correction for equal ones, as `scipy.stats` has it.

    Args:
        gains: [k], not all of them 0.
    """
    from scipy import special

    moved = gains[gains != 0]
    _, place, alike = np.unique(np.abs(moved), return_inverse=True, return_counts=True)
    twice = (2 * np.cumsum(alike) - alike + 1)[place]  # the ranks, doubled: halves become whole
    total, up = int(twice.sum()), int(twice[moved > 0].sum())
    if len(moved) > MOST_EXACT:
        variance = (twice.astype(np.float64) ** 2).sum() / 4
        return float(2 * special.ndtr(-abs(up - total / 2) / np.sqrt(variance)))
    ways = np.zeros(total + 1)  # in how many choices of signs the ranks above 0 have this sum
    ways[0] = 1
    for rank in twice:
        ways[rank:] += ways[: total + 1 - rank].copy()
    rarer = ways[: min(up, total - up) + 1].sum() / ways.sum()
    return float(min(1.0, 2 * rarer))


def _agree(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _never_zero(p: float) -> float:
    """What is too small for a float is small, and not impossible."""
    return max(float(p), float(np.finfo(np.float64).tiny))


def better_by_variance(
    reference: NDArray[np.float64], other: NDArray[np.float64], videos: NDArray[np.int64]
) -> tuple[int, int]:
    """In how many splits the other's residuals vary less, and in how many more, by the F-test.

    The test of Sheikh et al. (IEEE TIP 2006) and ITU-T P.1401: the ratio of the residual variances
    of two models on the same videos, one-sided at 95 %.

    Args:
        reference: [k] RMSE after the mapping.
        other: [k].
        videos: [k] test videos.
    """
    from scipy import special

    limit = special.fdtri(videos - 1, videos - 1, 1 - LEVEL)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.square(reference) / np.square(other)
    return int((ratio > limit).sum()), int((1 / ratio > limit).sum())


def confidence_of_median(values: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median over splits.

    NaN of fewer than FEWEST values, and of values that all agree, which tell of no spread.
    Resamples are drawn in blocks of BLOCK_VALUES: memory does not grow with the number of splits.

    Args:
        values: [k], of different splits; NaN is left out.
        seed: of the resamples.
    """
    defined = values[np.isfinite(values)]
    if len(defined) < FEWEST or _agree(defined):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    medians = np.empty(RESAMPLES)
    block = max(1, BLOCK_VALUES // len(defined))
    for start in range(0, RESAMPLES, block):
        part = medians[start : start + block]
        part[:] = np.median(rng.choice(defined, (len(part), len(defined))), axis=1)
    low, high = np.quantile(medians, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
