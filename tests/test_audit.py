"""An audit finds what makes numbers too good, and finds nothing in what was published honestly."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from vqbank.pipelines.audit.audit import audit
from vqbank.pipelines.audit.sides import near_pairs, shared_scenes
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.sources import labelled_videos
from vqbank.pipelines.splits.schemes import named_splits
from vqbank.pipelines.splits.split import Split
from vqbank.regressors.pooling import pooled
from vqbank.store.bank import FeatureStore
from vqbank.store.column import Column
from vqbank.store.exchange.feats_mat import import_feats_mat
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable


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


# Steps, copies and scaling, on features with the structure of published ones.


def cache(shared_data, data_set="KONVID_1K", feature="VIDEVAL", labels=None):
    """Features [n, d] and scores [n] as published."""
    labels = shared_data / "data" / "labels" / (labels or f"{data_set}_metadata.csv")
    rows = labelled_videos(labels)
    path = shared_data / "data" / "features" / f"{data_set}_{feature}.mat"
    with TemporaryDirectory() as folder:
        store = FeatureStore.create(Path(folder) / "bank")
        import_feats_mat(path, store, name="cache", ids=[video.id for video in rows])
        table = store.table(rows, {"cache": "cache"}).in_memory(budget_bytes=2**30)
    return table, np.array([video.mos for video in rows])


def audited(videos, mos, splits, **features):
    """Findings by check and verdict, of features [n, d] by role."""
    table = FeatureTable.from_arrays(videos, {r: list(x[:, None]) for r, x in features.items()})
    made = Experiment("t", RatedVideos(table, mos), (), Protocol(splits=splits))
    return {(one.check, one.verdict): one for one in audit(made)}


def leaks(found):
    return sorted(check for check, verdict in found if verdict == "leak")


HONEST = [
    ("KONVID_1K", "VIDEVAL_feats", None),
    ("KONVID_1K", "BRISQUE_feats", None),
    ("LIVE_VQC", "VIDEVAL_feats", None),
    ("LIVE_VQC", "BRISQUE_feats", None),
    ("CVD2014", "ResNet-50_feature", "vsfa_CVD2014info.mat"),
]


@pytest.mark.parametrize("published", HONEST, ids=lambda one: f"{one[0]}-{one[1]}")
def test_an_honest_published_cache_raises_no_alarm(published, shared_data):
    table, mos = cache(shared_data, *published)
    splits = "random5" if published[2] is None else "kfold5"
    made = Experiment("t", RatedVideos(table, mos), (), Protocol(splits=splits))

    assert [one for one in audit(made) if one.verdict in ("leak", "note")] == []


@pytest.fixture(scope="module")
def konvid(shared_data):
    """1000 videos of KoNViD-1k: their features by VIDEVAL [1000, 60], and scores."""
    table, mos = cache(shared_data, "KONVID_1K", "VIDEVAL_feats")
    return pooled(table)[:1000, :60], mos[:1000], list(table.videos[:1000])


def test_a_feature_with_the_score_in_words_is_found(konvid):
    features, mos, rows = konvid
    for seed in range(3):
        rng = np.random.default_rng(seed)
        words = rng.normal(size=(5, 64))  # the embedding of bad, poor, fair, good, excellent
        level = np.digitize(mos, [1.8, 2.6, 3.4, 4.2])
        caption = words[level] + rng.normal(size=(1000, 64))  # and of what else the caption says
        found = audited(rows, mos, "random5", quality=features, caption=caption)

        assert leaks(found) == ["steps at a score"]
        step = found["steps at a score", "leak"]
        assert step.feature.startswith("memory.caption")
        assert min(abs(float(step.text.split("below ")[1].split()[0]) - np.array([2.6, 3.4]))) < 0.1
    assert leaks(audited(rows, mos, "random5", quality=features)) == []


def test_a_copy_of_the_scores_is_found_whatever_map_and_sign_it_has(konvid):
    features, mos, rows = konvid
    features = features.copy()
    features[:, 7] = -np.exp(mos) + 0.1
    found = audited(rows, mos, "random5", quality=features)

    assert "columns that copy the scores" in leaks(found)
    assert "column 7" in found["columns that copy the scores", "leak"].text


def test_scaling_by_the_test_part_is_found_and_by_the_training_part_is_not(konvid):
    features, mos, rows = konvid
    (split, *_) = named_splits("random5", rows)

    def by(scaled, own):
        low, high = features[own].min(axis=0), features[own].max(axis=0)
        return (features[scaled] - low) / np.where(high > low, high - low, 1)

    each = np.empty_like(features)
    for side in (split.train, split.test):
        each[side] = by(side, side)
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-12)

    check = "scaling by tested videos"
    assert leaks(audited(rows, mos, "random5", quality=each)) == [check]
    assert leaks(audited(rows, mos, "random5", quality=by(slice(None), slice(None)))) == [check]
    assert leaks(audited(rows, mos, "random5", quality=standard)) == [check]
    assert leaks(audited(rows, mos, "random5", quality=by(slice(None), split.train))) == []


def test_scaling_of_one_test_part_alone_is_found(konvid):
    features, mos, rows = konvid
    (split, *_) = named_splits("random5", rows)
    own = features[split.test]
    features = features.copy() * 3
    features[split.test] = (own - own.min(axis=0)) / np.maximum(np.ptp(own, axis=0), 1e-12)
    found = audited(rows, mos, "random5", quality=features)

    assert "over the test part of split 0" in found["scaling by tested videos", "leak"].text


def test_a_set_that_stands_there_again_under_other_names_is_found(konvid):
    features, mos, rows = konvid
    rng = np.random.default_rng(0)
    again = features[:200] + 0.02 * features.std(axis=0) * rng.normal(size=(200, 60))
    twice = [*rows[:800], *(replace(rows[n], id=f"other/{n:05}.mp4") for n in range(200))]
    of_both = np.concatenate([features[:800], again])
    scores = np.concatenate([mos[:800], mos[:200]])
    found = audited(twice, scores, "random5", quality=of_both)

    assert leaks(found) == ["near-duplicates on both sides"]
    assert found["near-duplicates on both sides", "leak"].number > 150
    assert all("other/" in line for line in found["near-duplicates on both sides", "leak"].look[:5])


def test_splits_of_kvq_by_video_are_found_with_what_a_lookup_comes_to(shared_data):
    rows = labelled_videos(shared_data / "data" / "labels" / "kvq_train.csv")
    mos = np.array([video.mos for video in rows])
    made = RatedVideos(FeatureTable(rows, {}), mos)
    by_video, by_scene = (
        next(audit(Experiment("t", made, (), Protocol(splits=splits))))
        for splits in ("random21", "scene21")
    )

    assert by_video.verdict == "leak"
    assert abs(by_video.number - 0.635) < 0.02  # as CAMP-VQA's 21 splits by video come to
    assert by_scene.verdict == "clear"


def test_what_needs_no_picture_stands_beside_the_head(tmp_path):
    rng = np.random.default_rng(0)
    heights = rng.choice([240, 480, 720, 1080], 200)
    lines = [f"v{n:03}.mp4,{h / 300 + rng.random()},{h}" for n, h in enumerate(heights.tolist())]
    labels = tmp_path / "set.csv"
    labels.write_text("\n".join(["name,mos,height", *lines]))
    savemat(tmp_path / "f.mat", {"feats_mat": rng.normal(size=(200, 12))})
    bank = ("--bank", tmp_path / "bank")
    run("import", "feats-mat", tmp_path / "f.mat", "--labels", labels, *bank, "--name", "x")
    code, told = run("audit", "--labels", labels, *bank, "--splits", "random5")

    assert code == 0
    (line,) = [line for line in told.splitlines() if "metadata alone" in line]
    assert line.startswith("note  metadata alone: height come")
    assert float(line.split("median SRCC of ")[1].split(";")[0]) > 0.8
    assert "; ridge on imported.x has" in line


def test_weights_that_saw_the_tested_set_and_sets_that_are_trained_on_are_found():
    rng = np.random.default_rng(0)
    rows = [Video(f"KoNViD-1k/{n}.mp4", Path("x")) for n in range(60)]
    series = list(rng.normal(size=(60, 1, 12)).astype(np.float32))
    mos = rng.normal(size=60)
    (column,) = FeatureTable.from_arrays(rows, {"x": series})._columns.values()
    spec = replace(column.spec, trained_on=("konvid_1k",), identity={"weights": "a" * 64})
    rated = RatedVideos(FeatureTable(rows, {"x": Column(spec, column.places)}), mos)
    other = [replace(video, id=f"other/{n}.mp4") for n, video in enumerate(rows[:20])]
    copied = FeatureTable.from_arrays(other, {"x": series[:20]})
    further = FurtherSet("copied", RatedVideos(copied, mos[:20]))
    made = Experiment("t", rated, (), Protocol(splits="all"), [further])
    found = {(one.check, one.verdict): one for one in audit(made)}

    assert leaks(found) == ["test set copied"]
    assert found["test set copied", "leak"].number == 20
    tested = replace(made, protocol=Protocol(splits="random5"), sets=())
    assert "KoNViD-1k (memory.x)" in next(
        one.text for one in audit(tested) if one.check == "weights that saw tested videos"
    )


def test_texts_that_name_a_level_for_every_video_are_found_and_shared_prompts_are_not():
    rng = np.random.default_rng(0)
    rows = videos([None] * 60)
    series = {"x": list(rng.normal(size=(60, 1, 12)).astype(np.float32))}
    (column,) = FeatureTable.from_arrays(rows, series)._columns.values()

    def found(prompts):
        spec = replace(column.spec, identity={"text": {"prompts": prompts}})
        table = FeatureTable(rows, {"x": Column(spec, column.places)})
        made = Experiment(
            "t", RatedVideos(table, rng.normal(size=60)), (), Protocol(splits="random3")
        )
        return next(one for one in audit(made) if one.check == "prompts that name quality")

    levels = ["bad", "poor", "fair", "good", "excellent"]
    shared = found([f"a video of {level} quality" for level in levels])
    assert (shared.verdict, shared.number) == ("clear", 5)
    told = found([f"video {n} is {levels[n % 5]}" for n in range(60)])
    assert (told.verdict, told.number) == ("leak", 60)
    assert "video 3 is good" in told.look
    assert found(["a goodbye", "fairground"]).number == 0


def test_the_command_exits_with_1_and_prints_json(tmp_path, shared_data):
    labels = shared_data / "data" / "labels" / "kvq_train.csv"
    code, told = run("audit", "--labels", labels, "--splits", "random3")
    assert code == 1
    assert told.startswith("LEAK  scenes on both sides: in 3 of 3 splits")
    code, told = run("audit", "--labels", labels, "--splits", "random3", "--json")
    assert code == 1
    assert [one["verdict"] for one in json.loads(told)].count("leak") == 1
    assert run("audit", "--labels", labels, "--splits", "scene3")[0] == 0


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output
