"""Values of splits become statistics here and nowhere else."""

import math
from collections.abc import Sequence
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
        defined = values[np.isfinite(values)]
        return cls(
            median=float(np.median(defined)) if len(defined) else math.nan,
            mean=float(defined.mean()) if len(defined) else math.nan,
            std=float(defined.std()) if len(defined) > 1 else math.nan,
            confidence=confidence_of_median(values[list(different)]),
        )

    def is_close(self, other: "Statistics") -> bool:
        """Whether both say the same, but for rounding."""
        own = [self.median, self.mean, self.std, *self.confidence]
        theirs = [other.median, other.mean, other.std, *other.confidence]
        scale = max((abs(x) for x in (*own, *theirs) if math.isfinite(x)), default=0.0)
        return bool(np.allclose(own, theirs, rtol=0, atol=CLOSE * scale, equal_nan=True))


def shown(number: float) -> str:
    """As every table has it: four digits, and what is not defined as a dash."""
    return "-" if math.isnan(number) else f"{number:.4f}"
