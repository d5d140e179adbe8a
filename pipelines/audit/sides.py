"""What stands on both sides of a split and should not: scenes, and videos that are nearly alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.audit.label_seen import moving
from vqbank.pipelines.splits.split import Split
from vqbank.store.schema import Video

BLOCK_ROWS = 1024
"""Rows whose distances to all others are held at once."""
SAMPLE = 2000
"""Videos from which the usual distance is taken."""
TWIN = 0.1
"""Distance of twins at most, relative to the median of all ..."""
TWIN_RATIO = 0.2
"""... and relative to the fifth nearest: where many are near, none is a twin.  No two videos of
KoNViD-1k, LIVE-VQC and CVD2014 come below .29, by BRISQUE, VIDEVAL or ResNet-50."""
SAME = 1e-3
"""Distance below which videos are the same, however many there are."""
FEWEST_COLUMNS = 10
"""Numbers by which twins can be told: of fewer, many videos have the same."""


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
    scaled = moving(features)
    limit = below * _median_distance(scaled)
    return _across(splits, videos, _pairs_within(scaled, limit), limit / below if below else 0.0)


def twins(
    splits: Sequence[Split], videos: Sequence[Video], features: NDArray[np.floating]
) -> list[NearPair] | None:
    """Pairs on two sides of a split that are one video twice: as a file, or encoded again.

    They are near, and nearer by far than a video's other neighbours, so that features in which
    many videos are alike give no false alarm.

    Args:
        splits: of the videos.
        videos: n of them.
        features: [n, d], one vector per video.

    Returns:
        The nearest first; None where fewer than FEWEST_COLUMNS columns move.
    """
    scaled = moving(features)
    if scaled.shape[1] < FEWEST_COLUMNS:
        return None
    usual = _median_distance(scaled)
    near = _pairs_within(scaled, TWIN * usual)
    fifth = _fifth_nearest(scaled, sorted({row for one, two, _ in near for row in (one, two)}))
    found = [
        (one, two, distance)
        for one, two, distance in near
        if distance <= max(SAME * usual, TWIN_RATIO * min(fifth[one], fifth[two]))
    ]
    return _across(splits, videos, found, usual)


def _fifth_nearest(scaled: NDArray[np.float64], rows: Sequence[int]) -> dict[int, float]:
    """Of some videos the distance to the fifth nearest other, or to the farthest of fewer."""
    place = min(5, len(scaled) - 1)
    return {
        row: float(np.partition(np.linalg.norm(scaled - scaled[row], axis=1), place)[place])
        for row in rows
    }


def _across(
    splits: Sequence[Split],
    videos: Sequence[Video],
    pairs: Sequence[tuple[int, int, float]],
    usual: float,
) -> list[NearPair]:
    """Those of the pairs that stand on two sides of a split, the nearest first."""
    on_test = np.zeros((len(splits), len(videos)), bool)
    on_train = np.zeros_like(on_test)
    for place, split in enumerate(splits):
        on_test[place, split.test] = True
        on_train[place, split.train] = True
    found = []
    for one, two, distance in pairs:
        across = (on_train[:, one] & on_test[:, two]) | (on_test[:, one] & on_train[:, two])
        where = np.flatnonzero(across)
        if len(where):
            train, test = (one, two) if on_train[where[0], one] else (two, one)
            found.append(
                NearPair(
                    videos[train].id,
                    videos[test].id,
                    distance / usual if usual > 0 else 0.0,
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


def scene_lookup(
    split: Split, videos: Sequence[Video], mos: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[tested]: of each test video the mean score of its scene's training videos, with no picture.

    A video whose scene is not trained on gets the mean of all training videos.

    Args:
        split: of the videos.
        videos: n of them.
        mos: [n].
    """
    known: dict[str, list[float]] = {}
    for row in split.train.tolist():
        if (scene := videos[row].scene) is not None:
            known.setdefault(scene, []).append(float(mos[row]))
    mean = {scene: float(np.mean(scores)) for scene, scores in known.items()}
    usual = float(mos[split.train].mean())
    return np.array([mean.get(videos[row].scene or "", usual) for row in split.test.tolist()])
