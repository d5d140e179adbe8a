"""Support vector regression on pooled features, the field's usual head."""

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from regressors.base import PooledHead
from regressors.pooling import pooled
from regressors.training import scene_folds
from store.table import FeatureTable

LOG2_COST = (-3, -1, 1, 3, 5)
"""Of C in standard deviations of the MOS."""
LOG2_GAMMA = (-6, -4, -2, 0)
"""Of gamma times the number of inputs d: two standardised videos lie 2d apart, squared."""


class Svr(PooledHead):
    """RBF support vectors; C and gamma are chosen on scenes held out of the training rows.

    C, epsilon and the solver's tolerance are in standard deviations of the training MOS, so that
    the unit of the MOS does not matter.
    """

    name: ClassVar[str] = "svr"
    min_videos: ClassVar[int] = 5
    regressor: ClassVar[type] = SVR

    def __init__(
        self,
        *,
        folds: Annotated[int, Field(ge=2)] = 5,
        epsilon: Annotated[FiniteFloat, Field(ge=0)] = 0.1,
    ) -> None:
        self.folds = folds
        self.epsilon = epsilon

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        inputs = pooled(table).astype(np.float64)
        folds = scene_folds(table.videos, self.folds)
        errors = sum(self._squared_errors(inputs, mos, kept, held) for kept, held in folds)
        cost, gamma = np.unravel_index(np.argmin(errors), np.shape(errors))
        regressor = self._regressor(
            mos, LOG2_COST[cost], kernel="rbf", gamma=2.0 ** LOG2_GAMMA[gamma] / inputs.shape[1]
        )
        self.model_ = make_pipeline(StandardScaler(), regressor).fit(inputs, mos)
        return (
            f"C = 2^{LOG2_COST[cost]} MOS deviations, gamma = 2^{LOG2_GAMMA[gamma]} / inputs "
            f"by squared error in {len(folds)}-fold cross-validation over training scenes"
        )

    def _squared_errors(
        self,
        inputs: NDArray[np.float64],
        mos: NDArray[np.float64],
        kept: NDArray[np.int64],
        held: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """[C, gamma]: summed over the held rows, for every point of the grid.

        Distances are computed once per fold: GridSearchCV, which computes them for every point,
        takes 3 times as long for 960 videos of 120 inputs and 26 times for 1800 inputs.
        """
        scaler = StandardScaler().fit(inputs[kept])
        support, query = scaler.transform(inputs[kept]), scaler.transform(inputs[held])
        near = euclidean_distances(support, squared=True)
        far = euclidean_distances(query, support, squared=True)
        errors = np.empty((len(LOG2_COST), len(LOG2_GAMMA)))
        for column, log2_gamma in enumerate(LOG2_GAMMA):
            gamma = 2.0**log2_gamma / inputs.shape[1]
            kernel, query_kernel = np.exp(-gamma * near), np.exp(-gamma * far)
            for row, log2_cost in enumerate(LOG2_COST):
                regressor = self._regressor(mos, log2_cost, kernel="precomputed")
                predicted = regressor.fit(kernel, mos[kept]).predict(query_kernel)
                errors[row, column] = np.sum((predicted - mos[held]) ** 2)
        return errors

    def _regressor(self, mos: NDArray[np.float64], log2_cost: int, **kernel: Any) -> SVR:
        unit = float(mos.std())
        regressor = SVR(
            C=2.0**log2_cost * unit, epsilon=self.epsilon * unit, tol=1e-3 * unit, **kernel
        )
        regressor.random_state = 0  # libsvm's unused seed would come from NumPy's global generator
        return regressor
