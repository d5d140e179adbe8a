"""Our own splits: by scene, by fold, by video, by data set, by the data set's own part column.

What a scheme needs a label file for, or takes no number of, it is told like all others and leaves
unread: all have one signature.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.labels import Labels
from vqbank.pipelines.splits.split import Split
from vqbank.regressors.holdout import hold_out_scenes, scenes_of
from vqbank.store.errors import HeadError, RecipeError
from vqbank.store.schema import Video


def scene_splits(
    videos: Sequence[Video],
    *,
    count: int,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_test_scenes: int = 1,
) -> list[Split]:
    """Random splits by scene, each with another test part; one without a scene is its own.

    `count` of them, or all that there are, where so few scenes allow no more.  Split k depends on
    `seed`, k and the names of the scenes, not on the order of the videos nor on `count`.

    Args:
        videos: the rows.
        count: number of splits, at most.
        test_fraction: of scenes, rounded; 0.2 is what the field uses.
        seed: another seed, other splits.
        min_test_scenes: tested even where the fraction gives fewer.

    Raises:
        RecipeError: if `count`, the fraction or `min_test_scenes` is impossible for these videos.
    """
    if count < 1:
        raise RecipeError(f"the number of splits is at least 1; got {count}")
    scenes = np.array(scenes_of(videos))
    found: dict[bytes, NDArray[np.bool_]] = {}
    wanted = count
    for number in itertools.count():
        try:
            test = hold_out_scenes(
                videos,
                fraction=test_fraction,
                rng=np.random.default_rng([seed, number]),
                at_least=min_test_scenes,
            )
        except HeadError as error:
            raise RecipeError(f"no test part: {error}") from error
        if number == 0:
            wanted = min(count, math.comb(len(set(scenes)), len(set(scenes[test]))))
        found.setdefault(test.tobytes(), test)
        if len(found) == wanted:
            break
    return [Split.testing(test) for test in found.values()]


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
    split = Split.of_parts([video.part for video in videos])
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


def refuse_without_scenes(name: str, videos: Sequence[Video]) -> None:
    """Splits by scene are not made where nobody said which videos show one scene.

    They would be random ones under another name, with versions of one content on both sides.
    Single videos without a scene are scenes of their own.

    Raises:
        RecipeError: if no video has a scene.
    """
    if not any(video.scene is not None for video in videos):
        raise RecipeError(
            f"splits {name} are by scene, and none of these {len(videos)} videos has one: fill the "
            "manifest's column `scene`, or let `vqbank labels import --scene PATTERN` find scenes "
            "in the names (`--scene '(.+)'` says that each video is one of its own); or split by "
            "video, as by `--splits random10`"
        )


def by_scene(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """`count` random splits, a fifth of the scenes for testing."""
    refuse_without_scenes(f"scene{count}", videos)
    return scene_splits(videos, count=count)


def threeway(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """As `by_scene`, with a quarter of the training scenes set aside to choose epochs by."""
    refuse_without_scenes(f"threeway{count}", videos)
    splits = []
    for number, split in enumerate(scene_splits(videos, count=count)):
        train = [videos[row] for row in split.train]
        try:
            held = hold_out_scenes(train, fraction=0.25, rng=np.random.default_rng([0, number, 1]))
        except HeadError as error:
            raise RecipeError(f"no validation part: {error}") from error
        splits.append(Split(split.train, split.test, split.train[held]))
    return splits


def random(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """A fifth of the videos for testing, scenes or not."""
    return scene_splits([Video(video.id, video.path) for video in videos], count=count)


def folds(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """`count` folds of scenes; each is tested once."""
    refuse_without_scenes(f"kfold{count}", videos)
    from sklearn.model_selection import GroupKFold  # seconds

    scenes = scenes_of(videos)
    if count < 2 or len(set(scenes)) < count:
        raise RecipeError(
            f"{count} folds need 2 folds or more and a scene for each; there are "
            f"{len(set(scenes))} scenes"
        )
    made = GroupKFold(count, shuffle=True, random_state=0)
    found = made.split(np.empty(len(videos)), groups=scenes)
    return [Split(train.astype(np.int64), test.astype(np.int64)) for train, test in found]


def official(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """The one split of the part column."""
    return [official_split(videos)]


def everything(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """One split that tests nothing: what is tested are sets that a recipe names beside it."""
    return [Split(train=np.arange(len(videos)), test=np.empty(0, np.int64))]


def across(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """Each data set in turn is tested by a head that saw the others; an id begins with it."""
    sets = np.array([video.id.partition("/")[0] for video in videos])
    names = sorted(set(sets))
    if len(names) < 2:
        raise RecipeError(f"leaving out a data set needs two; all ids begin with {names[0]}/")
    return [Split.testing(sets == name) for name in names]
