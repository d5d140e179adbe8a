"""Heads that are averaged, and the challenge's score of what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.ensemble import averaged
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.results.challenge import challenge_scores, read_pairs
from vqbank.pipelines.results.records import alone, read_records, to_json, write_record
from vqbank.regressors import make_head
from vqbank.regressors.metrics import quality_metrics, srcc
from vqbank.store.errors import RecipeError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

VIDEOS = [Video(f"kvq/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(60)]


@pytest.fixture(scope="module")
def content():
    """[60, 2, 4]: what two features hold of the scores, and the scores."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2, 4)).astype(np.float32)
    return values, values.sum(axis=(1, 2)) + rng.normal(size=60)


def run_on(content, feature, heads=("ridge",), count=3, seed=0, sets=()):
    """A record of heads on one of the two features."""
    values, mos = content
    table = FeatureTable.from_arrays(VIDEOS, {"quality": list(values[:, feature, None])})
    if feature:  # another key
        table = FeatureTable.from_arrays(VIDEOS, {"motion": list(values[:, feature, None])})
    cells = [Cell(name, make_head(name), table.roles) for name in heads]
    protocol = Protocol(count=count, seed=seed)
    rated = RatedVideos(table, mos)
    return evaluate(Experiment(f"run {feature}", rated, cells, protocol, list(sets)))


@pytest.fixture(scope="module")
def runs(content):
    return [run_on(content, feature) for feature in range(2)]


def test_an_ensemble_is_the_mean_of_what_its_members_say_split_by_split(runs, tmp_path):
    both = averaged(runs, "both")
    (head,) = both.heads
    mos = np.array(both.mos)
    for split, rows in enumerate(both.tests):
        mean = np.mean([run.heads[0].predicted[split] for run in runs], axis=0)
        np.testing.assert_allclose(head.predicted[split], mean, rtol=1e-12)
        assert head.per_split["srcc"][split] == srcc(mos[rows], mean)
        assert head.per_split["plcc"][split] == quality_metrics(mos[rows], mean).plcc
    assert both.features == {**runs[0].features, **runs[1].features}
    assert head.selection == ["the mean of ridge, ridge, each as it was chosen"] * 3
    best = max(run.heads[0].statistics["srcc"].median for run in runs)
    assert head.statistics["srcc"].median > best  # each has one half of what there is to know

    write_record(both, tmp_path / "both.json")
    (read,) = read_records(tmp_path / "both.json")
    assert to_json(read) == to_json(both)


def test_heads_of_one_record_are_averaged_too(content):
    record = run_on(content, 0, heads=("ridge", "svr"))
    (head,) = averaged([record], "both").heads
    expected = np.mean([own.predicted[1] for own in record.heads], axis=0)
    np.testing.assert_allclose(head.predicted[1], expected, rtol=1e-12)


def test_a_test_set_has_the_mean_of_members_and_then_of_splits(content):
    """Ten models of ten splits, averaged on one test part: how the challenge was won."""
    values, mos = content
    videos = [Video(f"val/{row}.mp4", Path(f"{row}.mp4")) for row in range(20)]

    runs = []
    for feature, role in enumerate(("quality", "motion")):
        own = values[:20, feature, None] + 0.1
        rated = RatedVideos(FeatureTable.from_arrays(videos, {role: list(own)}), mos[:20])
        runs.append(run_on(content, feature, sets=[FurtherSet("val", rated)]))
    both = averaged(runs, "both")
    (head,) = both.heads
    said = np.array([run.heads[0].sets[0].predicted for run in runs])  # [2, splits, 20]
    np.testing.assert_allclose(head.sets[0].predicted, said.mean(axis=0), rtol=1e-12)
    assert head.sets[0].per_split["srcc"][2] == srcc(mos[:20], said.mean(axis=0)[2])

    pairs = [("0.mp4", "1.mp4", 1), ("2.mp4", "3.mp4", 2)]
    found = challenge_scores(alone(both, "val"), pairs, pairs)["both"]
    mean = said.mean(axis=(0, 1))
    assert found["srcc"] == pytest.approx(srcc(mos[:20], mean))
    assert found["rank1"] == ((mean[0] >= mean[1]) + (mean[2] < mean[3])) / 2


