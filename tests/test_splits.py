import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqbank.pipelines.labels import Label, Labels, Orders
from vqbank.pipelines.splits.file import read_splits, write_splits
from vqbank.pipelines.splits.ours import official_split, scene_splits
from vqbank.pipelines.splits.schemes import SCHEMES, named_splits
from vqbank.pipelines.splits.split import first_alike
from vqbank.store.errors import RecipeError, UnknownNameError
from vqbank.store.schema import Video


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


@pytest.mark.parametrize(
    ("scenes", "fraction", "possible"), [("aabbcc", 0.2, 3), ("abcd", 0.5, 6), ("abcdef", 0.2, 6)]
)
def test_no_two_splits_have_the_same_test_part(scenes, fraction, possible):
    splits = scene_splits(in_scenes(scenes), count=10, test_fraction=fraction)

    assert len({tuple(split.test) for split in splits}) == len(splits) == possible
    few = scene_splits(in_scenes(scenes), count=2, test_fraction=fraction)
    assert [split.test.tolist() for split in few] == [split.test.tolist() for split in splits[:2]]


@pytest.mark.parametrize("name", ["scene10", "random10", "threeway10"])
def test_named_splits_of_ours_do_not_repeat_either(name):
    videos = in_scenes("abcdefg")
    splits = named_splits(name, videos)

    assert first_alike(splits) == list(range(len(splits)))
    assert len(splits) == 7


def test_what_repeats_is_like_the_first_of_its_kind():
    splits = named_splits("videval8", plain(5))

    tests = [split.test.tolist() for split in splits]
    assert len(splits) == 8
    assert first_alike(splits) == [tests.index(test) for test in tests]
    assert len(set(first_alike(splits))) <= 5


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
        ("aaaa", {"count": 1}, "takes 2 scenes, and 4 videos have 1"),
        ("", {"count": 1}, "takes 2 scenes, and 0 videos have 0"),
        (
            "abc",
            {"count": 1, "min_test_scenes": 3},
            "to hold out 3 and keep 1 takes 4 scenes, and 3 videos have 3",
        ),
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


# Splits with a name


def plain(count):
    return in_scenes([None] * count)


def a_label_file(count, **more):
    rows = tuple(Label(f"{row}.mp4", 3.0, f"x.txt:{row + 1}") for row in range(count))
    return Labels(Path("x.mat"), "a layout", rows, "mos", **more)


@pytest.mark.parametrize(("letter", "name", "count"), [("a", "KONVID_1K", 1200)])
def test_videvals_splits_are_those_of_its_code(shared_data, letter, name, count):
    path = shared_data / "golden" / f"brisque_protocol.{letter}.npz"
    if not path.exists():
        pytest.skip("no golden fixture")
    with np.load(path) as fixture:
        expected = fixture[f"{name}_test_index"]
    splits = named_splits("videval100", plain(count))

    assert len(splits) == 100
    for split, test in zip(splits[:99], expected, strict=True):  # its loop stops at 99
        assert np.array_equal(split.test, np.sort(test))


def test_videvals_splits_do_not_change():
    splits = named_splits("videval2", plain(10))

    assert [split.test.tolist() for split in splits] == [[4, 8], [7, 9]]


def test_fastvqas_splits_shuffle_the_label_files_rows():
    splits = named_splits("fastvqa10", plain(234))
    random.seed(42 * 3)  # as its train_test_split does for the third
    infos = [{"row": row} for row in range(234)]
    random.shuffle(infos)

    assert len(splits) == 10
    assert splits[2].train.tolist() == sorted(info["row"] for info in infos[:187])
    assert len(splits[2].validation) == 0


def test_rqvqas_splits_are_of_contents_with_its_seeds():
    videos = in_scenes([f"{row // 7}" for row in range(418 * 7)])
    splits = named_splits("rqvqa", videos)
    # What RQ-VQA's loader draws first for seeds 10 and 20.
    known = [(362, 154, 47, 100, 187, 114), (315, 174, 13, 121, 129, 268)]

    assert len(splits) == 10
    for split, contents in zip(splits, known, strict=False):
        assert len(split.train) == 334 * 7
        assert {content * 7 + version for content in contents for version in range(7)} <= set(
            split.train.tolist()
        )


