"""Gaussian process regression on pooled features."""

import warnings
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, Product, Sum, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from regressors.base import PooledHead
from regressors.pooling import pooled
from store.errors import HeadError
from store.table import FeatureTable

MOST_VIDEOS = 10_000
"""The kernel of so many training videos takes 800 MB, and minutes to factorise."""
QUANTILES = 100
"""Of each input; at most one for three videos, so that folds of a blend have as many."""


class Gaussian(PooledHead):
    """A Gaussian process on inputs that are mapped to a normal distribution by their ranks.

    Ranks, because features such as natural scene statistics have long tails: one input after the
    other is mapped to normal quantiles of the training part.  The kernel is a constant times a
    Matern kernel (nu = 3/2, one length for all inputs) plus noise; all three parameters maximise
    the marginal likelihood of the training part (Rasmussen and Williams, 2006, chapter 5), so that
    no rows need to be held out.
    """

    name: ClassVar[str] = "gaussian"
    min_videos: ClassVar[int] = 5
    steps: ClassVar[tuple[type, ...]] = (QuantileTransformer, GaussianProcessRegressor)
    parts: ClassVar[tuple[type, ...]] = (ConstantKernel, Matern, Product, Sum, WhiteKernel)

    def __init__(
        self,
        *,
        search_videos: Annotated[int, Field(ge=5)] = 1000,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        """Name the parameters.

        Args:
            search_videos: by so many training videos, drawn by `seed`, the kernel is chosen; the
                process itself is fitted on all of them.
            seed: see above.
        """
        self.search_videos = search_videos
        self.seed = seed

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        if len(mos) > MOST_VIDEOS:
            raise HeadError(
                f"{self.name} compares every pair of training videos: {len(mos)} are too many, "
                f"{MOST_VIDEOS} the most; use svr or ridge"
            )
        inputs = pooled(table).astype(np.float64)
        scaler = QuantileTransformer(
            n_quantiles=min(QUANTILES, max(2, len(mos) // 3)),
            output_distribution="normal",
            subsample=None,
        )
        ranked = scaler.fit_transform(inputs)
        order = np.random.default_rng(self.seed).permutation(len(mos))[: self.search_videos]
        kernel, at_bound = _best_kernel(ranked[order], mos[order])
        regressor = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
        self.model_ = make_pipeline(scaler, regressor).fit(inputs, mos)
        regressor.L_ = None  # n x n, and only for uncertainties
        (scale, length, noise) = np.exp(kernel.theta)
        return (
            f"length {length:.3g}, signal {scale:.3g}, noise {noise:.3g} by marginal likelihood of "
            f"{len(order)} training videos{' (a bound was reached)' if at_bound else ''}"
        )


def _best_kernel(inputs: NDArray[np.float64], mos: NDArray[np.float64]) -> tuple[Sum, bool]:
    """Of maximal marginal likelihood, and whether a parameter stands at the end of its range."""
    spread = np.sqrt(2 * inputs.var(axis=0).sum()) or 1.0  # of two videos
    start = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        spread, (1e-2 * spread, 1e3 * spread), nu=1.5
    ) + WhiteKernel(0.5, (1e-3, 1e1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # One start: from others it ends at the same kernel, or a worse one.
        found = GaussianProcessRegressor(start, normalize_y=True, random_state=0).fit(inputs, mos)
    return found.kernel_, any(warning.category is ConvergenceWarning for warning in caught)
