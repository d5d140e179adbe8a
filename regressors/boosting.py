"""Gradient boosting on pooled features."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.pipeline import Pipeline, make_pipeline

from vqbank.regressors.holdout import scene_folds
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import pooled
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable


class Boosting(PooledHead):
    """Boosted regression trees; how many is chosen on scenes held out of the training part."""

    name: ClassVar[str] = "boosting"
    min_videos: ClassVar[int] = 5
    least_scenes: ClassVar[int] = 2
    steps: ClassVar[tuple[type, ...]] = (HistGradientBoostingRegressor,)
    parts: ClassVar[tuple[type, ...]] = (TreePredictor,)

    def __init__(
        self,
        *,
        most_trees: Annotated[int, Field(ge=1)] = 300,
        leaves: Annotated[int, Field(ge=2)] = 8,
        learning_rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.05,
        folds: Annotated[int, Field(ge=2)] = 3,
        roles: list[str] | None = None,
    ) -> None:
        self.roles = roles
        self.most_trees = most_trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.folds = folds

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        inputs = pooled(table).astype(np.float64)
        folds = scene_folds(table.videos, self.folds)
        errors = np.zeros(self.most_trees)
        for number, (kept, held) in enumerate(folds):
            self._tell(number, len(folds) + 1, f"fold {number + 1} of {len(folds)}")
            regressor = self._regressor(self.most_trees).fit(inputs[kept], mos[kept])
            stages = regressor.staged_predict(inputs[held])
            errors += [np.sum((stage - mos[held]) ** 2) for stage in stages]
        trees = int(np.argmin(errors)) + 1
        self._tell(len(folds), len(folds) + 1, f"{trees} trees on all videos")
        self.model_ = make_pipeline(self._regressor(trees)).fit(inputs, mos)
        return (
            f"{trees} trees of at most {self.most_trees} by squared error in "
            f"{len(folds)}-fold cross-validation over training scenes"
        )

    def _most_values(self, width: int) -> int:
        bins, node = 256, 16  # limits of the bins of an input, and numbers of a node
        return 2 * (bins * width + self.most_trees * 2 * self.leaves * node)

    def operations(self, videos: int, width: int) -> float:
        """Every tree looks at all videos, and at some hundred bins of inputs whatever they are."""
        return (self.folds + 1) * self.refit_operations(videos, width)

    def refit_operations(self, videos: int, width: int) -> float:
        """Of one fit."""
        return 3.0 * self.most_trees * (videos + 2000) * (width + 30)

    def _regressor(self, trees: int) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            max_iter=trees,
            max_leaf_nodes=self.leaves,
            learning_rate=self.learning_rate,
            min_samples_leaf=10,
            l2_regularization=1.0,
            max_features=0.3,  # of the inputs for every node: trees that differ are worth more
            early_stopping=False,  # would hold out rows and not scenes
            random_state=0,
        )

    def _check_model(self, model: Pipeline, path: Path) -> None:
        check_trees(model[-1], path)


def check_trees(regressor: Any, path: Path) -> None:
    """Refuse trees whose nodes point out of themselves: the predictor, in C, does not look.

    Args:
        regressor: a restored HistGradientBoostingRegressor.
        path: of its file, for messages.

    Raises:
        HeadError: if a node's child or input does not exist, or a child stands before its parent.
    """
    trees = [tree for stage in regressor._predictors for tree in stage]
    for number, tree in enumerate(trees):
        inner = tree.nodes[tree.nodes["is_leaf"] == 0]
        places = np.flatnonzero(tree.nodes["is_leaf"] == 0)
        sound = (
            type(tree) is TreePredictor
            and not inner["is_categorical"].any()
            and (inner["feature_idx"] >= 0).all()
            and (inner["feature_idx"] < regressor.n_features_in_).all()
            and all(
                (inner[side] > places).all() and (inner[side] < len(tree.nodes)).all()
                for side in ("left", "right")
            )
        )
        if len(tree.nodes) == 0 or not sound:
            raise HeadError(f"{path} is refused: the nodes of tree {number} are no tree")