def test_minimalisticvqas_splits_set_a_fifth_aside():
    n = 235
    split = named_splits("minimalistic", plain(n))[4]
    np.random.seed(4)  # noqa: NPY002  as its loader does
    order = np.random.permutation(n)  # noqa: NPY002

    assert set(split.validation) == set(order[141:188])
    assert set(split.test) == set(order[188:])
    assert set(split.train) == set(order[:188])


def test_vsfas_splits_are_cut_from_the_index_of_the_file():
    rng = np.random.default_rng(0)
    groups = np.arange(1200) // 2
    orders = np.stack([rng.permutation(600) for _ in range(3)])
    labels = a_label_file(1200, orders=Orders(groups, orders, "reference ids"))
    splits = named_splits("vsfa3", plain(1200), labels=labels)

    for split, order in zip(splits, orders, strict=True):
        # VSFA.py: floating point makes it 361 groups of 600, not 360.
        assert np.ceil((1 - 0.2 - 0.2) * 600) == 361
        assert set(groups[split.test]) == set(order[480:])
        assert set(groups[split.validation]) == set(order[361:480])
        assert len(split.train) == 960
    with pytest.raises(RecipeError, match="has 3 orders in `index`; 4 splits asked for"):
        named_splits("vsfa4", plain(1200), labels=labels)


def test_split_columns_of_a_label_file_are_splits():
    labels = a_label_file(3, split_columns={"split01": ("train", "validation", "test")})
    (split,) = named_splits("columns", plain(3), labels=labels)

    assert (split.train.tolist(), split.validation.tolist(), split.test.tolist()) == (
        [0, 1], [1], [2],
    )  # fmt: skip


