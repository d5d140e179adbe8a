"""Where a score stands among the training scores, and how far off such scores are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from vqbank.store.errors import HeadError

_Percentiles = Annotated[list[FiniteFloat], Field(min_length=101, max_length=101)]


class _HeldOut(BaseModel):
    share: Annotated[float, Field(gt=0, lt=1)]
    low: FiniteFloat
    high: FiniteFloat
    errors: Annotated[int, Field(ge=1)]


class _TrainedOn(BaseModel):
    percentiles: _Percentiles | None = None


class _Told(BaseModel):
    trained_on: _TrainedOn | None = None
    held_out: _HeldOut | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What a head's card tells of its scores."""

    scores: NDArray[np.float64] | None = None
    """[101]: percentiles 0 to 100 of the training scores; None of heads saved before they were
    kept, and of published weights."""
    errors: tuple[float, float] | None = None
    """Ends of the range of score less prediction on videos that the head had not seen."""
    share: float = 0.0
    """Of such errors that lie in the range."""

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> "Standing":
        """What a card tells; nothing is told of what it lacks.

        Raises:
            HeadError: if the card is damaged.
        """
        try:
            told = _Told.model_validate(dict(card))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise HeadError(f"the head's card is damaged: {place}: {problem['msg']}") from error
        seen, held_out = told.trained_on, told.held_out
        return cls(
            None if seen is None or seen.percentiles is None else np.array(seen.percentiles),
            None if held_out is None else (held_out.low, held_out.high),
            0.0 if held_out is None else held_out.share,
        )

    def beside(self, score: float) -> dict[str, float]:
        """What is told beside a score, by name: `percentile`, `low`, `high`, as far as known.

        `percentile` is the share, in per cent, of the training scores that are lower.
        """
        told = {}
        if self.scores is not None:
            told["percentile"] = float(np.interp(score, self.scores, np.arange(101)))
        if self.errors is not None:
            told |= {"low": score + self.errors[0], "high": score + self.errors[1]}
        return told
