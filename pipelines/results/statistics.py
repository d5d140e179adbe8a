"""Values of splits become statistics here and nowhere else."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from vqbank.regressors.significance import FEWEST, confidence_of_median

METRICS = ("srcc", "krcc", "plcc", "rmse", "plcc_raw", "plcc_extremes")
"""Of a record, as `vqbank.regressors.metrics.QualityMetrics` has them."""
LESS_IS_BETTER = frozenset(["rmse"])
SHOWN = ("srcc", "krcc", "plcc", "rmse")
"""Metrics of a table."""
NO_INTERVAL = f"fewer than {FEWEST} different test parts with a value, or all values agree"
"""Why a median may have no interval, for tables."""
CLOSE = 1e-9
"""Relative difference of two sums over the same values, in another order or on another machine."""


def _from_null(value: object) -> object:
    return math.nan if value is None else value


# JSON has no NaN: a metric that is not defined is null.
Number = Annotated[
    float,
    BeforeValidator(_from_null),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]


STRICT = ConfigDict(extra="forbid", frozen=True)
"""Of all that a record is made of: keys that nobody knows are refused."""


class Statistics(BaseModel):
    """One metric of one head over all splits where it is defined.

    Where predictions or scores are constant, SRCC, KRCC and PLCC are not; RMSE is, that of the
    predictions as they are, and it counts: a head that gives up is not to look better for it.
    """

    model_config = STRICT

    median: Number
    mean: Number
    std: Number
    """Of the population, as the field's code has it; NaN of one split, which tells of no spread."""
    confidence: tuple[Number, Number]
    """95 % bootstrap interval of the median over splits of different test parts; NaN where they
    are too few or agree (`vqbank.regressors.significance.confidence_of_median`)."""

    @classmethod
    def of(cls, values: NDArray[np.float64], different: Sequence[int]) -> Self:
        """The statistics of a metric.

        Args:
            values: [k], one per split; NaN is left out.
            different: splits that are evidence of their own, for the interval.
        """
        median, mean, std = moments(values)
        return cls(
            median=median,
            mean=mean,
            std=std,
            confidence=_interval(values[list(different)].tobytes()),
        )

    def has_interval_of(self, values: NDArray[np.float64], different: Sequence[int]) -> bool:
        """Whether its interval is the one that these values come to; draws the bootstrap once."""
        return close(self.confidence, _interval(values[list(different)].tobytes()))


@lru_cache(maxsize=1024)
def _interval(values: bytes) -> tuple[float, float]:
    """Of float64 values: once for what is written and all that shows it."""
    return confidence_of_median(np.frombuffer(values, np.float64))


def moments(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, mean and deviation of values [k]; NaN is left out."""
    defined = values[np.isfinite(values)]
    return (
        float(np.median(defined)) if len(defined) else math.nan,
        float(defined.mean()) if len(defined) else math.nan,
        float(defined.std()) if len(defined) > 1 else math.nan,
    )


def close(own: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether statistics of the same unit are the same, but for rounding; NaN is NaN."""
    scale = max((abs(x) for x in (*own, *theirs) if math.isfinite(x)), default=0.0)
    return bool(np.allclose(own, theirs, rtol=0, atol=CLOSE * scale, equal_nan=True))


def shown(number: float) -> str:
    """As every table has it: four digits, and what is not defined as a dash."""
    return "-" if math.isnan(number) else f"{number:.4f}"
