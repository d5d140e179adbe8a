"""How well predictions agree with mean opinion scores."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

from store.errors import HeadError

ROUNDING = 1e-12
"""Relative spread below which float64 values count as constant: what is left is rounding."""
STEEPEST = 1e-12
"""Smallest |b4|, so that a step of the fit through b4 = 0 divides by something."""
CALLS = 20_000
"""Function calls until the fit is given up; official code allows 1e8, good fits need hundreds."""


@dataclass(frozen=True, slots=True)
class MosMapping:
    """From predictions to MOS units, as fitted before PLCC and RMSE."""

    kind: Literal["logistic", "linear", "none"]
    parameters: tuple[float, ...]
    """logistic: b1, b2, b3, b4.  linear: slope, intercept.  none: nothing."""

    def __call__(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """The predictions in MOS units, same shape."""
        if self.kind == "logistic":
            return _logistic(predicted, *self.parameters)
        if self.kind == "linear":
            slope, intercept = self.parameters
            return slope * predicted + intercept
        return predicted


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
    """Pearson's correlation after `mapping`; 0 where the mapping came out flat."""
    rmse: float
    """After `mapping`, in MOS units."""
    plcc_raw: float
    """Pearson's correlation without any mapping, as VSFA and the NTIRE challenge report."""
    n: int
    mapping: Literal["logistic", "linear", "none"]


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
        return QualityMetrics(nan, nan, nan, rmse, nan, len(mos), "none")
    return QualityMetrics(
        srcc=srcc(mos, predicted),
        krcc=float(kendalltau(mos, predicted).statistic),
        plcc=0.0 if is_constant(mapped) else _pearson(mos, mapped),
        rmse=rmse,
        plcc_raw=_pearson(mos, predicted),
        n=len(mos),
        mapping=mapping.kind,
    )


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


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether `values` differ by no more than float64 rounding."""
    return bool(np.std(values) <= ROUNDING * np.abs(values).max())


def fit_mapping(mos: NDArray[np.float64], predicted: NDArray[np.float64]) -> MosMapping:
    """The least-squares mapping of predictions [n] to mean opinion scores [n].

    The 4-parameter logistic b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) with the start values of
    BVQA_Benchmark, VIDEVAL and RQ-VQA: largest MOS, smallest MOS, mean prediction, 0.5.

    A straight line where the logistic did not converge, which is seen by the fit giving up or by a
    squared error above the line's: lines are a limit of logistics, so the best logistic is no
    worse.  A line also for fewer than 5 videos, which four parameters would fit whatever was
    predicted.  No mapping where either side is constant.
    """
    if is_constant(mos) or is_constant(predicted):
        return MosMapping("none", ())
    line = MosMapping("linear", fit_line(mos, predicted))
    if len(mos) < 5:
        return line
    start = [mos.max(), mos.min(), predicted.mean(), 0.5]
    try:
        with warnings.catch_warnings():
            # The covariance of the parameters, which may be singular, is not used.
            warnings.simplefilter("ignore", OptimizeWarning)
            fitted, _ = curve_fit(_logistic, predicted, mos, p0=start, maxfev=CALLS)
    except RuntimeError:  # scipy's word for CALLS being used up
        return line
    logistic = MosMapping("logistic", tuple(float(b) for b in fitted))
    logistic_error, line_error = (_rmse(mos, fit(predicted)) for fit in (logistic, line))
    slack = 1e-6 * mos.std()  # curve_fit stops at relative steps of 1.5e-8
    return logistic if logistic_error <= line_error + slack else line


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
