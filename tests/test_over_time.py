"""Scores over time, and what is told beside a score: places among training scores, errors."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vqbank
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.held_out import held_out_errors
from vqbank.pipelines.over_time import WINDOW_SECONDS, Moments, over_time, windows_of
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.results.records import write_record
from vqbank.pipelines.runs.evaluate import experiment_of
from vqbank.pipelines.standing import Standing
from vqbank.regressors import HEADS, load_head, make_head
from vqbank.store.bank import FeatureStore
from vqbank.store.column import ArrayRows, Column
from vqbank.store.errors import HeadError, RecipeError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

COUNT = 30


def column(spec_name, series, times, *, known=True):
    spec = FeatureSpec(spec_name, series[0].shape[1:], "float32", {"extractor": spec_name})
    rows = ArrayRows(
        np.concatenate(series),
        np.cumsum([0, *map(len, series)]),
        [np.asarray(own, float) for own in times],
        [np.arange(len(own)) for own in series],
        [known] * len(series),
    )
    return Column(spec, rows.located())


def table_of(**columns):
    (first, *_) = columns.values()
    videos = [
        Video(f"a/{n}", Path(f"{n}"), mos=float(n), scene=f"{n}") for n in range(len(first.places))
    ]
    return FeatureTable(videos, columns)


def falling(number, rng, rows=8):
    """A video whose quality falls in its second half, by as much as its number says."""
    level = np.where(np.arange(rows) < rows // 2, 50.0 + number, 50.0 - number)
    return (level[:, None] + rng.normal(0, 0.5, (rows, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    flat = [
        (n + rng.normal(0, 1, (8, 1)) + np.zeros((8, 3))).astype(np.float32) for n in range(COUNT)
    ]
    return table_of(quality=column("quality.feature", flat, [np.arange(8)] * COUNT))


# --- which rows a moment sees


def test_a_second_sees_its_own_rows_and_a_window_those_around_it():
    motion = column("m.series", [np.zeros((20, 1), np.float32)], [np.arange(20) / 5])
    one = table_of(motion=motion)
    starts, places, unit = windows_of(one, 0, 1)
    assert (starts.tolist(), unit) == ([0, 1, 2, 3], "second")
    assert [own["motion"].tolist() for own in places] == [
        list(range(5 * n, 5 * n + 5)) for n in range(4)
    ]
    _, wide, _ = windows_of(one, 0, 3)
    assert wide[0]["motion"].tolist() == list(range(10))
    assert wide[2]["motion"].tolist() == list(range(5, 20))


def test_a_role_without_a_row_in_a_second_shows_the_last_one_before():
    motion = column("m.series", [np.zeros((12, 1), np.float32)], [np.arange(12) / 2])
    clips = column("c.feature", [np.zeros((2, 1), np.float32)], [[0.7, 3.2]])
    _, places, _ = windows_of(table_of(motion=motion, clips=clips), 0, 1)
    assert [own["clips"].tolist() for own in places] == [[0], [0], [0], [1], [1], [1]]


def test_rows_without_times_are_moments_of_their_own():
    rows = column("i.feature", [np.zeros((4, 1), np.float32)], [np.arange(4)], known=False)
    starts, places, unit = windows_of(table_of(rows=rows), 0, 1)
    assert (starts.tolist(), unit) == ([0, 1, 2, 3], "row")
    assert [own["rows"].tolist() for own in places] == [[0], [1], [2], [3]]


def test_rows_without_times_beside_timed_ones_are_spread_over_the_video():
    timed = column("m.series", [np.zeros((8, 1), np.float32)], [np.arange(8)])
    rows = column("i.feature", [np.zeros((4, 1), np.float32)], [np.arange(4)], known=False)
    _, places, unit = windows_of(table_of(timed=timed, rows=rows), 0, 1)
    assert unit == "second"
    assert [own["rows"].tolist() for own in places] == [[n // 2] for n in range(8)]


# --- scores


@pytest.mark.parametrize("name", ["score", "ridge", "svr", "mlp", "gru"])
def test_a_bad_half_is_found(name, table):
    small = {"mlp": {"epochs": 60}, "gru": {"epochs": 60, "reduction": 8, "width": 8}}
    head = make_head(name, **small.get(name, {})).fit(
        table, np.array([video.mos for video in table.videos])
    )
    half = np.repeat([25.0, 5.0], [6, 6])[:, None] + np.zeros((12, 3))
    new = table_of(quality=column("quality.feature", [half.astype(np.float32)], [np.arange(12)]))
    (own,) = over_time(head, new)
    assert own.starts.tolist() == list(range(12))
    assert own.scores[:4].min() > own.scores[8:].max() + 5
    assert own.pooled == pytest.approx(head.predict(new)[0])
    assert all(place >= 5 for place in own.worst)


def test_a_video_that_is_the_same_all_over_scores_the_same_all_over(table):
    head = make_head("ridge").fit(table, np.array([video.mos for video in table.videos]))
    values = np.full((9, 3), 12, np.float32)
    new = table_of(quality=column("quality.feature", [values], [np.arange(9)]))
    (own,) = over_time(head, new)
    assert own.scores == pytest.approx([own.pooled] * 9)
    assert own.window == WINDOW_SECONDS


@pytest.mark.parametrize("pooling", ["mean", "min"])
def test_what_a_gru_says_of_rows_is_what_its_score_is_pooled_of(pooling, table):
    head = make_head("gru", epochs=4, reduction=8, width=8, runs=2, pooling=pooling).fit(
        table, np.array([video.mos for video in table.videos])
    )
    rows = head.row_scores(table)
    assert [len(own) for own in rows] == [8] * COUNT
    if pooling == "mean":
        pooled = [own.mean() for own in rows]
        assert pooled == pytest.approx(head.predict(table), abs=1e-4)
    assert np.ptp(rows[0]) > 0


def test_a_banked_scores_rows_are_the_values_on_the_scale_of_predictions(table):
    head = make_head("score", value=1).fit(table, np.array([v.mos for v in table.videos]))
    rows = head.row_scores(table)
    assert [own.mean() for own in rows] == pytest.approx(head.predict(table), abs=1e-5)


def test_a_mean_over_rows_is_the_mean_of_its_moments(table):
    head = make_head("mlp", epochs=5).fit(table, np.array([v.mos for v in table.videos]))
    for own in over_time(head, table)[:3]:
        assert own.scores.mean() == pytest.approx(own.pooled, abs=1e-3)
        assert own.window == 1


def test_worst_moments_are_no_neighbours():
    scores = np.array([5, 1, 1.5, 5, 5, 2, 5, 3.0, 5, 5])
    own = Moments(np.arange(10.0), scores, 3.0, "second", 1)
    assert own.worst == [1, 5, 7]
    assert Moments(np.arange(3.0), scores[:3], 3.0, "second", 1).worst == [1]
    assert Moments(np.arange(1.0), scores[:1], 3.0, "second", 1).worst == [0]


def test_heads_without_scores_of_rows_say_so(table):
    head = make_head("ridge").fit(table, np.array([v.mos for v in table.videos]))
    assert head.row_scores(table) is None
    assert "score" in HEADS


# --- what is told beside a score


def test_a_percentile_is_the_share_of_lower_training_scores():
    mos = np.arange(200.0)
    standing = Standing.of(
        {"trained_on": {"percentiles": np.quantile(mos, np.linspace(0, 1, 101)).tolist()}}
    )
    for score in (0.0, 50.0, 123.0, 199.0):
        assert standing.beside(score)["percentile"] == pytest.approx(
            100 * (mos < score).mean(), abs=0.6
        )
    assert standing.beside(-7.0) == {"percentile": 0}
    assert standing.beside(999.0) == {"percentile": 100}


def test_of_published_weights_and_old_heads_nothing_is_told():
    assert Standing.of({"trained_on": None}).beside(1.0) == {}
    assert Standing.of({"trained_on": {"lowest": 1, "highest": 2}}).beside(1.0) == {}


@pytest.mark.parametrize(
    "card",
    [
        {"trained_on": {"percentiles": [1.0]}},
        {"trained_on": {"percentiles": ["x"] * 101}},
        {"held_out": {"share": 0.9, "low": "nan", "high": 1, "errors": 3}},
        {"held_out": 3},
    ],
)
def test_a_damaged_card_is_refused(card):
    with pytest.raises(HeadError, match="damaged"):
        Standing.of(card)


# --- the whole way


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A bank of videos whose first half is good and whose second half is bad, and a recipe."""
    folder = tmp_path_factory.mktemp("time")
    rng = np.random.default_rng(1)
    store = FeatureStore.create(folder / "bank")
    spec = FeatureSpec("tells.feature", (3,), "float32", {"provenance": "unknown"})
    writer = store.writer(spec, provenance={}, durable=False)
    lines = ["id,path,mos,scene"]
    for number in range(COUNT):
        values = falling(number, rng)
        feature = Feature(values, np.arange(8.0), np.arange(8))
        content = Fingerprint(number + 1, f"{number:064x}")
        writer.add(f"set/{number}.mp4", feature, fingerprint=content, probe={})
        lines.append(f"set/{number}.mp4,{number}.mp4,{60 - number},{number}")
    writer.commit()
    (folder / "set.csv").write_text("\n".join(lines))
    return folder


