"""How well predictions agree with mean opinion scores."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

from vqbank.store.errors import HeadError

ROUNDING = 1e-12
"""Relative spread below which float64 values count as constant: what is left is rounding."""
STEEPEST = 1e-12
"""Smallest |b4|, so that a step of the fit through b4 = 0 divides by something."""
CALLS = 20_000
"""Function calls until a fit is given up; official code allows 1e8, good fits need hundreds."""
CALLS_AGAIN = 2_000
"""The same for a fit that begins anew."""
EXTREMES = 0.2
"""Share of the videos at either end of the MOS in the extreme set of RAM-VQA (its figure 5)."""


FALLING = "the fitted curve falls: the head ranks videos upside down"


@dataclass(frozen=True, slots=True)
class MosMapping:
    """From predictions to MOS units, as fitted before PLCC and RMSE."""

    kind: Literal["logistic", "linear", "none"]
    parameters: tuple[float, ...]
    """logistic: b1, b2, b3, b4.  linear: slope, intercept.  none: nothing."""
    how: str = ""
    """How the fit came about, where it is not the usual one: for tables and records."""

    def __call__(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """The predictions in MOS units, same shape."""
        if self.kind == "logistic":
            return _logistic(predicted, *self.parameters)
        if self.kind == "linear":
            slope, intercept = self.parameters
            return slope * predicted + intercept
        return predicted

    @property
    def falls(self) -> bool:
        """Whether higher predictions are mapped to lower scores."""
        if self.kind == "logistic":
            high, low, _, _ = self.parameters
            return high < low
        return self.kind == "linear" and self.parameters[0] < 0


@dataclass(frozen=True, slots=True)
class QualityMetrics:
    """Agreement of n predictions with n mean opinion scores.

    Where the predictions, or the scores, are constant, no correlation is defined: srcc, krcc, plcc
    and plcc_raw are NaN and rmse is that of the predictions as they are.
    """

    srcc: float
    """Spearman's rank correlation of the raw predictions."""
    krcc: float
    """Kendall's tau-b of the raw predictions."""
    plcc: float
    """Pearson's correlation after `mapping`; 0 where the mapping came out flat.

    The field's code fits a logistic that falls where that is better, by which a head that ranks
    videos upside down is a good one: so it is here, and `fit` says it.  Under a straight line,
    which is no code's but ours, it is `plcc_raw`, with its sign.
    """
    rmse: float
    """After `mapping`, in MOS units."""
    plcc_raw: float
    """Pearson's correlation without any mapping, as VSFA and the NTIRE challenge report."""
    n: int
    mapping: Literal["logistic", "linear", "none"]
    fit: str = ""
    """Empty where the logistic converged from the usual start and rises; else what was used, and
    why, or that the curve falls."""
    plcc_extremes: float = math.nan
    """`plcc` of the extreme set, see `extreme_rows`."""
    parameters: tuple[float, ...] = ()
    """Of the mapping, as `MosMapping` has them."""


