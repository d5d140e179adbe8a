"""Gaussian process regression on pooled features."""

import warnings
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, Product, Sum, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.store.table import FeatureTable

EXACT_VIDEOS = 10_000
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

    Beyond `exact_videos` training videos, whose kernel no memory holds, the process is that of a
    subset of regressors (Quinonero-Candela and Rasmussen, JMLR 6, 2005): the same kernel with
    `landmarks` of the videos, by Nystroem's method, and ridge regression, its penalty the noise.
    """

    name: ClassVar[str] = "gaussian"
    min_videos: ClassVar[int] = 5
    steps: ClassVar[tuple[type, ...]] = (QuantileTransformer, GaussianProcessRegressor)
    approximate_steps: ClassVar[tuple[type, ...]] = (QuantileTransformer, Nystroem, Ridge)
    parts: ClassVar[tuple[type, ...]] = (ConstantKernel, Matern, Product, Sum, WhiteKernel)

    def __init__(
        self,
        *,
        search_videos: Annotated[int, Field(ge=5)] = 1000,
        seed: Annotated[int, Field(ge=0)] = 0,
        exact_videos: Annotated[int, Field(ge=0)] = EXACT_VIDEOS,
        landmarks: Annotated[int, Field(ge=2)] = 1000,
        roles: list[str] | None = None,
    ) -> None:
        """Name the parameters.

        Args:
            search_videos: by so many training videos, drawn by `seed`, the kernel is chosen; the
                process itself is fitted on all of them.
            seed: see above; it draws landmarks too.
            exact_videos: training videos up to which the process is fitted on all of them.
            landmarks: of the approximation beyond.
            roles: which of the features are seen, in this order; None for all.
        """
        self.roles = roles
        self.search_videos = search_videos
        self.seed = seed
        self.exact_videos = exact_videos
        self.landmarks = landmarks

    def _most_values(self, width: int) -> int:
        kept = max(self.exact_videos, self.landmarks)
        return 2 * (kept * (width + 8) + self.landmarks**2 + 256 * width)

    def operations(self, videos: int, width: int) -> float:
        """Some 60 likelihoods of the videos that are searched by, then one fit."""
        searched = min(videos, self.search_videos)
        return 60.0 * searched**2 * (searched + 30) + self.refit_operations(videos, width)

    def refit_operations(self, videos: int, width: int) -> float:
        """Of one fit."""
        if videos <= self.exact_videos:
            return videos**3 / 3 + 2.0 * videos**2 * (width + 30)
        landmarks = min(self.landmarks, videos)
        return 2.0 * videos * landmarks * (width + 30 + 2 * landmarks) + 10.0 * landmarks**3

    def small(self, videos: int) -> "Gaussian":
        """Exact or not, as so many videos are fitted."""
        exact = EXACT_VIDEOS if videos <= self.exact_videos else 0
        return clone(self).set_params(exact_videos=exact)

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        exact = len(mos) <= self.exact_videos
        if not exact:
            order = np.argsort([video.id for video in table.videos])  # draws the same in any order
            table, mos = table.subset(order), mos[order]
        inputs = pooled(table).astype(np.float64)
        scaler = QuantileTransformer(
            n_quantiles=min(QUANTILES, max(2, len(mos) // 3)),
            output_distribution="normal",
            subsample=None,
        )
        ranked = scaler.fit_transform(inputs)
        self._tell(0, 2, "kernel")
        order = np.random.default_rng(self.seed).permutation(len(mos))[: self.search_videos]
        kernel, at_bound = _best_kernel(ranked[order], mos[order])
        (scale, length, noise) = np.exp(kernel.theta)
        self._tell(1, 2, "all training videos")
        approximated = ""
        if exact:
            regressor = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
            self.model_ = make_pipeline(scaler, regressor).fit(inputs, mos)
            regressor.L_ = None  # n x n, and only for uncertainties
        else:
            count = min(self.landmarks, len(mos))
            landmarks = Nystroem(kernel.k1, n_components=count, random_state=self.seed)
            self.model_ = make_pipeline(scaler, landmarks, Ridge(noise)).fit(inputs, mos)
            approximated = (
                f"; process approximated (Nystroem, {count} landmarks), as {len(mos)} training "
                f"videos are more than exact_videos {self.exact_videos}"
            )
        return (
            f"length {length:.3g}, signal {scale:.3g}, noise {noise:.3g} by marginal likelihood of "
            f"{len(order)} training videos{' (a bound was reached)' if at_bound else ''}"
            f"{approximated}"
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
