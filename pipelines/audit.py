"""What stands on both sides of a split and should not: scenes, and videos that are nearly alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.splits.split import Split
from vqbank.store.schema import Video

BLOCK_ROWS = 1024
"""Rows whose distances to all others are held at once."""
SAMPLE = 2000
"""Videos from which the usual distance is taken."""


@dataclass(frozen=True, slots=True)
class SharedScene:
    """A scene on both sides of a split."""

    split: int
    scene: str
    train: int
    """Training videos of it."""
    test: int
    """Test videos of it."""


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two videos on two sides of splits whose features are nearly the same."""

    train: str
    test: str
    distance: float
    """Relative to the median distance of two videos; 0 is the same."""
    splits: tuple[int, ...]
    """In which splits they stand on two sides, whichever way."""


def shared_scenes(splits: Sequence[Split], videos: Sequence[Video]) -> list[SharedScene]:
    """Every scene that a split has on both sides; videos without a scene are none."""
    names = sorted({video.scene for video in videos if video.scene is not None})
    number = {name: place for place, name in enumerate(names)}
    scene = np.array([number.get(video.scene or "", -1) for video in videos], np.int64)
    found: list[SharedScene] = []
    for place, split in enumerate(splits):
        train, test = (
            np.bincount(scene[side][scene[side] >= 0], minlength=len(names))
            for side in (split.train, split.test)
        )
        found.extend(
            SharedScene(place, names[both], int(train[both]), int(test[both]))
            for both in np.flatnonzero((train > 0) & (test > 0))
        )
    return found


def near_pairs(
    splits: Sequence[Split],
    videos: Sequence[Video],
    features: NDArray[np.floating],
    *,
    below: float,
) -> list[NearPair]:
    """Pairs on two sides of a split that are nearer than `below`, the nearest first.

    Distances are Euclidean on features of mean 0 and variance 1, divided by the median distance
    of two videos, so that `below` means the same for every feature.

    Args:
        splits: of the videos.
        videos: n of them.
        features: [n, d], one vector per video.
        below: at 0.05 no two of KoNViD-1k's 1200 videos are near by VIDEVAL's 60 features, and
            11 pairs are by BRISQUE's 36: the fewer the numbers, the more pairs meet by chance.
    """
    values = np.asarray(features, np.float64)
    spread = values.std(axis=0)
    moving = spread > 1e-6 * np.abs(values).max(axis=0)  # else rounding is all that moves
    scaled = (values[:, moving] - values[:, moving].mean(axis=0)) / spread[moving]
    limit = below * _median_distance(scaled)
    on_test = np.zeros((len(splits), len(videos)), bool)
    on_train = np.zeros_like(on_test)
    for place, split in enumerate(splits):
        on_test[place, split.test] = True
        on_train[place, split.train] = True
    found = []
    for one, two, distance in _pairs_within(scaled, limit):
        across = (on_train[:, one] & on_test[:, two]) | (on_test[:, one] & on_train[:, two])
        where = np.flatnonzero(across)
        if len(where):
            train, test = (one, two) if on_train[where[0], one] else (two, one)
            found.append(
                NearPair(
                    videos[train].id,
                    videos[test].id,
                    distance / limit * below if limit > 0 else 0.0,
                    tuple(where.tolist()),
                )
            )
    return sorted(found, key=lambda pair: (pair.distance, pair.train, pair.test))


def _median_distance(scaled: NDArray[np.float64]) -> float:
    rng = np.random.default_rng(0)
    some = scaled[rng.permutation(len(scaled))[:SAMPLE]]
    other = some[rng.permutation(len(some))]
    distances = np.linalg.norm(some - other, axis=1)
    moved = distances[distances > 0]
    return float(np.median(moved)) if len(moved) else 0.0


def _pairs_within(scaled: NDArray[np.float64], limit: float) -> list[tuple[int, int, float]]:
    """Pairs of rows i < j within a distance, block by block."""
    squares = (scaled**2).sum(axis=1)
    found = []
    for start in range(0, len(scaled), BLOCK_ROWS):
        block = scaled[start : start + BLOCK_ROWS]
        # By the binomial formula first, whose rounding errs by some 1e-7 of the squares ...
        rough = squares[start : start + BLOCK_ROWS, None] + squares - 2 * block @ scaled.T
        slack = 1e-6 * (squares[start : start + BLOCK_ROWS, None] + squares)
        rows, others = np.nonzero(rough <= limit**2 + slack)
        for row, other in zip(rows + start, others, strict=True):
            if row < other:  # ... and then exactly
                distance = float(np.linalg.norm(scaled[row] - scaled[other]))
                if distance <= limit:
                    found.append((int(row), int(other), distance))
    return found
