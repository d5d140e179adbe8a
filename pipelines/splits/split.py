"""A split: which rows are fitted and which are tested."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.terminal import counted
from vqbank.store.errors import RecipeError
from vqbank.store.schema import FURTHER_TEST, Part

LEAST_TESTED = 2
"""Videos of a test part: of fewer there is no correlation."""


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Every row is on one side; rows ascend.

    In splits by scene all videos of a scene are on the same side; splits that a paper made by row
    are kept as published, and `audit` says what they mix.
    """

    train: NDArray[np.int64]
    """What a head may see, `validation` included."""
    test: NDArray[np.int64]
    validation: NDArray[np.int64] = field(default_factory=_no_rows)
    """Rows of `train` that the protocol sets aside to choose epochs.

    Heads without epochs leave them out.  Empty: heads take such rows out of `train` themselves.
    """

    @classmethod
    def testing(cls, test: NDArray[np.bool_]) -> Self:
        """The rows [n] for which `test` is true are tested, all others are fitted."""
        return cls(train=np.flatnonzero(~test), test=np.flatnonzero(test))

    @classmethod
    def of_parts(cls, parts: Sequence[Part | None]) -> Self:
        """From what stands beside each row; a row without a part is fitted.

        Further test parts (`test-NAME`) are tested as well.
        """
        test = np.array(
            [part == "test" or (part or "").startswith(FURTHER_TEST) for part in parts], dtype=bool
        )
        validation = np.array([part == "validation" for part in parts], dtype=bool)
        return cls(np.flatnonzero(~test), np.flatnonzero(test), np.flatnonzero(validation))

    @classmethod
    def in_order(
        cls, order: Sequence[int] | NDArray[np.int64], train: int, validation: int = 0
    ) -> Self:
        """The first `train` rows of an order, the next `validation`, and the rest to test."""
        rows = np.asarray(order, np.int64)
        held = rows[train : train + validation]
        return cls(
            train=np.sort(rows[: train + validation]),
            test=np.sort(rows[train + validation :]),
            validation=np.sort(held),
        )


def first_alike(splits: Sequence[Split]) -> list[int]:
    """For each split the number of the first one with the same test part: of most, their own.

    Our own random splits never repeat.  Those of papers are kept as published, and may: what
    repeats is no further evidence.
    """
    first: dict[bytes, int] = {}
    return [first.setdefault(split.test.tobytes(), place) for place, split in enumerate(splits)]


def too_small(rows: NDArray[np.int64], mos: NDArray[np.float64], least: int) -> str:
    """What a part of a split has, where it is too little to fit or to measure; else empty.

    Args:
        rows: of the part.
        mos: [n], of all videos; NaN where there is no score.
        least: videos that it needs.
    """
    if len(rows) < least:
        return counted(len(rows), "video")
    if np.isfinite(mos[rows]).all() and len(np.unique(mos[rows])) < 2:
        return f"{counted(len(rows), 'video')} of one score, {mos[rows[0]]:g}"
    return ""


def splits_without(splits: Sequence[Split], kept: NDArray[np.bool_]) -> list[Split]:
    """The same splits of fewer videos.

    Args:
        splits: of n videos.
        kept: [n].

    Raises:
        RecipeError: if a side loses all of its rows.
    """
    number = np.cumsum(kept) - 1
    fewer = []
    for place, split in enumerate(splits):
        train, test, validation = (
            number[side[kept[side]]] for side in (split.train, split.test, split.validation)
        )
        if (
            len(train) == 0
            or (len(test) == 0) != (not len(split.test))
            or (len(validation) == 0) != (not len(split.validation))
        ):
            raise RecipeError(f"split {place} has a side of which no video has all features")
        fewer.append(replace(split, train=train, test=test, validation=validation))
    return fewer
