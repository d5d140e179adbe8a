"""Ridge regression on pooled features."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from sklearn import linear_model
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vqbank.regressors.holdout import scene_folds
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.store.table import FeatureTable

ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
"""Up to 1e6, because standardised inputs by the ten thousand need as much."""


class Ridge(PooledHead):
    """Linear least squares; the penalty is chosen on scenes held out of the training rows."""

    name: ClassVar[str] = "ridge"
    min_videos: ClassVar[int] = 3
    least_scenes: ClassVar[int] = 2
    steps: ClassVar[tuple[type, ...]] = (StandardScaler, linear_model.Ridge)

    def __init__(
        self,
        *,
        folds: Annotated[int, Field(ge=2)] = 5,
        alphas: Annotated[
            Sequence[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1)
        ] = ALPHAS,
        roles: list[str] | None = None,
    ) -> None:
        self.roles = roles
        self.folds = folds
        self.alphas = alphas

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        inputs = pooled(table).astype(np.float64)
        folds = scene_folds(table.videos, self.folds)
        # One target per alpha: scikit-learn then decomposes the inputs of a fold once for all.
        every_alpha = make_pipeline(StandardScaler(), linear_model.Ridge(np.array(self.alphas)))
        targets = np.tile(mos[:, np.newaxis], len(self.alphas))
        predicted = cross_val_predict(every_alpha, inputs, targets, cv=folds)  # [n, alphas]
        errors = np.sum((predicted - targets) ** 2, axis=0)
        alpha = float(self.alphas[int(np.argmin(errors))])
        self.model_ = make_pipeline(StandardScaler(), linear_model.Ridge(alpha)).fit(inputs, mos)
        return (
            f"alpha = {alpha:g}, the best of {len(self.alphas)}, by squared error "
            f"in {len(folds)}-fold cross-validation over training scenes"
        )

    def _most_values(self, width: int) -> int:
        return 16 * width

    def operations(self, videos: int, width: int) -> float:
        """A Gram matrix of inputs or of videos, whichever is smaller, for each fold."""
        return (self.folds + 1) * self.refit_operations(videos, width)

    def refit_operations(self, videos: int, width: int) -> float:
        """Of one fit."""
        return 2.0 * videos * width * min(videos, width)
