"""Bayesian ridge regression on pooled features."""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import BayesianRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.store.table import FeatureTable


class Bayes(PooledHead):
    """Linear, with a penalty by evidence."""

    name: ClassVar[str] = "bayes"
    min_videos: ClassVar[int] = 3
    steps: ClassVar[tuple[type, ...]] = (StandardScaler, BayesianRidge)

    def __init__(self, *, iterations: Annotated[int, Field(gt=0)] = 300) -> None:
        self.iterations = iterations

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        bayes = BayesianRidge(max_iter=self.iterations)
        self.model_ = make_pipeline(StandardScaler(), bayes)
        self.model_.fit(pooled(table).astype(np.float64), mos)
        return f"by evidence of {len(table)} training videos"

    def operations(self, videos: int, width: int) -> float:
        """A singular value decomposition, and a few products of its size in each iteration."""
        return videos * width * (4.0 * min(videos, width) + self.iterations)
