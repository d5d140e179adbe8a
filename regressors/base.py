"""What a head is: a scikit-learn estimator on a FeatureTable that can be saved without pickle."""

import inspect
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from regressors.pooling import pooled, pooled_width
from store.errors import HeadError
from store.schema import FeatureSpec
from store.table import FeatureTable

CARD = "head.json"
FORMAT = 1


class Head(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn has no types
    """Features to MOS.

    Everything of a fitted head except its weights stands in `head.json`: its name, its
    parameters, the specs of the features it was fitted on, and how it was selected.

    Attributes:
        specs_: the features it was fitted on, by role, in the order of roles.
        selection_: the rule by which its hyper-parameters or its epoch were chosen.
    """

    name: ClassVar[str]
    """As in HEADS."""
    min_videos: ClassVar[int]
    """Fewest videos that can be fitted."""

    specs_: dict[str, FeatureSpec]
    selection_: str

    def fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> Self:
        """Learn from training rows only.

        Args:
            table: n videos.
            mos: [n], in any unit; predictions come in the same.

        Raises:
            HeadError: for fewer than `min_videos` videos, or a MOS that is missing, not finite, or
                the same for all.
        """
        mos = np.asarray(mos, np.float64)
        if mos.shape != (len(table),):
            raise HeadError(f"{self.name}: mos has shape {mos.shape} for {len(table)} videos")
        for video, score in zip(table.videos, mos, strict=True):
            if not np.isfinite(score):
                raise HeadError(f"{self.name}: the MOS of {video.id} is {score}")
        if len(mos) < self.min_videos:
            raise HeadError(f"{self.name} needs {self.min_videos} videos to fit; got {len(mos)}")
        if len(np.unique(mos)) < 2:
            raise HeadError(f"{self.name}: constant target, all {len(mos)} videos have {mos[0]:g}")
        self.selection_ = self._fit(table, mos)
        self.specs_ = dict(table.specs)
        return self

    def predict(self, table: FeatureTable) -> NDArray[np.float64]:
        """[n], in the unit of the MOS that was fitted.

        Raises:
            HeadError: if the head is not fitted, or the table's roles or features are not those of
                `fit`.
        """
        self._check_fitted()
        if tuple(self.specs_) != table.roles:
            raise HeadError(
                f"{self.name} was fitted on the roles {', '.join(self.specs_)}; "
                f"this table has {', '.join(table.roles)}"
            )
        for role, fitted in self.specs_.items():
            offered = table.specs[role]
            if fitted != offered:
                raise HeadError(
                    f"{self.name} was fitted with {role} = {fitted.key} of shape {fitted.shape}; "
                    f"this table has {offered.key} of shape {offered.shape}"
                )
        if len(table) == 0:
            raise HeadError(f"{self.name}: the table has no videos to predict")
        return self._predict(table)

    def save(self, folder: Path) -> None:
        """Write the fitted head into `folder`, made if need be.

        Raises:
            HeadError: if the head is not fitted.
        """
        self._check_fitted()
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)
        card = {
            "format": FORMAT,
            "name": self.name,
            "parameters": self.get_params(),
            "features": [
                {"role": role, "spec": json.loads(spec.to_json())}
                for role, spec in self.specs_.items()
            ],
            "selection": self.selection_,
        }
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The head that `save` wrote; predicts the same bits.

        Raises:
            HeadError: if the folder holds no head, another one, or a damaged one.
        """
        card = read_card(folder)
        if card["name"] != cls.name:
            raise HeadError(f"{folder} holds a {card['name']} head, not {cls.name}")
        try:
            head = cls(**card["parameters"])
            head.specs_ = {
                feature["role"]: FeatureSpec.from_json(json.dumps(feature["spec"]))
                for feature in card["features"]
            }
            head.selection_ = card["selection"]
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"{folder / CARD} is damaged or of another version: {error}") from error
        head._load(folder)
        return head

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """The names and default values of what `__init__` takes."""
        taken = inspect.signature(cls).parameters.values()
        return {parameter.name: parameter.default for parameter in taken}

    def _check_fitted(self) -> None:
        if not hasattr(self, "specs_"):
            raise HeadError(f"{self.name} is not fitted; call fit first")

    @abstractmethod
    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        """Learn from a checked table; says by which rule hyper-parameters were chosen."""

    @abstractmethod
    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        """[n] for a checked table."""

    @abstractmethod
    def _save(self, folder: Path) -> None:
        """Write what was learned, all but `head.json`."""

    @abstractmethod
    def _load(self, folder: Path) -> None:
        """Read what `_save` wrote into this instance, whose parameters and specs are set."""


def read_card(folder: Path) -> Mapping[str, Any]:
    """What stands in a saved head's `head.json`.

    Raises:
        HeadError: if it is missing, not JSON, or of a newer format.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HeadError(f"{folder} holds no head: {CARD} is missing") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise HeadError(f"{path} is damaged: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise HeadError(f"{path} is not a head of format {FORMAT}")
    if not isinstance(card.get("name"), str):
        raise HeadError(f"{path} names no head")
    return card


class PooledHead(Head):
    """StandardScaler and one scikit-learn regressor on pooled features."""

    regressor: ClassVar[type]
    """The last step's class; with StandardScaler, all that a saved head may hold."""

    model_: Pipeline

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        return np.asarray(self.model_.predict(pooled(table).astype(np.float64)), np.float64)

    def _save(self, folder: Path) -> None:
        import skops.io  # here, because it imports all of scikit-learn, which takes seconds

        skops.io.dump(self.model_, folder / "model.skops")

    def _load(self, folder: Path) -> None:
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException

        path = folder / "model.skops"
        try:
            # No type beyond skops's own scikit-learn and NumPy ones is trusted.
            model = skops.io.load(path, trusted=[])
        except FileNotFoundError:
            raise HeadError(f"{path} is missing") from None
        except UntrustedTypesFoundException as error:
            raise HeadError(f"{path} is refused: {error}") from error
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise HeadError(f"{path} is not a skops file, or damaged: {error}") from error
        allowed = [StandardScaler, self.regressor]
        if type(model) is not Pipeline or [type(step) for _, step in model.steps] != allowed:
            names = " and ".join(step.__name__ for step in allowed)
            raise HeadError(f"{path} is refused: it holds something other than {names}")
        width = pooled_width(self.specs_.values())
        if getattr(model, "n_features_in_", None) != width:
            raise HeadError(f"{path} was not fitted on the {width} inputs that {CARD} describes")
        self.model_ = model
