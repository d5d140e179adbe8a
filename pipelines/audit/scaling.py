"""Whether values were scaled by videos that are tested: over all videos, or a test part by itself.

What is scaled over training and test together, or in each part by itself, has seen the test part.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_OFF = 1e-6
"""Of a minimum and maximum from 0 and 1 (or -1 and 1), or a mean and deviation from 0 and 1 times
SLACK: what rounding to float32 leaves."""
SLACK = 1e2
"""Means over thousands of float32 values round more than one value does."""
SHARE = 0.9
"""Of the columns.  Of one that is scaled by 80 % of the videos alone, the smallest and the largest
value are both among those with .64: by all the columns nearly never."""
FEWEST_COLUMNS = 5
"""Of fewer columns, chance explains it."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Most columns of a feature end exactly where scaling puts them."""

    how: Literal["0 to 1", "-1 to 1", "mean 0 and deviation 1"]
    columns: tuple[int, ...]
    of: int
    """Columns that have more values than two."""


def scaled(features: NDArray[np.floating], rows: NDArray[np.int64] | None = None) -> Scaled | None:
    """Whether values were scaled over just these videos.

    Args:
        features: [n, d].
        rows: of the videos; None for all.

    Returns:
        None where fewer columns than SHARE, or than FEWEST_COLUMNS, are.
    """
    values = np.asarray(features if rows is None else features[rows], np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    spread, mean = values.std(axis=0), values.mean(axis=0)
    # Columns of zeros and ones end there by themselves.
    moves = ((values > low) & (values < high)).mean(axis=0) > 1 / 2
    ways: dict[Literal["0 to 1", "-1 to 1", "mean 0 and deviation 1"], NDArray[np.bool_]] = {
        "0 to 1": (np.abs(low) <= MOST_OFF) & (np.abs(high - 1) <= MOST_OFF),
        "-1 to 1": (np.abs(low + 1) <= MOST_OFF) & (np.abs(high - 1) <= MOST_OFF),
        "mean 0 and deviation 1": (np.abs(mean) <= SLACK * MOST_OFF)
        & (np.minimum(np.abs(spread - 1), np.abs(_sample(spread, len(values)) - 1)) <= 1e-4),
    }
    for how, found in ways.items():
        columns = np.flatnonzero(found & moves)
        if len(columns) >= max(FEWEST_COLUMNS, SHARE * moves.sum()):
            return Scaled(how, tuple(columns.tolist()), int(moves.sum()))
    return None


def _sample(spread: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Deviations that divide by n - 1."""
    return spread * np.sqrt(n / max(1, n - 1))
