"""Ridge regression on pooled features."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from regressors.base import PooledHead
from regressors.pooling import pooled
from store.table import FeatureTable

ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
"""Up to 1e6, because standardised inputs by the ten thousand need as much."""


class Ridge(PooledHead):
    """Linear least squares with a penalty, which is chosen by leave-one-out on the training rows.

    Leave-one-out is over videos, in closed form; other videos of the same scene stay in.
    """

    name: ClassVar[str] = "ridge"
    min_videos: ClassVar[int] = 3
    regressor: ClassVar[type] = RidgeCV

    def __init__(self, *, alphas: Sequence[float] = ALPHAS) -> None:
        self.alphas = alphas

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        self.model_ = make_pipeline(StandardScaler(), RidgeCV(alphas=list(self.alphas)))
        self.model_.fit(pooled(table).astype(np.float64), mos)
        return (
            f"alpha = {self.model_[-1].alpha_:g} of {len(self.alphas)} by squared error, "
            f"leaving one of {len(mos)} training videos out"
        )
