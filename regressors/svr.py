"""Support vector regression on pooled features, with the search that the field uses."""

import zlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVR

from regressors.base import PooledHead
from regressors.holdout import scene_folds
from regressors.pooling import pooled
from store.schema import Video
from store.table import FeatureTable

LOG2_COST = tuple(range(1, 11))
"""Of C.  BVQA_Benchmark's range, there in units of the MOS."""
LOG2_GAMMA = tuple(range(-6, 4))
"""Of gamma times the mean squared distance of two training videos, which VIDEVAL's 60 features
scaled to [0, 1] have at about 3: BVQA_Benchmark's range 2^-8 to 2^1, whatever the width."""
MOST_KERNEL_BYTES = 2**30
"""Of the distances and kernels of a fold, of which several may be computed at the same time: some
10,000 training videos."""
GRID = len(LOG2_COST) * len(LOG2_GAMMA)


class Svr(PooledHead):
    """RBF support vectors on inputs scaled to [0, 1]; C and gamma by random search.

    The protocol of BVQA_Benchmark and VIDEVAL (Tu et al., IEEE TIP 2021): 10 random points of a
    grid of 100 are compared in 3-fold cross-validation over the training part.  Two things differ,
    so that neither the unit of the MOS nor the number of inputs matters: C and epsilon are in
    standard deviations of the training MOS, and gamma is in inverse mean squared distances.  The
    points are drawn anew for every training part, and the same part draws the same points.
    """

    name: ClassVar[str] = "svr"
    min_videos: ClassVar[int] = 5
    steps: ClassVar[tuple[type, ...]] = (MinMaxScaler, SVR)

    def __init__(
        self,
        *,
        draws: Annotated[int, Field(ge=1, le=GRID)] = 10,
        folds: Annotated[int, Field(ge=2)] = 3,
        epsilon: Annotated[FiniteFloat, Field(ge=0)] = 0.1,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.draws = draws
        self.folds = folds
        self.epsilon = epsilon
        self.seed = seed

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        inputs = pooled(table).astype(np.float64)
        points = self._points(table.videos)
        folds = scene_folds(table.videos, self.folds)
        errors = sum(self._squared_errors(inputs, mos, points, *fold) for fold in folds)
        log2_cost, log2_gamma = points[int(np.argmin(errors))]
        scaler = MinMaxScaler().fit(inputs)
        gamma = 2.0**log2_gamma / _spread(scaler.transform(inputs))
        regressor = self._regressor(mos, log2_cost, kernel="rbf", gamma=gamma)
        self.model_ = make_pipeline(MinMaxScaler(), regressor).fit(inputs, mos)
        return (
            f"C = 2^{log2_cost} MOS deviations, gamma = 2^{log2_gamma} / mean squared distance: "
            f"the best of {len(points)} random points of {GRID} by squared error in "
            f"{len(folds)}-fold cross-validation over training scenes"
        )

    def _points(self, videos: Sequence[Video]) -> list[tuple[int, int]]:
        """Points of the grid as exponents, by gamma, because points of one gamma share a kernel."""
        names = "\n".join(sorted(video.id for video in videos))
        rng = np.random.default_rng([self.seed, zlib.crc32(names.encode())])
        drawn = rng.choice(GRID, self.draws, replace=False)
        return sorted(
            ((LOG2_COST[point % len(LOG2_COST)], LOG2_GAMMA[point // len(LOG2_COST)])
             for point in drawn.tolist()),
            key=lambda point: point[::-1],
        )  # fmt: skip

    def _squared_errors(
        self,
        inputs: NDArray[np.float64],
        mos: NDArray[np.float64],
        points: Sequence[tuple[int, int]],
        kept: NDArray[np.int64],
        held: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """[points]: summed over the held rows.

        Distances are computed once per fold, and kernels once per gamma; a search by scikit-learn
        computes them for every point.  Beyond MOST_KERNEL_BYTES libsvm computes what it needs.
        """
        errors = np.empty(len(points))
        scaler = MinMaxScaler().fit(inputs[kept])
        support, query = scaler.transform(inputs[kept]), scaler.transform(inputs[held])
        spread = _spread(support)
        if 16 * len(support) * len(inputs) > MOST_KERNEL_BYTES:
            for place, (log2_cost, log2_gamma) in enumerate(points):
                gamma = 2.0**log2_gamma / spread
                regressor = self._regressor(mos, log2_cost, kernel="rbf", gamma=gamma)
                predicted = regressor.fit(support, mos[kept]).predict(query)
                errors[place] = np.sum((predicted - mos[held]) ** 2)
            return errors
        near = euclidean_distances(support, squared=True) / spread
        far = euclidean_distances(query, support, squared=True) / spread
        computed = None
        for place, (log2_cost, log2_gamma) in enumerate(points):
            if log2_gamma != computed:
                kernel, query_kernel = (
                    np.exp(-(2.0**log2_gamma) * near),
                    np.exp(-(2.0**log2_gamma) * far),
                )
                computed = log2_gamma
            regressor = self._regressor(mos, log2_cost, kernel="precomputed")
            predicted = regressor.fit(kernel, mos[kept]).predict(query_kernel)
            errors[place] = np.sum((predicted - mos[held]) ** 2)
        return errors

    def _regressor(self, mos: NDArray[np.float64], log2_cost: int, **kernel: Any) -> SVR:
        unit = float(mos.std())
        regressor = SVR(
            C=2.0**log2_cost * unit, epsilon=self.epsilon * unit, tol=1e-3 * unit, **kernel
        )
        regressor.random_state = 0  # libsvm's unused seed would come from NumPy's global generator
        return regressor


def _spread(inputs: NDArray[np.float64]) -> float:
    """Mean squared distance of two rows; 1 where all are equal."""
    return 2 * float(inputs.var(axis=0).sum()) or 1.0
