from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.splits import official_split, scene_splits
from store.errors import RecipeError
from store.schema import Video


def video(name, *, scene=None, part=None):
    return Video(f"set/{name}", Path(f"{name}.mp4"), mos=3.0, scene=scene, part=part)


def in_scenes(scenes):
    return [video(f"{row}.mp4", scene=scene) for row, scene in enumerate(scenes)]


def ids(videos, rows):
    return {videos[row].id for row in rows}


manifests = st.lists(
    st.one_of(st.none(), st.sampled_from("abcdefg")), min_size=2, max_size=40
).filter(lambda scenes: len(set(scenes)) > 1 or scenes.count(None) > 1)


@given(manifests, st.integers(0, 100), st.floats(0.05, 0.95))
def test_no_scene_stands_on_both_sides_and_every_row_on_one(scenes, seed, fraction):
    videos = in_scenes(scenes)

    for split in scene_splits(videos, count=3, test_fraction=fraction, seed=seed):
        assert sorted([*split.train, *split.test]) == list(range(len(videos)))
        assert len(split.train) > 0
        assert len(split.test) > 0
        known = [{scenes[row] for row in side} - {None} for side in (split.train, split.test)]
        assert not known[0] & known[1]


@given(manifests, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_the_manifest(scenes, random):
    videos = in_scenes(scenes)
    shuffled = random.sample(videos, len(videos))

    for one, other in zip(
        scene_splits(videos, count=3), scene_splits(shuffled, count=3), strict=True
    ):
        assert ids(videos, one.test) == ids(shuffled, other.test)
        assert ids(videos, one.train) == ids(shuffled, other.train)


def test_a_split_does_not_depend_on_how_many_are_asked_for():
    videos = in_scenes(["a", "b", "c", "d", "e", None, None, None, None, None])
    few, many = scene_splits(videos, count=2), scene_splits(videos, count=10)

    assert [split.test.tolist() for split in few] == [split.test.tolist() for split in many[:2]]
    assert len({tuple(split.test) for split in many}) > 1


def test_another_seed_gives_other_splits():
    videos = in_scenes([None] * 50)
    one, other = (scene_splits(videos, count=1, seed=seed)[0] for seed in (0, 1))

    assert one.test.tolist() != other.test.tolist()


def test_the_fraction_is_one_of_scenes():
    videos = in_scenes([str(row // 7) for row in range(418 * 7)])  # KVQ's training part

    split = scene_splits(videos, count=1)[0]

    assert len(split.train) == 334 * 7  # as RQ-VQA splits it
    assert split.train.dtype == split.test.dtype == np.int64


def test_at_least_the_asked_number_of_scenes_is_tested():
    split = scene_splits(in_scenes("abcdefgh"), count=1, test_fraction=0.1, min_test_scenes=3)[0]

    assert len(split.test) == 3


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        ("aaaa", {"count": 1}, "got 1 in 4 videos"),
        ("", {"count": 1}, "got 0 in 0 videos"),
        ("abc", {"count": 1, "min_test_scenes": 3}, "more than 3; got 3"),
        ("abc", {"count": 0}, "at least 1; got 0"),
        ("abc", {"count": 1, "test_fraction": 0.0}, "between 0 and 1; got 0.0"),
        ("abc", {"count": 1, "test_fraction": 20}, "between 0 and 1; got 20"),
    ],
)
def test_impossible_splits_are_refused(scenes, options, message):
    with pytest.raises(RecipeError, match=message):
        scene_splits(in_scenes(scenes), **options)


def test_the_official_split_trains_on_train_and_validation():
    parts = ("train", "test", "validation", "train", "test")
    videos = [video(str(row), part=part) for row, part in enumerate(parts)]

    split = official_split(videos)

    assert split.train.tolist() == [0, 2, 3]
    assert split.test.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([video("a", part="train"), video("b")], "set/b has no part"),
        ([video("a", part="train"), video("b", part="validation")], "0 into test"),
        ([video("a", part="test")], "0 videos into train"),
        ([], "0 videos into train"),
        (
            [video("a", part="train", scene="x"), video("b", part="test", scene="x")],
            "scene 'x' stands in train and in test",
        ),
    ],
)
def test_an_unusable_part_column_is_refused(videos, message):
    with pytest.raises(RecipeError, match=message):
        official_split(videos)
