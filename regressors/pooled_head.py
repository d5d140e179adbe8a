"""Heads that are scikit-learn pipelines on one vector per video."""

import io
import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from vqbank.regressors.base import MOST_MODEL_BYTES, Head
from vqbank.regressors.card import CARD
from vqbank.regressors.pooling import pooled, pooled_width
from vqbank.regressors.progress import Step
from vqbank.store.documents import json_value
from vqbank.store.errors import HeadError, in_words
from vqbank.store.table import FeatureTable

_SCHEMA = "schema.json"
MOST_SCHEMA_BYTES = 2**24
MOST_UNFOLDED_BYTES = 2**26
"""What a model file may unfold to, however short it is."""
MOST_GROWTH = 3
"""Times that a longer model file may unfold: skops does not compress."""


class PooledHead(Head):
    """A scikit-learn pipeline on pooled features."""

    suffix: ClassVar[str] = ".skops"
    steps: ClassVar[tuple[type, ...]]
    """Classes of the pipeline's steps; a saved head may hold no others."""
    approximate_steps: ClassVar[tuple[type, ...]] = ()
    """The same of a head that was fitted by approximation, where it can be."""
    parts: ClassVar[tuple[type, ...]] = ()
    """Further classes inside the steps that skops does not trust by itself."""

    model_: Pipeline

    @abstractmethod
    def operations(self, videos: int, width: int) -> float:
        """Floating point operations of a fit, roughly: by these a measured fit is extrapolated.

        Args:
            videos: that are fitted.
            width: of their pooled features.
        """

    def refit_operations(self, videos: int, width: int) -> float:
        """Of a fit with hyper-parameters that are chosen already."""
        return self.operations(videos, width)

    def small(self, videos: int) -> Self:
        """An unfitted head that fits a few videos in the way in which this one fits so many."""
        return clone(self)

    def _most_values(self, width: int) -> int:
        """How many numbers a fitted head holds at most, as its parameters say; about twice them.

        Args:
            width: of the pooled features.
        """
        return MOST_MODEL_BYTES

    def _most_model_bytes(self) -> int:
        values = self._most_values(pooled_width(self.specs_.values()))
        return min(MOST_MODEL_BYTES, MOST_SCHEMA_BYTES + 8 * values)

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.watch is not None:
            self.watch(Step(self.name, done, total, what))

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        return np.asarray(self.model_.predict(pooled(table).astype(np.float64)), np.float64)

    def _model_bytes(self) -> bytes:
        import skops.io  # here, because it imports all of scikit-learn, which takes seconds

        return skops.io.dumps(self.model_)

    def _restore(self, content: bytes, path: Path) -> None:
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException

        trusted = [f"{part.__module__}.{part.__qualname__}" for part in self.parts]
        try:
            _check_archive(content, path)
            # No type is trusted beyond skops's own scikit-learn and NumPy ones, and `parts`.
            model = skops.io.loads(content, trusted=trusted)
        except HeadError:
            raise
        except UntrustedTypesFoundException as error:
            raise HeadError(f"{path} is refused: {in_words(error)}") from error
        except Exception as error:  # skops raises whatever damaged files lead it to
            raise HeadError(f"{path} is not a skops file, or damaged: {in_words(error)}") from error
        try:
            self._check(model, path)
        except HeadError:
            raise
        except Exception as error:  # so does scikit-learn, of parts that are of other kinds
            raise HeadError(f"{path} is damaged: it cannot predict: {in_words(error)}") from error
        self.model_ = model

    def _check(self, model: Any, path: Path) -> None:
        if not self.has_steps(model):
            names = " and ".join(step.__name__ for step in self.steps)
            raise HeadError(f"{path} is refused: it holds something other than {names}")
        width = pooled_width(self.specs_.values())
        if getattr(model, "n_features_in_", None) != width:
            raise HeadError(f"{path} was not fitted on the {width} inputs that {CARD} describes")
        self._check_model(model, path)
        score = np.asarray(model.predict(np.zeros((1, width))), np.float64)
        if score.shape != (1,):
            raise HeadError(f"{path} is damaged: it gives {score.shape} scores for one video")

    @classmethod
    def has_steps(cls, model: Any) -> bool:
        """Whether this is a pipeline of the steps that this head may have."""
        steps = tuple(type(step) for _, step in model.steps) if type(model) is Pipeline else ()
        return steps != () and steps in (cls.steps, cls.approximate_steps)

    def _check_model(self, model: Pipeline, path: Path) -> None:
        """Look into a restored pipeline of the right steps and width.

        Args:
            model: what the file holds.
            path: of the file, for messages.

        Raises:
            HeadError: if predicting with it would be unsafe.
        """


def _check_archive(content: bytes, path: Path) -> None:
    """Refuse an archive that would unfold to much more than a model has.

    One of its files may be asked for many times by the description of the model beside them.

    Raises:
        HeadError: naming the file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        left = max(MOST_UNFOLDED_BYTES, MOST_GROWTH * len(content))
        left -= sum(sizes.values())
        if left < 0 or sizes[_SCHEMA] > MOST_SCHEMA_BYTES:
            raise HeadError(f"{path} would unfold to {sum(sizes.values()):,} bytes; no model does")
        waiting = [json_value(archive.read(_SCHEMA), f"{path}: {_SCHEMA}", HeadError)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            left -= sizes.get(str(node.get("file")), 0)
            if left < 0:
                raise HeadError(f"{path} would unfold to many times its length; no model does")
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