def options(project, *heads):
    return {
        "bank": project / "bank",
        "videos": project / "set.csv",
        "features": {"tells": "tells.feature"},
        "heads": {name: {} for name in heads},
    }


@pytest.fixture(scope="module")
def record(project):
    return vqbank.evaluate(**options(project, "ridge", "svr"), splits="kfold5", jobs=1)


@pytest.fixture(scope="module")
def head(project, record):
    own = options(project)
    del own["heads"]
    write_record(record, project / "run.json")
    vqbank.train(**own, head="ridge", output=project / "head", record=project / "run.json")
    return project / "head"


def test_nine_of_ten_held_out_scores_lie_in_the_range(project, record, head):
    ridge = record.head("ridge")
    parts = zip(record.tests, ridge.predicted, strict=True)
    standing = Standing.of(load_card(head))
    inside = [
        standing.beside(score)["low"] <= record.mos[row] <= standing.beside(score)["high"]
        for test, predicted in parts
        for row, score in zip(test, predicted, strict=True)
    ]
    assert len(inside) == COUNT
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def load_card(folder):
    from vqbank.regressors.card import read_card

    return read_card(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"heads": {"ridge": {"folds": 3}}}, "no head with the parameters"),
        ({"heads": {"gaussian": {}}}, "no head with the parameters"),
    ],
)
def test_a_record_of_another_head_has_no_errors_of_this_one(project, record, change, why):
    recipe = Recipe(**options(project, "ridge") | change)
    with pytest.raises(RecipeError, match=why):
        held_out_errors([record], experiment_of(recipe, title="t"))


