"""Which rows are fitted and which are tested."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regressors.training import hold_out_scenes, scenes_of
from store.errors import HeadError, RecipeError
from store.schema import Video


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Every row is on one side, all videos of a scene on the same; rows ascend.

    Heads take the rows that choose epochs and hyper-parameters out of `train` themselves.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def scene_splits(
    videos: Sequence[Video],
    *,
    count: int,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_test_scenes: int = 1,
) -> list[Split]:
    """`count` random splits by scene; a video without a scene is a scene of its own.

    Split k depends on `seed`, k and the names of the scenes, not on the order of the videos nor on
    `count`.

    Args:
        videos: the rows.
        count: number of splits.
        test_fraction: of scenes, rounded; 0.2 is what the field uses.
        seed: another seed, other splits.
        min_test_scenes: tested even where the fraction gives fewer.

    Raises:
        RecipeError: if `count`, the fraction or `min_test_scenes` is impossible for these videos.
    """
    if count < 1:
        raise RecipeError(f"the number of splits is at least 1; got {count}")
    try:
        held_out = [
            hold_out_scenes(
                videos,
                fraction=test_fraction,
                rng=np.random.default_rng([seed, number]),
                at_least=min_test_scenes,
            )
            for number in range(count)
        ]
    except HeadError as error:
        raise RecipeError(f"no test part: {error}") from error
    return [_split(test) for test in held_out]


def official_split(videos: Sequence[Video]) -> Split:
    """The split of the data set's own `part` column: train and validation against test.

    Raises:
        RecipeError: if a video has no part, a side is empty, or a scene stands on both.
    """
    for video in videos:
        if video.part is None:
            raise RecipeError(
                f"{video.id} has no part; fill the manifest's part column or split by scene"
            )
    split = _split(np.array([video.part == "test" for video in videos], dtype=bool))
    if len(split.train) == 0 or len(split.test) == 0:
        raise RecipeError(
            f"the part column puts {len(split.train)} videos into train and validation and "
            f"{len(split.test)} into test; both need some"
        )
    scenes = scenes_of(videos)
    shared = {scenes[row] for row in split.train} & {scenes[row] for row in split.test}
    if shared:
        raise RecipeError(
            f"scene {min(shared)!r} stands in train and in test; split by scene, or leave the "
            "scene column empty if these are different scenes"
        )
    return split


def _split(test: NDArray[np.bool_]) -> Split:
    return Split(train=np.flatnonzero(~test), test=np.flatnonzero(test))