def test_folds_test_every_row_once_and_part_no_scene():
    scenes = [str(row // 3) for row in range(60)]
    splits = named_splits("kfold4", in_scenes(scenes))

    assert sorted(np.concatenate([split.test for split in splits])) == list(range(60))
    for split in splits:
        assert not {scenes[row] for row in split.train} & {scenes[row] for row in split.test}


def test_three_ways_part_no_scene():
    scenes = [str(row // 3) for row in range(60)]

    for split in named_splits("threeway", in_scenes(scenes)):
        held = set(split.validation.tolist())
        fit = set(split.train.tolist()) - held
        sides = [{scenes[row] for row in side} for side in (fit, held, split.test)]
        assert held <= set(split.train.tolist())
        assert [len(side) for side in sides] == [12, 4, 4]
        assert len(set().union(*sides)) == 20


def test_each_data_set_is_left_out_once():
    videos = [Video(f"{name}/{row}", Path("x")) for row in range(4) for name in ("b", "a")]
    splits = named_splits("across", videos)

    assert [ids(videos, split.test) for split in splits] == [
        {f"{name}/{row}" for row in range(4)} for name in "ab"
    ]


def test_random_splits_ignore_scenes_and_scene_splits_do_not():
    videos = in_scenes(["a"] * 10 + ["b"] * 10)

    assert len(named_splits("random3", videos)) == 3
    assert all(
        {videos[row].scene for row in split.test} == {"a", "b"}
        for split in named_splits("random3", videos)
    )


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - {"across", "columns", "official", "vsfa"}))
@pytest.mark.parametrize("scenes", [20, 23])
def test_every_scheme_puts_every_row_on_one_side(name, scenes):
    videos = in_scenes([str(row % scenes) for row in range(3 * scenes)])

    for split in named_splits(name, videos):
        assert sorted([*split.train, *split.test]) == list(range(len(videos)))
        assert set(split.validation.tolist()) <= set(split.train.tolist())
        assert all((np.diff(side) > 0).all() for side in (split.train, split.test))


@pytest.mark.parametrize(
    ("name", "videos", "message"),
    [
        ("official3", plain(9), "official takes no number"),
        ("scene0", plain(9), "at least 1"),
        ("random", plain(1), "1 video cannot be split"),
        ("rqvqa", plain(9), "9 videos have no scene, the first is set/0.mp4"),
        ("vsfa", plain(9), "are cut from the `index` of a .mat label file"),
        ("columns", plain(9), "are columns of a label file"),
        ("across", plain(9), "all ids begin with set/"),
        ("kfold1", in_scenes("abcabc"), "2 folds or more"),
        ("kfold10", in_scenes("abcabc"), "there are 3 scenes"),
        ("scene10", plain(9), "scene10 are by scene, and none of these 9 .* --scene .*random10"),
        ("threeway", plain(9), "threeway10 are by scene, and none of these 9"),
        ("kfold5", plain(9), "kfold5 are by scene, and none of these 9"),
        ("random99999", plain(9), "at least 1, and 10,000 at most"),
        ("random" + "9" * 5000, plain(9), "at least 1, and 10,000 at most"),
    ],
)
def test_a_scheme_that_these_videos_do_not_allow_is_refused(name, videos, message):
    with pytest.raises(RecipeError, match=message):
        named_splits(name, videos)


def test_an_unknown_scheme_lists_the_known_and_other_rows_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'rqvqa'"):
        named_splits("rqvqb", plain(9))
    with pytest.raises(RecipeError, match="has 8 rows, and there are 9 videos"):
        named_splits("scene", plain(9), labels=a_label_file(8))


@given(st.permutations(range(12)))
def test_written_splits_are_read_back_by_id_in_any_order(tmp_path_factory, order):
    path = tmp_path_factory.getbasetemp() / "splits.json"
    videos = plain(12)
    shuffled = [videos[row] for row in order]
    splits = named_splits("minimalistic4", videos)
    write_splits(path, "minimalistic4", videos, splits)

    for one, other in zip(splits, named_splits(str(path), shuffled), strict=True):
        for side in ("train", "validation", "test"):
            assert ids(videos, getattr(one, side)) == ids(shuffled, getattr(other, side))


def test_splits_of_other_videos_or_of_another_format_are_refused(tmp_path):
    path = tmp_path / "splits.json"
    write_splits(path, "random", plain(9), named_splits("random2", plain(9)))
    content = json.loads(path.read_text())

    with pytest.raises(RecipeError, match=r"splits 9 videos, here are 8; .set/8\.mp4. and 0 more"):
        read_splits(path, plain(8))
    content["splits"][1]["test"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="split 1 does not hold every video once"):
        read_splits(path, plain(9))
    for text, message in (("[1]", "was not written by"), ("{", "splits.json:1: not JSON")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_splits(path, plain(9))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_splits(tmp_path / "none.json", plain(9))


def test_a_file_of_splits_that_are_called_by_scene_holds_no_others(tmp_path):
    path = tmp_path / "splits.json"
    videos = in_scenes("aabbcc")
    write_splits(path, "scene2", videos, named_splits("scene2", videos))
    assert len(named_splits(str(path), videos)) == 2
    with pytest.raises(RecipeError, match=r"scene2 of .*splits.json are by scene, and none"):
        named_splits(str(path), [replace(video, scene=None) for video in videos])
    write_splits(path, "scene2", videos, named_splits("random2", videos))
    with pytest.raises(RecipeError, match=r"is called scene2, .* has scene '[abc]' on both sides"):
        named_splits(str(path), videos)
    write_splits(path, "random2", videos, named_splits("random2", videos))
    assert len(named_splits(str(path), videos)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("videos"), "videos: field required"),
        (lambda c: c["splits"][0].pop("validation"), "splits.0.validation: field required"),
        (lambda c: c.update(splits=[]), "splits: list should have at least 1 item"),
        (lambda c: c["splits"][0].update(test=[]), "splits.0.test: list should have at least 1"),
        (lambda c: c["splits"][0].update(test=["1"]), "splits.0.test.0: input should be a valid"),
        (lambda c: c["splits"][0].update(test=[-1]), "splits.0.test.0: input should be greater"),
        (lambda c: c["videos"].__setitem__(1, "set/0.mp4"), "'set/0.mp4' stands there twice"),
    ],
)
def test_a_splits_file_that_was_changed_by_hand_is_refused(tmp_path, change, message):
    path = tmp_path / "splits.json"
    write_splits(path, "random2", plain(9), named_splits("random2", plain(9)))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

    with pytest.raises(RecipeError, match=message):
        read_splits(path, plain(9))