def test_a_record_of_a_head_that_started_elsewhere_has_no_errors_of_this_one(project, record):
    recipe = Recipe(**options(project, "mlp"))
    experiment = experiment_of(recipe, title="t")
    (cell,) = experiment.cells
    drawn = record.head("ridge").model_copy(
        update={"name": "mlp", "parameters": cell.head.get_params()}
    )
    known = record.model_copy(update={"heads": [drawn]})
    held_out_errors([known], experiment)

    cell.head.set_params(start="lsvq-head")
    with pytest.raises(RecipeError, match="no head with the parameters"):
        held_out_errors([known], experiment)


def test_a_record_of_other_scores_or_few_errors_is_refused(project, record):
    experiment = experiment_of(Recipe(**options(project, "ridge")), title="t")
    other = record.model_copy(update={"mos": [m + 1 for m in record.mos]})
    with pytest.raises(RecipeError, match="other videos or scores"):
        held_out_errors([other], experiment)
    few = record.model_copy(
        update={
            "tests": record.tests[:1],
            "heads": [h.model_copy(update={"predicted": h.predicted[:1]}) for h in record.heads],
        }
    )
    with pytest.raises(RecipeError, match="needs 20"):
        held_out_errors([few], experiment)


def test_the_command_scores_seconds_and_names_the_worst(project, head, tmp_path):
    line = ["predict", head, project / "set.csv", "--bank", project / "bank",
            "--over-time", tmp_path / "time", "-o", tmp_path / "scores.csv"]  # fmt: skip
    run = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    first = run.stdout.splitlines()[0].split("\t")
    assert first[3].startswith("above ")
    assert " to " in first[4]
    with (tmp_path / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == COUNT
    for row in scores:
        assert float(row["low"]) < float(row["high"])
        assert 0 <= float(row["percentile"]) <= 100
    document = json.loads((tmp_path / "time" / "moments.json").read_text())
    with (tmp_path / "time" / "moments.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == COUNT * 8
    for row, one in zip(scores, document["videos"], strict=True):
        assert one["score"] == pytest.approx(float(row["score"]), abs=1e-5)
        assert one["low"] == pytest.approx(float(row["low"]), abs=1e-5)
        assert len(one["moments"]) == 8
        picture = Image.open(tmp_path / "time" / one["picture"])
        assert picture.size[0] > 500
        assert np.asarray(picture.convert("L")).std() > 5
    assert "worst of set/" in run.stderr
    assert f"a window of {WINDOW_SECONDS}" in run.stderr


def test_python_gets_the_same_moments(project, head):
    predicted = vqbank.predict(head, project / "set.csv", bank=project / "bank", over_time=True)
    table = FeatureStore(project / "bank").table(predicted.videos, {"tells": "tells.feature"})
    expected = over_time(load_head(head), table)
    assert len(predicted.moments) == len(predicted.beside) == COUNT
    for own, other in zip(predicted.moments, expected, strict=True):
        np.testing.assert_array_equal(own.scores, other.scores)
    assert vqbank.predict(head, project / "set.csv", bank=project / "bank").moments == ()
