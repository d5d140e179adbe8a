"""An audit finds what stands on both sides of a split."""

from pathlib import Path

import numpy as np

from vqbank.pipelines.audit import near_pairs, shared_scenes
from vqbank.pipelines.splits.schemes import named_splits
from vqbank.pipelines.splits.split import Split
from vqbank.store.schema import Video


def videos(scenes):
    return [Video(f"set/{row}", Path("x"), 3.0, scene) for row, scene in enumerate(scenes)]


def split(train, test):
    return Split(np.array(train, np.int64), np.array(test, np.int64))


def test_a_scene_on_both_sides_is_found_with_its_videos():
    rows = videos(["a", "a", "b", None, None, "a"])
    found = shared_scenes([split([0, 1, 3], [2, 4, 5]), split([0, 1, 3, 4, 5], [2])], rows)

    assert [(one.split, one.scene, one.train, one.test) for one in found] == [(0, "a", 2, 1)]


def test_splits_by_scene_share_none_and_random_ones_do():
    rows = videos([str(row // 4) for row in range(80)])

    assert shared_scenes(named_splits("scene", rows), rows) == []
    assert len({one.split for one in shared_scenes(named_splits("random", rows), rows)}) == 10


def test_near_duplicates_are_found_only_across_sides():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 8)) * [1, 1, 1, 1, 1, 1, 1, 1e6] + 1e3
    features = np.concatenate([features, np.full((3000, 1), 7.0)], axis=1)  # constant: no scale
    features[2500] = features[3]
    features[7] = features[8] * (1 + 1e-9)
    features[11] = features[12]
    rows = videos([None] * 3000)
    order = np.arange(3000)
    first = split(np.setdiff1d(order, [3, 8, 11, 12]), [3, 8, 11, 12])
    second = split(np.setdiff1d(order, [2500]), [2500])

    found = near_pairs([first, second], rows, features, below=0.01)

    assert [(one.train, one.test, one.splits) for one in found] == [
        ("set/2500", "set/3", (0, 1)),
        ("set/7", "set/8", (0,)),
    ]
    assert found[0].distance == 0
    assert 0 < found[1].distance < 1e-6


def test_distances_are_relative_to_the_usual_one():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 16))
    features[1] = features[0]
    features[1, 0] += 0.4  # of a median distance of some 5.7
    half = split(np.arange(0, 400, 2), np.arange(1, 400, 2))

    (pair,) = near_pairs([half], videos([None] * 400), features, below=0.1)

    assert abs(pair.distance - 0.4 / np.sqrt(32)) < 0.01


def test_features_that_are_all_the_same_are_all_near():
    half = split([0, 1], [2])

    assert len(near_pairs([half], videos([None] * 3), np.ones((3, 4)), below=0.05)) == 2