def test_other_splits_scores_and_single_heads_are_refused(content, runs):
    with pytest.raises(RecipeError, match="have other splits, and cannot be one record"):
        averaged([runs[0], run_on(content, 1, seed=4)], "both")
    values, mos = content
    with pytest.raises(RecipeError, match="have other scores or videos"):
        averaged([runs[0], run_on((values, mos + 1), 1)], "both")
    with pytest.raises(RecipeError, match="one head alone, ridge, is no ensemble"):
        averaged(runs[:1], "both")


def pair_file(path, pairs, *, header="video1,video2,label\n"):
    path.write_text(header + "".join(f"{a},{b},{better}\n" for a, b, better in pairs))
    return path


@pytest.mark.parametrize("header", ["", "A,B,label\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_pairs_are_read_with_and_without_names_of_columns(tmp_path, header, delimiter):
    text = f"{header}1.mp4,2.mp4,2\n\n3.mp4, 4.mp4 ,1.0\n".replace(",", delimiter)
    (tmp_path / "pairs.csv").write_text(text)
    assert read_pairs(tmp_path / "pairs.csv") == [("1.mp4", "2.mp4", 2), ("3.mp4", "4.mp4", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.mp4,2.mp4,3\n1.mp4,2.mp4,0\n", r"pairs.csv:2: '1.mp4,2.mp4,0' is no pair"),
        ("1.mp4,2.mp4\n", r"pairs.csv:1: '1.mp4,2.mp4' is no pair"),
        ("a,b,label\n", "has no pairs"),
        ("", "has no pairs"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_pairs(tmp_path / "pairs.csv")


def test_the_score_is_that_of_the_challenge(runs):
    """Of a video that several splits test, by the mean of what they say; PLCC is raw."""
    (record, _), head = runs, runs[0].heads[0]
    predicted = record.predictions_of(head)
    names = [video.rpartition("/")[2] for video in predicted]
    truth = dict(zip(record.ids, record.mos, strict=True))
    x = np.array([predicted[video] for video in predicted])
    y = np.array([truth[video] for video in predicted])
    pairs = [(names[i], names[i + 1], 1 if y[i] > y[i + 1] else 2) for i in range(10)]
    right = np.mean([(x[i] >= x[i + 1]) == (y[i] > y[i + 1]) for i in range(10)])
    found = challenge_scores(record, pairs, pairs[:4])["ridge"]
    assert found["srcc"] == srcc(y, x)
    assert found["plcc"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert found["rank1"] == right
    assert found["score"] == pytest.approx(
        0.45 * (found["srcc"] + found["plcc"]) + 0.05 * (found["rank1"] + found["rank2"])
    )


def test_a_pair_of_videos_that_nobody_tested_is_named(runs):
    known = next(iter(runs[0].predictions_of(runs[0].heads[0])))
    with pytest.raises(RecipeError, match=r"pairs: 'x.mp4' is not among the tested videos"):
        challenge_scores(runs[0], [(known, "x.mp4", 1)], [(known, known, 1)])


def test_both_commands_work_on_files_of_records(runs, tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(2)]
    for file, record in zip(files, runs, strict=True):
        write_record(record, file)
    out = tmp_path / "both.json"
    run = CliRunner().invoke(app, ["ensemble", *map(str, files), "-o", str(out), "--name", "both"])
    assert run.exit_code == 0, run.output
    assert "both" in run.stdout
    tested = list(runs[0].predictions_of(runs[0].heads[0]))
    pairs = pair_file(
        tmp_path / "pairs.csv", [(tested[0], tested[1], 1), (tested[2], tested[3], 2)]
    )
    arguments = ["challenge", str(out), "--nonsource", str(pairs), "--source", str(pairs)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "Rank1: of 2 pairs of different contents" in " ".join(run.stdout.split())
    (found,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    expected = challenge_scores(averaged(runs, "both"), *[read_pairs(pairs)] * 2)["both"]
    assert found == {"title": "both", "head": "both", **expected}
