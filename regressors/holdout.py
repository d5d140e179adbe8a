"""Which rows are held out of the rows that may be seen: whole scenes, never single videos."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import HeadError
from vqbank.store.schema import Video


def scenes_of(videos: Sequence[Video]) -> list[str]:
    """The scene of each video; one without a scene is a scene of its own, called by its id."""
    return [video.id if video.scene is None else video.scene for video in videos]


def hold_out_scenes(
    videos: Sequence[Video], *, fraction: float, rng: np.random.Generator, at_least: int = 1
) -> NDArray[np.bool_]:
    """[n], true for the videos of randomly chosen scenes.

    round(fraction x scenes) scenes are held out, at least `at_least` and never all.  Which ones
    depends on the names of the scenes and on `rng`, not on the order of the videos.

    Raises:
        HeadError: if `fraction` is not between 0 and 1, or there are no more than `at_least`
            scenes.
    """
    if not 0 < fraction < 1:
        raise HeadError(f"a fraction of scenes lies between 0 and 1; got {fraction}")
    scenes = scenes_of(videos)
    names = sorted(set(scenes))
    if len(names) <= at_least:
        raise HeadError(
            f"to hold out {at_least} and keep 1 takes {at_least + 1} scenes, and "
            f"{len(videos)} videos have {len(names)}; give more videos, or scenes that tell apart "
            "what they show"
        )
    count = min(max(at_least, round(fraction * len(names))), len(names) - 1)
    held = {names[index] for index in rng.permutation(len(names))[:count]}
    return np.array([scene in held for scene in scenes])


def scene_folds(
    videos: Sequence[Video], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to judge by, for each of `count` folds, no scene on two sides.

    Fewer folds where there are fewer scenes.

    Raises:
        HeadError: if that leaves fewer than 2 folds.
    """
    from sklearn.model_selection import GroupKFold  # seconds

    scenes = scenes_of(videos)
    folds = min(count, len(set(scenes)))
    if folds < 2:
        raise HeadError(
            "choosing hyper-parameters needs at least 2 folds of training scenes; "
            f"got {count} folds and {len(set(scenes))} scenes in {len(videos)} videos"
        )
    return list(GroupKFold(folds).split(np.empty(len(videos)), groups=scenes))
