"""Support vector regression on pooled features, with the search that the field uses."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from sklearn.base import clone
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVR

from vqbank.regressors.holdout import scene_folds
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

EXACT_VIDEOS = 4000
"""The search over so many training videos takes minutes; over LSVQ's 31,000 hours."""
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

    Support vectors of more than `exact_videos` training videos take hours, so that beyond these
    the kernel is approximated: by Nystroem's method (Williams and Seeger, NIPS 2000) every video
    becomes its kernel with `landmarks` of them, on which ridge regression, whose penalty is 1 / C,
    takes the place of support vectors.  What the head tells of its selection says so.
    """

    name: ClassVar[str] = "svr"
    min_videos: ClassVar[int] = 5
    least_scenes: ClassVar[int] = 2
    steps: ClassVar[tuple[type, ...]] = (MinMaxScaler, SVR)
    approximate_steps: ClassVar[tuple[type, ...]] = (MinMaxScaler, Nystroem, Ridge)

    def __init__(
        self,
        *,
        draws: Annotated[int, Field(ge=1, le=GRID)] = 10,
        folds: Annotated[int, Field(ge=2)] = 3,
        epsilon: Annotated[FiniteFloat, Field(ge=0)] = 0.1,
        seed: Annotated[int, Field(ge=0)] = 0,
        exact_videos: Annotated[int, Field(ge=0)] = EXACT_VIDEOS,
        landmarks: Annotated[int, Field(ge=2)] = 500,
        roles: list[str] | None = None,
    ) -> None:
        """Name the parameters.

        Args:
            draws: points of the grid that are compared.
            folds: of training scenes.
            epsilon: errors up to which nothing is lost, in deviations of the MOS.
            seed: draws points and landmarks.
            exact_videos: training videos up to which the kernel is exact.
            landmarks: of the approximation beyond; 500 and 1000 differ by less than .001 in SRCC.
            roles: which of the features are seen, in this order; None for all.
        """
        self.roles = roles
        self.draws = draws
        self.folds = folds
        self.epsilon = epsilon
        self.seed = seed
        self.exact_videos = exact_videos
        self.landmarks = landmarks

    def _most_values(self, width: int) -> int:
        kept = max(self.exact_videos, self.landmarks)
        return 2 * (kept * (width + 8) + self.landmarks**2 + 256 * width)

    def operations(self, videos: int, width: int) -> float:
        """Support vectors grow with videos^2.5: 1000 to 4000 videos take 22 to 42 times as long."""
        if videos <= self.exact_videos:
            return (self.draws * self.folds + 1) * self.refit_operations(videos, width)
        kernels = min(self.draws, len(LOG2_GAMMA)) * self.folds + 1
        return kernels * self.refit_operations(videos, width)

    def refit_operations(self, videos: int, width: int) -> float:
        """Of one fit."""
        if videos <= self.exact_videos:
            return 16.0 * videos**2.5
        landmarks = min(self.landmarks, videos)
        return 2.0 * videos * landmarks * (width + 10 + 2 * landmarks) + 10.0 * landmarks**3

    def small(self, videos: int) -> "Svr":
        """Exact or not, as so many videos are fitted."""
        exact = EXACT_VIDEOS if videos <= self.exact_videos else 0
        return clone(self).set_params(exact_videos=exact)

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        if len(mos) > self.exact_videos:
            return self._fit_approximately(table, mos)
        inputs = pooled(table).astype(np.float64)
        points = self._points(table.videos)
        folds = scene_folds(table.videos, self.folds)
        errors = np.zeros(len(points))
        for number, fold in enumerate(folds):
            start = number * len(points), len(folds) * len(points) + 1
            errors += self._squared_errors(inputs, mos, points, *fold, start=start)
        log2_cost, log2_gamma = points[int(np.argmin(errors))]
        self._tell(len(folds) * len(points), len(folds) * len(points) + 1, "all training videos")
        scaler = MinMaxScaler().fit(inputs)
        gamma = 2.0**log2_gamma / _spread(scaler.transform(inputs))
        regressor = self._regressor(mos, log2_cost, kernel="rbf", gamma=gamma)
        self.model_ = make_pipeline(MinMaxScaler(), regressor).fit(inputs, mos)
        return (
            f"C = 2^{log2_cost} MOS deviations, gamma = 2^{log2_gamma} / mean squared distance: "
            f"the best of {len(points)} random points of {GRID} by squared error in "
            f"{len(folds)}-fold cross-validation over training scenes"
        )

    def _fit_approximately(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        order = np.argsort([video.id for video in table.videos])  # draws the same in any order
        table, mos = table.subset(order), mos[order]
        inputs = pooled(table).astype(np.float64)
        points, folds = self._points(table.videos), scene_folds(table.videos, self.folds)
        gammas = sorted({log2_gamma for _, log2_gamma in points})
        total = len(folds) * len(gammas) + 1
        errors: dict[tuple[int, int], float] = dict.fromkeys(points, 0.0)
        for number, (kept, held) in enumerate(folds):
            for place, log2_gamma in enumerate(gammas):
                done = number * len(gammas) + place
                self._tell(done, total, f"kernel {place + 1} of {len(gammas)}")
                costs = [cost for cost, own in points if own == log2_gamma]
                # One target per cost: the kernel with landmarks is computed once for all.
                model = self._approximate(inputs[kept], log2_gamma, 0.5 ** np.array(costs))
                targets = np.tile(mos[:, np.newaxis], len(costs))
                predicted = model.fit(inputs[kept], targets[kept]).predict(inputs[held])
                wrong = predicted.reshape(len(held), len(costs)) - targets[held]
                for cost, error in zip(costs, np.sum(wrong**2, axis=0).tolist(), strict=True):
                    errors[cost, log2_gamma] += error
        log2_cost, log2_gamma = min(errors, key=lambda point: errors[point])
        self._tell(total - 1, total, "all training videos")
        self.model_ = self._approximate(inputs, log2_gamma, 0.5**log2_cost).fit(inputs, mos)
        return (
            f"C = 2^{log2_cost}, gamma = 2^{log2_gamma} / mean squared distance: the best of "
            f"{len(points)} random points of {GRID} by squared error in {len(folds)}-fold "
            f"cross-validation over training scenes; kernel approximated (Nystroem, "
            f"{min(self.landmarks, len(mos))} landmarks, ridge regression), as {len(mos)} training "
            f"videos are more than exact_videos {self.exact_videos}"
        )

    def _approximate(
        self, inputs: NDArray[np.float64], log2_gamma: int, penalty: float | NDArray[np.float64]
    ) -> Pipeline:
        """Unfitted, for such inputs."""
        gamma = 2.0**log2_gamma / _spread(MinMaxScaler().fit_transform(inputs))
        count = min(self.landmarks, len(inputs))
        landmarks = Nystroem(gamma=gamma, n_components=count, random_state=self.seed)
        return make_pipeline(MinMaxScaler(), landmarks, Ridge(penalty))

    def _check_model(self, model: Pipeline, path: Path) -> None:
        if type(model[-1]) is SVR:  # not where its kernel is approximated
            check_support(model[-1], model.n_features_in_, path)

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
        *,
        start: tuple[int, int],
    ) -> NDArray[np.float64]:
        """[points]: summed over the held rows; `start` is how far the search is, and of how much.

        Distances are computed once per fold, and kernels once per gamma; a search by scikit-learn
        computes them for every point.  Beyond MOST_KERNEL_BYTES libsvm computes what it needs.
        """
        errors = np.empty(len(points))
        scaler = MinMaxScaler().fit(inputs[kept])
        support, query = scaler.transform(inputs[kept]), scaler.transform(inputs[held])
        spread = _spread(support)
        if 16 * len(support) * len(inputs) > MOST_KERNEL_BYTES:
            for place, (log2_cost, log2_gamma) in enumerate(points):
                self._tell(start[0] + place, start[1], f"point {place + 1} of {len(points)}")
                gamma = 2.0**log2_gamma / spread
                regressor = self._regressor(mos, log2_cost, kernel="rbf", gamma=gamma)
                predicted = regressor.fit(support, mos[kept]).predict(query)
                errors[place] = np.sum((predicted - mos[held]) ** 2)
            return errors
        near = euclidean_distances(support, squared=True) / spread
        far = euclidean_distances(query, support, squared=True) / spread
        computed = None
        for place, (log2_cost, log2_gamma) in enumerate(points):
            self._tell(start[0] + place, start[1], f"point {place + 1} of {len(points)}")
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


def check_support(regressor: SVR, inputs: int, path: Path) -> None:
    """Refuse support vectors whose parts do not fit each other: libsvm, in C, does not look.

    Args:
        regressor: restored.
        inputs: of a video.
        path: of its file, for messages.

    Raises:
        HeadError: if arrays are not of the shapes and dtypes that fitting gives, or it is another
            kind of machine.
    """
    state = vars(regressor)
    count = len(np.atleast_1d(state.get("support_", ())))
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "support_": ("int32", (count,)),
        "support_vectors_": ("float64", (count, inputs)),
        "_n_support": ("int32", (2,)),
        "dual_coef_": ("float64", (1, count)),
        "_dual_coef_": ("float64", (1, count)),
        "intercept_": ("float64", (1,)),
        "_intercept_": ("float64", (1,)),
        "_probA": ("float64", (0,)),
        "_probB": ("float64", (0,)),
    }
    for name, (dtype, shape) in wanted.items():
        value = state.get(name)
        if not isinstance(value, np.ndarray) or (value.dtype.name, value.shape) != (dtype, shape):
            raise HeadError(f"{path} is refused: {name} is not of {shape} {dtype}")
    sound = (
        "_impl" not in state
        and regressor.kernel == "rbf"
        and state.get("_sparse") is False
        and isinstance(state.get("_gamma"), float)
        and state["_n_support"].tolist() in ([count, 0], [count, count])
        and state.get("shape_fit_", ())[1:] == (inputs,)
    )
    if not sound:
        raise HeadError(f"{path} is refused: its support vectors are of another kind of machine")


def _spread(inputs: NDArray[np.float64]) -> float:
    """Mean squared distance of two rows; 1 where all are equal."""
    return 2 * float(inputs.var(axis=0).sum()) or 1.0
