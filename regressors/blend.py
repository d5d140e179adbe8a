"""Several heads at once, weighed by how well they predict training videos they did not see."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.base import clone
from sklearn.ensemble import StackingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch

from vqbank.regressors.boosting import Boosting
from vqbank.regressors.gaussian import Gaussian
from vqbank.regressors.holdout import scene_folds
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.regressors.ridge import Ridge
from vqbank.regressors.svr import Svr
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

MEMBERS: dict[str, type[PooledHead]] = {
    head.name: head for head in (Svr, Gaussian, Ridge, Boosting)
}
MemberName = Literal["svr", "gaussian", "ridge", "boosting"]
FEW_LANDMARKS = 100
"""Of approximated members where a blend is foretold; what a fit costs is known for any number."""


class Blend(PooledHead):
    """A weighted sum of heads, stacked on out-of-fold predictions of the training part.

    Each member chooses its hyper-parameters on the training part by its own rule.  With these it
    is fitted without one fold of scenes after the other and predicts that fold; the weights, none
    of them negative, are the least-squares fit of the MOS to these predictions (Breiman, Stacked
    regressions, Machine Learning 24, 1996).
    """

    name: ClassVar[str] = "blend"
    min_videos: ClassVar[int] = 10
    least_scenes: ClassVar[int] = 2
    steps: ClassVar[tuple[type, ...]] = (StackingRegressor,)
    parts: ClassVar[tuple[type, ...]] = (
        Bunch,
        *(part for head in MEMBERS.values() for part in head.parts),
    )

    stands_for: int | None = None
    """Videos of the fit whose cost is foretold by a fit of this head on fewer.  No parameter."""

    def __init__(
        self,
        *,
        members: Annotated[list[MemberName], Field(min_length=2)] | tuple[MemberName, ...] = (
            "svr",
            "gaussian",
        ),
        folds: Annotated[int, Field(ge=2)] = 5,
        roles: list[str] | None = None,
    ) -> None:
        """Name the parameters.

        Args:
            members: which heads, each with its default parameters.
            folds: of scenes, for the weights.
            roles: which of the features are seen, in this order; None for all.
        """
        self.roles = roles
        self.members = members
        self.folds = folds

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        if len(set(self.members)) < len(self.members):
            raise HeadError(f"{self.name}: members are {', '.join(self.members)}; each once")
        heads = self._heads()
        for head in heads:
            head.watch = self.watch
            head.fit(table, mos)
        self._tell(0, 1, "weights of the members")
        folds = scene_folds(table.videos, self.folds)
        stack = StackingRegressor(
            [(head.name, clone(head.model_)) for head in heads],
            LinearRegression(positive=True),
            cv=folds,
        )
        # Copies of SVR draw libsvm's seed, which it does not use, from NumPy's global generator.
        state = np.random.get_state()  # noqa: NPY002
        self.model_ = make_pipeline(stack).fit(pooled(table).astype(np.float64), mos)
        np.random.set_state(state)  # noqa: NPY002
        stack.cv = len(folds)  # the rows of the folds are not the model's
        weights = zip(heads, stack.final_estimator_.coef_, strict=True)
        members = "; ".join(
            f"{weight:.2f} {head.name}: {head.selection_}" for head, weight in weights
        )
        return f"weights by out-of-fold predictions over {len(folds)} training folds; {members}"

    def operations(self, videos: int, width: int) -> float:
        """Every member by its own rule, and once more for every fold."""
        heads = self._heads()
        search = sum(head.operations(videos, width) for head in heads)
        return search + self.folds * sum(head.refit_operations(videos, width) for head in heads)

    def small(self, videos: int) -> "Blend":
        """Its members exact or not, as those that so many videos are fitted by."""
        small: Blend = clone(self)
        small.stands_for = videos
        return small

    def _heads(self) -> list[PooledHead]:
        """Unfitted members."""
        heads = [MEMBERS[name]() for name in self.members]
        if self.stands_for is None:
            return heads
        small = [head.small(self.stands_for) for head in heads]
        for head in small:
            if "landmarks" in head.get_params():  # of which each fold of a few videos has as many
                head.set_params(landmarks=FEW_LANDMARKS)
        return small

    def _check_model(self, model: Pipeline, path: Path) -> None:
        stack = model[-1]
        for name, fitted in stack.named_estimators_.items():
            if name not in MEMBERS or not MEMBERS[name].has_steps(fitted):
                raise HeadError(f"{path} is refused: it holds something other than its members")
            MEMBERS[name]()._check_model(fitted, path)
