"""Whether a feature saw the scores: columns that are copies of them, and steps that words leave.

Nobody sees whether a video's true score is just above a line or just below: the mean of some tens
of people is not that sure.  A feature of pictures can therefore hardly tell the videos just above
any score from those just below.  One that was made from the score itself can: text that calls a
video "fair" up to 3.4 and "good" beyond has a step there (the prompts of CAMP-VQA, WACV 2026).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COPY_SRCC = 0.95
"""|SRCC| of one column with the scores from which it is a copy of them, or a monotone map: of the
columns of BRISQUE, VIDEVAL and ResNet-50 on KoNViD-1k, LIVE-VQC and CVD2014 the highest has .63."""
STEP_AUC = 0.85
"""From which a feature tells the two sides of a score apart ..."""
STEP_ERRORS = 4.5
"""... if that is as many standard errors above chance: the highest on the same caches is 3.8
(CVD2014, 20 videos on a side), and five words for the score come to 5 and more."""
NEAR_SHARE = 0.04
"""Of the videos, those that are just above, and as many just below."""
FEWEST_NEAR = 20
FEWEST_VIDEOS = 4 * FEWEST_NEAR
"""Of fewer no step can be told from chance."""
FOLDS = 5
PENALTY = 0.01
"""Of the ridge regression, relative to the mean squared length of an input."""
MOST_VIDEOS = 4000
"""A kernel of more takes memory and minutes; of more videos as many are drawn."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The column that goes most with the scores."""

    column: int
    srcc: float


@dataclass(frozen=True, slots=True)
class Step:
    """The score at which a feature tells the two sides apart best."""

    score: float
    auc: float
    """Of 0.5 (chance) to 1, of videos that the classifier was not fitted on."""
    below: tuple[int, ...]
    """Rows of the videos just below it, the nearest last."""
    above: tuple[int, ...]
    """Rows of the videos just above it, the nearest first."""

    @property
    def is_clear(self) -> bool:
        """Whether no feature of pictures tells that well."""
        side = len(self.below)
        error = math.sqrt((2 * side + 1) / 12) / side  # of an AUC by chance (Mann and Whitney)
        return self.auc >= max(STEP_AUC, 0.5 + STEP_ERRORS * error)


def nearest_copy(features: NDArray[np.floating], mos: NDArray[np.float64]) -> Copy:
    """The column with the highest |SRCC| with the scores.

    Args:
        features: [n, d] with d of 1 or more.
        mos: [n].
    """
    ranks = _standardised(_ranks(np.asarray(features, np.float64)))
    srcc = ranks.T @ _standardised(_ranks(mos[:, None]))[:, 0] / len(mos)
    column = int(np.argmax(np.abs(srcc)))
    return Copy(column, float(srcc[column]))


def clearest_step(features: NDArray[np.floating], mos: NDArray[np.float64]) -> Step | None:
    """The line between scores whose two sides a linear classifier tells apart best.

    Lines lie an eighth of a side apart, between different scores.  For each of them ridge
    regression learns from four fifths of all videos on which side they are, and is asked for the
    others; what counts is the area under the ROC curve over the videos nearest to the line alone.

    Args:
        features: [n, d], one vector per video.
        mos: [n].

    Returns:
        None of fewer than FEWEST_VIDEOS videos, or where no column moves.
    """
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(mos))[:MOST_VIDEOS])
    inputs, scores, n = moving(features[rows]), mos[rows], len(rows)
    if n < FEWEST_VIDEOS or inputs.shape[1] == 0:
        return None
    order = np.lexsort((rng.permutation(n), scores))  # equal scores in a random order
    near = max(FEWEST_NEAR, round(NEAR_SHARE * n))
    # Between two different scores: every one, or of many those next to steps of an eighth.
    between = np.flatnonzero(np.diff(scores[order]) > 0) + 1
    between = between[(between >= near) & (between <= n - near)]
    if len(between) == 0:
        return None
    steps = np.arange(near, n - near + 1, max(1, near // 8))
    after = np.minimum(np.searchsorted(between, steps), len(between) - 1)
    lines = np.unique(np.concatenate([between[after], between[np.maximum(after - 1, 0)]]))
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    above = np.where(place[:, None] >= lines, 1.0, -1.0)
    told = _told(inputs, above, rng.permutation(n) % FOLDS)
    windows = [order[line - near : line + near] for line in lines]
    aucs = [_auc(told[window, number]) for number, window in enumerate(windows)]
    best = int(np.argmax(aucs))
    low, high = np.split(rows[windows[best]], 2)
    score = float(mos[low[-1]] + mos[high[0]]) / 2
    return Step(score, aucs[best], tuple(low.tolist()), tuple(high.tolist()))


def moving(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """[n, m]: the columns that are not constant, with mean 0 and variance 1."""
    values = np.asarray(features, np.float64)
    spread = values.std(axis=0)
    moves = spread > 1e-6 * np.abs(values).max(axis=0)  # else rounding is all that moves
    return np.asarray((values[:, moves] - values[:, moves].mean(axis=0)) / spread[moves])


def _told(
    inputs: NDArray[np.float64], above: NDArray[np.float64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[n, lines]: on which side of each line a video is, by ridge regression on the other folds."""
    kernel = inputs @ inputs.T / inputs.shape[1]
    penalty = PENALTY * np.trace(kernel) / len(kernel)
    told = np.empty_like(above)
    for number in range(FOLDS):
        fit, ask = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        mean = above[fit].mean(axis=0)
        own = kernel[np.ix_(fit, fit)] + penalty * np.eye(len(fit))
        told[ask] = kernel[np.ix_(ask, fit)] @ np.linalg.solve(own, above[fit] - mean) + mean
    return told


def _auc(told: NDArray[np.float64]) -> float:
    """Of values of which the second half should be higher."""
    side = len(told) // 2
    ranks = _ranks(told[:, None])[side:, 0]
    return float((ranks.sum() - side * (side + 1) / 2) / side**2)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, d]: from 1, of equal values the mean."""
    ranks = np.empty_like(values)
    for column in range(values.shape[1]):
        _, place, alike = np.unique(values[:, column], return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(alike) - (alike - 1) / 2)[place]
    return ranks


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1))