def quality_metrics(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> QualityMetrics:
    """All metrics of predictions [n] against mean opinion scores [n].

    Raises:
        HeadError: if the two differ in length, are fewer than 2, or are not finite.
    """
    mos, predicted = _pair(mos, predicted)
    mapping = fit_mapping(mos, predicted)
    mapped = mapping(predicted)
    rmse = _rmse(mos, mapped)
    if mapping.kind == "none":
        nan = float("nan")
        return QualityMetrics(nan, nan, nan, rmse, nan, len(mos), "none", mapping.how)
    extremes = extreme_rows(mos)
    sign = -1.0 if mapping.kind == "linear" and mapping.falls else 1.0
    return QualityMetrics(
        srcc=srcc(mos, predicted),
        krcc=float(kendalltau(mos, predicted).statistic),
        plcc=0.0 if is_constant(mapped) else sign * _pearson(mos, mapped),
        rmse=rmse,
        plcc_raw=_pearson(mos, predicted),
        n=len(mos),
        mapping=mapping.kind,
        fit=mapping.how or (FALLING if mapping.falls else ""),
        plcc_extremes=sign * _defined_pearson(mos[extremes], mapped[extremes]),
        parameters=mapping.parameters,
    )


def extreme_rows(mos: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rows of the worst and the best fifth of the videos: the extreme set of RAM-VQA.

    The mapping is that of all videos; only the correlation is taken over these rows.

    Args:
        mos: [n].

    Returns:
        At least one row from either end; ascending.
    """
    count = max(1, round(EXTREMES * len(mos)))
    order = np.argsort(mos, kind="stable")
    return np.unique(np.concatenate([order[:count], order[-count:]]))


def srcc(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; NaN where either side is constant."""
    if is_constant(mos) or is_constant(predicted):
        return float("nan")
    return float(spearmanr(mos, predicted).statistic)


def pair_accuracy(predicted: NDArray[np.float64], pairs: NDArray[np.int64]) -> float:
    """The share of pairs whose better video is predicted to be the better one.

    Rank1 and Rank2 of the NTIRE 2024 challenge on short-form videos, whose score is 0.45 SRCC +
    0.45 raw PLCC + 0.05 Rank1 + 0.05 Rank2; as there, equal predictions speak for the first video.

    Args:
        predicted: [n].
        pairs: [m, 3]: two rows of `predicted`, and 1 or 2 for the better one.

    Raises:
        HeadError: if there is no pair, or a pair names a row or a winner that does not exist.
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 3 or len(pairs) == 0:
        raise HeadError(f"pairs are rows of three numbers, at least one row: got {pairs.shape}")
    one, two, better = pairs.T
    rows = (pairs[:, :2] >= 0) & (pairs[:, :2] < len(predicted))
    wrong = ~(rows.all(axis=1) & np.isin(better, (1, 2)))
    if wrong.any():
        pair = int(np.argmax(wrong))
        raise HeadError(
            f"pair {pair} is {pairs[pair].tolist()}: two rows of {len(predicted)} and 1 or 2"
        )
    return float(np.mean(np.where(predicted[one] >= predicted[two], 1, 2) == better))


def ntire_score(
    mos: NDArray[np.float64],
    predicted: NDArray[np.float64],
    *,
    nonsource: NDArray[np.int64],
    source: NDArray[np.int64],
) -> dict[str, float]:
    """The score of the NTIRE 2024 challenge on short-form videos, and what it is made of.

    Args:
        mos: [n].
        predicted: [n].
        nonsource: [m, 3], see `pair_accuracy`: pairs of different contents, for Rank1.
        source: [m, 3]: pairs of one content, for Rank2.

    Returns:
        `score` = 0.45 srcc + 0.45 plcc + 0.05 rank1 + 0.05 rank2, and these four; plcc is raw.

    Raises:
        HeadError: if the series or the pairs are none.
    """
    metrics = quality_metrics(mos, predicted)
    rank1, rank2 = pair_accuracy(predicted, nonsource), pair_accuracy(predicted, source)
    score = 0.45 * (metrics.srcc + metrics.plcc_raw) + 0.05 * (rank1 + rank2)
    return {
        "score": score,
        "srcc": metrics.srcc,
        "plcc": metrics.plcc_raw,
        "rank1": rank1,
        "rank2": rank2,
    }


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether `values` differ by no more than float64 rounding."""
    return bool(np.std(values) <= ROUNDING * np.abs(values).max())


def fit_mapping(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> MosMapping:
    """The least-squares mapping of predictions [n] to mean opinion scores [n].

    The 4-parameter logistic b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) with the start values of
    BVQA_Benchmark, VIDEVAL and RQ-VQA: largest MOS, smallest MOS, mean prediction, 0.5.

    That start is a step where predictions spread over much more than 0.5, and then the fit cannot
    move.  So where it does not converge, which is seen by the fit giving up or by a squared error
    above that of the straight line (lines are a limit of logistics, so the best logistic is no
    worse), the fit begins anew with the predictions' own deviation for 0.5, rising and falling, and
    the better of the two is taken.  A straight line where none converged; `how` says so.  A line
    also for fewer than 5 videos, which four parameters would fit whatever was predicted.  No
    mapping where either side is constant.
    """
    if is_constant(mos) or is_constant(predicted):
        return MosMapping("none", (), "predictions or scores are constant")
    line = MosMapping("linear", fit_line(mos, predicted), "straight line: fewer than 5 videos")
    if len(mos) < 5:
        return line
    slack = 1e-6 * mos.std()  # curve_fit stops at relative steps of 1.5e-8
    worst = _rmse(mos, line(predicted)) + slack
    high, low, centre = mos.max(), mos.min(), predicted.mean()
    usual = usual_logistic(mos, predicted)
    if usual is not None and _rmse(mos, usual(predicted)) <= worst:
        return usual
    spread = predicted.std()
    starts = ([high, low, centre, spread], [low, high, centre, spread])
    others = [_fit_logistic(mos, predicted, start, CALLS_AGAIN) for start in starts]
    sound = [fit for fit in others if fit is not None and _rmse(mos, fit(predicted)) <= worst]
    if not sound:
        return replace(line, how="straight line: the logistic did not converge")
    best = min(sound, key=lambda fit: _rmse(mos, fit(predicted)))
    return replace(best, how="logistic from another start: the usual one did not converge")


def usual_logistic(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> MosMapping | None:
    """Where the field's code ends, sound or stuck; None where it gives up.

    From the start 0.5 for |b4| it gets stuck where predictions spread over much more, as on scores
    up to 100.  `fit_mapping` then begins anew; this is for comparing with official numbers.
    """
    return _fit_logistic(mos, predicted, [mos.max(), mos.min(), predicted.mean(), 0.5], CALLS)


def _fit_logistic(
    mos: NDArray[np.float64], predicted: NDArray[np.float64], start: Sequence[float], calls: int
) -> MosMapping | None:
    """None where the fit gives up."""
    try:
        with warnings.catch_warnings():
            # The covariance of the parameters, which may be singular, is not used.
            warnings.simplefilter("ignore", OptimizeWarning)
            fitted, _ = curve_fit(_logistic, predicted, mos, p0=start, maxfev=calls)
    except RuntimeError:  # scipy's word for `calls` being used up
        return None
    return MosMapping("logistic", tuple(float(b) for b in fitted))


def fit_line(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line; the predictions may not be constant."""
    centred = predicted - predicted.mean()
    slope = float(centred @ (mos - mos.mean()) / (centred @ centred))
    return slope, float(mos.mean() - slope * predicted.mean())


def _logistic(
    x: NDArray[np.float64], b1: float, b2: float, b3: float, b4: float
) -> NDArray[np.float64]:
    return b2 + (b1 - b2) * expit((x - b3) / max(abs(b4), STEEPEST))


def _rmse(mos: NDArray[np.float64], mapped: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((mos - mapped) ** 2)))


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _defined_pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """NaN where either side is constant."""
    return math.nan if is_constant(a) or is_constant(b) else _pearson(a, b)


def _pair(
    mos: NDArray[np.float64], predicted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mos, predicted = np.asarray(mos, np.float64), np.asarray(predicted, np.float64)
    if mos.ndim != 1 or mos.shape != predicted.shape or len(mos) < 2:
        raise HeadError(
            f"metrics need two series of equal length, at least 2: "
            f"got mos {mos.shape} and predictions {predicted.shape}"
        )
    for name, values in (("mos", mos), ("prediction", predicted)):
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise HeadError(f"{name} of row {row} is {values[row]}; metrics need finite numbers")
    return mos, predicted
