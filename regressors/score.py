"""A head without training: a score that is banked already, such as NIQE's or FAST-VQA's."""

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vqbank.regressors.base import Head
from vqbank.regressors.metrics import fit_line
from vqbank.store.errors import HeadError, in_words
from vqbank.store.table import FeatureTable


class Score(Head):
    """The mean over rows of one value of the first role, as it is or on the scale of the MOS.

    For the zero-shot rows of tables: nothing is chosen or learnt but, unless `line` is false, a
    straight line from this score to the MOS of the training rows.  The line turns a score round
    that is low for good videos; SRCC, KRCC and |PLCC| are the same without it.
    """

    name: ClassVar[str] = "score"
    min_videos: ClassVar[int] = 3
    suffix: ClassVar[str] = ".safetensors"

    line_: tuple[float, float]
    """Slope and intercept."""

    def __init__(
        self,
        *,
        value: Annotated[int, Field(ge=0)] = 0,
        line: bool = True,
        roles: list[str] | None = None,
    ) -> None:
        """Say which score.

        Args:
            value: place in a row of the first role, laid flat, from 0.
            line: whether a line to the MOS is fitted on training rows; without it scores keep
                their own scale and direction.
            roles: which of the features are seen, in this order; None for all.
        """
        self.value = value
        self.line = line
        self.roles = roles

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        role, spec = next(iter(table.specs.items()))
        width = int(np.prod(spec.shape, dtype=np.int64))
        if self.value >= width:
            raise HeadError(
                f"{self.name}: a row of {role} = {spec.key} has {width} values; value {self.value} "
                f"is none of them, which are 0 to {width - 1}"
            )
        what = f"value {self.value} of {spec.name}, its mean over rows"
        if not self.line:
            self.line_ = (1.0, 0.0)
            return f"{what}, not fitted"
        scores = self._scores(table)
        if len(np.unique(scores)) < 2:
            raise HeadError(
                f"{self.name}: {what}, is {scores[0]:g} for all {len(table)} training videos"
            )
        self.line_ = fit_line(mos, scores)
        return f"{what}; a line to the scores of {len(table)} training videos, nothing chosen"

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        slope, intercept = self.line_
        return slope * self._scores(table) + intercept

    def row_scores(self, table: FeatureTable) -> list[NDArray[np.float64]]:
        """The value itself, on the scale of `predict`; of every row."""
        slope, intercept = self.line_
        table = self._chosen(table)
        rows = (series.reshape(len(series), -1) for series in table.arrays(table.roles[0]))
        return [slope * own[:, self.value].astype(np.float64) + intercept for own in rows]

    def _scores(self, table: FeatureTable) -> NDArray[np.float64]:
        """[n], on the score's own scale."""
        role = table.roles[0]
        scores = np.empty(len(table))
        for row, video in enumerate(table.videos):
            series = table.series(role, row)
            scores[row] = series.reshape(len(series), -1)[:, self.value].mean(dtype=np.float64)
            if not np.isfinite(scores[row]):
                raise HeadError(f"{self.name}: {role} of {video.id} is not finite")
        return scores

    def _model_bytes(self) -> bytes:
        return save({"line": np.array(self.line_)})

    def _most_model_bytes(self) -> int:
        return 2**12

    def _restore(self, content: bytes, path: Path) -> None:
        try:
            slope, intercept = load(content)["line"].astype(np.float64).tolist()
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise HeadError(f"{path} is damaged: {in_words(error)}") from error
        if not np.isfinite([slope, intercept]).all():
            raise HeadError(f"{path} is damaged: its line is not finite")
        self.line_ = (slope, intercept)
