"""The page of records: what it shows is the record's, and nothing in it is more than text."""

import base64
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.over_time import over_time
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.report import known as known_module
from vqbank.pipelines.report.feature_map import agreement, likeness, map_of
from vqbank.pipelines.report.known import jpeg, known_of, moments
from vqbank.pipelines.report.page import Page, joined_pictures, packed, pictured, residual_bins
from vqbank.pipelines.report.tried import Drawn, against_best, best_of, tried_heads
from vqbank.pipelines.results.records import write_record
from vqbank.pipelines.results.statistics import shown
from vqbank.pipelines.runs.report import check_bokeh, write_report_page
from vqbank.regressors import make_head
from vqbank.regressors.card import marks_of
from vqbank.regressors.metrics import MosMapping
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, RecipeError, VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

COUNT = 40
HOSTILE = '</script><img src="http://x.test/a.png" onerror="alert(1)">$$x$$ @mos'


def banked(store, spec, rows_of, probe_of):
    writer = store.writer(spec, provenance={}, durable=False)
    for number in range(COUNT):
        values = rows_of(number)
        times = np.arange(len(values)) / 2
        feature = Feature(values, times, np.arange(len(values)))
        content = Fingerprint(number + 1, f"{number:064x}")
        writer.add(f"set/{number}.mp4", feature, fingerprint=content, probe=probe_of(number))
    writer.commit()
    store.refresh()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Forty videos: a feature that tells their score, small pictures, motion."""
    store = FeatureStore.create(tmp_path_factory.mktemp("page") / "bank")
    rng = np.random.default_rng(3)

    def probe(number):
        return {
            "frames": 20,
            "width": 1920 if number % 2 else 360,
            "height": 1080 if number % 2 else 640,
            "rate": 25.0 + 5 * (number % 2),
            "duration_seconds": 10.0,
        }

    def tells(number):
        return (number + rng.normal(0, 6, (4, 5))).astype(np.float32)

    def picture(number):
        square = np.zeros((1, 3, 96, 96), np.uint8)
        square[..., 21:75, :] = 40 + number
        return square

    banked(
        store, FeatureSpec("tells.feature", (5,), "float32", {"extractor": "tells"}), tells, probe
    )
    spec = FeatureSpec("thumbnail.pixels", (3, 96, 96), "uint8", {"extractor": "thumbnail"})
    banked(store, spec, picture, probe)
    spec = FeatureSpec("motion.series", (3,), "float32", {"extractor": "motion"})
    banked(store, spec, lambda n: np.full((20, 3), n, np.float32), probe)
    return store


@pytest.fixture(scope="module")
def videos():
    return [
        Video(f"set/{number}.mp4", Path(f"{number}.mp4"), mos=float(number), scene=f"{number % 10}")
        for number in range(COUNT)
    ]


def experiment_on(store, videos, *, title="trial", roles=("tells",), heads=("ridge", "svr")):
    features = {"tells": "tells.feature", "motion": "motion.series"}
    table = store.table(videos, {role: features[role] for role in roles})
    rated = RatedVideos(table, np.array([video.mos for video in videos]))
    cells = [Cell(name, make_head(name), table.roles) for name in heads]
    return Experiment(title, rated, cells, Protocol(count=6))


@pytest.fixture(scope="module")
def record(bank, videos):
    return evaluate(experiment_on(bank, videos))


class Elements(HTMLParser):
    """Start tags with their attributes, and the text inside of scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._script = [], {}, None
        self.text = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.tags.append((tag, own))
        if tag == "script":
            self._script = own.get("id", f"script {len(self.scripts)}")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] += data
        elif self.lasttag != "style":
            self.text.append(data)

    def named(self, *names):
        return [own for tag, own in self.tags if tag in names]


def elements_of(page):
    return Elements(page.html())


@pytest.fixture(scope="module")
def page(bank, videos, record):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    return elements_of(Page.of([record], bank=bank.path, videos=videos))


# --- what is shown


def test_numbers_of_the_page_are_those_of_the_record(page, record):
    text = " ".join(" ".join(page.text).split())
    for row in record.rows:
        for metric in ("srcc", "krcc", "plcc", "rmse"):
            own = row.statistics[metric]
            assert f"{shown(own.median)} ± {shown(own.std)}" in text
        assert row.interval("srcc") in text
    best = max(record.heads, key=lambda head: head.statistics["srcc"].median)
    assert f"{best.name} reaches a median SRCC of {shown(best.statistics['srcc'].median)}" in text
    for note in (*record.cautions, *record.method):
        assert note in text


def test_predictions_are_means_over_test_parts_and_mapped_by_the_splits_own_curves(record):
    for one in tried_heads([record], Drawn.of(record)):
        assert dict(zip(record.ids, one.predicted, strict=True)) == pytest.approx(
            {i: record.predictions_of(one.head).get(i, np.nan) for i in record.ids}, nan_ok=True
        )
        row = record.tests[0][0]
        own = [
            float(MosMapping(m.kind, tuple(m.parameters))(np.array([p[test.index(row)]]))[0])
            for test, p, m in zip(record.tests, one.head.predicted, one.head.mappings, strict=True)
            if row in test
        ]
        assert one.mapped[row] == pytest.approx(np.mean(own))
        grid, mapped = one.curve()
        assert np.nanmin(one.predicted) == grid[0]
        assert mapped[-1] > mapped[0]


def test_runs_on_other_features_stand_side_by_side_and_other_videos_only_in_tables(
    bank, videos, record
):
    motion = evaluate(experiment_on(bank, videos, title="motion", roles=("motion",)))
    fewer = evaluate(experiment_on(bank, videos[:30], title="fewer"))
    turned = evaluate(experiment_on(bank, videos[::-1], title="turned", heads=("ridge",)))

    tried = tried_heads([record, motion, fewer, turned], Drawn.of(record))
    labels = [one.label for one in tried]
    assert len(labels) == len(set(labels)) == 5
    assert labels[0].endswith("ridge on tells.feature")
    by_id = motion.predictions_of(motion.heads[0])
    own = next(one for one in tried if one.head is motion.heads[0])
    assert own.predicted[7] == by_id.get("set/7.mp4", pytest.approx(np.nan, nan_ok=True))
    again = next(one for one in tried if one.record is turned)
    expected = turned.predictions_of(turned.heads[0])
    known = [row for row, one in enumerate(record.ids) if one in expected]
    assert again.predicted[known] == pytest.approx([expected[record.ids[row]] for row in known])

    best = best_of(tried)
    assert best.srcc == max(one.srcc for one in tried if one.record is not turned)
    for other, compared in against_best(best, tried):
        assert other is not best
        assert compared.paired.median_gain <= 0


def test_random_weights_are_not_the_best(record):
    lucky = record.model_copy(update={"random_weights": True, "title": "lucky"})
    ours = record.model_copy(update={"heads": [record.head("svr")]})
    assert best_of(tried_heads([lucky, ours], Drawn.of(lucky))).record is ours


@pytest.mark.parametrize("splits", [Protocol(count=6), Protocol(splits="all")])
def test_a_test_set_can_be_drawn_and_is_where_nothing_else_is_tested(bank, videos, splits):
    own, further = experiment_on(bank, videos[::2]), experiment_on(bank, videos[1::2])
    sets = [FurtherSet("odd", further.rated)]
    found = evaluate(replace(own, protocol=splits, sets=sets))

    drawn = Drawn.of(found, "odd")
    tried = tried_heads([found], drawn)
    assert [one.label for one in tried] == ["ridge", "svr"]
    assert drawn.ids == [video.id for video in videos[1::2]]
    for one, head in zip(tried, found.heads, strict=True):
        assert one.predicted == pytest.approx(np.mean(head.sets[0].predicted, axis=0))
        assert one.srcc == head.sets[0].statistics["srcc"].median
    ((_, compared),) = against_best(best_of(tried), tried)
    assert "odd" in compared.other
    assert Drawn.of(found).name == ("" if found.tests_itself else "odd")
    with pytest.raises(RecipeError, match="odd"):
        Drawn.of(found, "even")
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    page = elements_of(Page.of([found], bank=bank.path, test="odd"))
    text = " ".join(" ".join(page.text).split())
    assert "on odd, over" in text
    for row in found.rows:
        assert row.label in text
    assert len(json.loads(page.scripts["data"])["picture_lengths"]) == 20


def test_a_record_without_predictions_is_refused(record):
    old = record.model_copy(update={"vqbank_results": 3})
    with pytest.raises(RecipeError, match="run `vqbank evaluate` again"):
        tried_heads([old], Drawn.of(old))
    with pytest.raises(RecipeError, match="--json"):
        Page.of([])


def test_ranges_of_residuals_hold_every_tested_video_once(record, videos):
    (one, *_) = tried_heads([record], Drawn.of(record))
    rates = np.array([25.0 + 5 * (number % 2) for number in range(COUNT)])
    mos, rate = residual_bins(one, Drawn.of(record), {"mos": np.array(record.mos), "rate": rates})
    tested = int(np.isfinite(one.mapped).sum())
    assert sum(line["videos"] for line in mos["ranges"]) == tested
    assert [line["range"] for line in rate["ranges"]] == ["25", "30"]
    residual = one.mapped - np.array(record.mos)
    assert rate["ranges"][1]["mean"] == pytest.approx(np.nanmean(residual[1::2]))


# --- what the bank knows


def test_size_rate_length_pictures_and_motion_come_from_the_bank(bank, record):
    known = known_of(record.ids, bank, ["tells.feature"])
    assert known.facts["lines"][:2].tolist() == [360, 1080]
    assert known.facts["rate"][:2].tolist() == [25, 30]
    assert set(known.facts["seconds"]) == {10.0}
    assert sorted(known.pictures) == sorted(known.motion) == list(range(COUNT))
    assert known.motion[5].tolist() == [5] * 10
    picture = Image.open(io.BytesIO(known.pictures[4]))
    assert picture.size == (96, 54)
    assert np.abs(np.asarray(picture).astype(int) - 44).max() <= 3


def test_a_black_picture_and_a_black_edge_stay_whole():
    black = np.zeros((3, 32, 32), np.uint8)
    assert Image.open(io.BytesIO(jpeg(black))).size == (32, 32)
    black[:, 8:20] = 200  # 8 rows above and 12 below: four of them are the picture's own
    assert Image.open(io.BytesIO(jpeg(black))).size == (32, 16)


@pytest.mark.parametrize(
    ("times", "values", "expected"),
    [
        ([0, 0.5, 1.0, 1.5], [2, 4, 6, 8], [3, 7]),
        ([7, 7.5, 9.0], [1, 3, 5], [2, 2, 5]),
        ([0.0], [3], [3]),
    ],
)
def test_a_time_line_has_the_mean_of_every_second(times, values, expected):
    found = moments(np.array(values, float), np.array(times, float))
    assert found.tolist() == expected


def test_a_long_video_has_no_more_moments_than_are_shown():
    found = moments(np.arange(1000.0), np.arange(1000.0))
    assert len(found) == known_module.MOST_MOMENTS
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("ids", "videos", "expected"),
    [
        (["a/1", "b/1"], [], ("data set", ["a", "b"])),
        (["a/1", "a/2"], [], ("", [])),
        (
            ["a/1", "a/2"],
            [("a/1", "train", "x"), ("a/2", "test", "x")],
            ("part", ["train", "test"]),
        ),
        (["a/1", "a/2"], [("a/1", None, "x"), ("a/2", None, "y")], ("scene", ["x", "y"])),
    ],
)
def test_videos_are_grouped_by_data_set_part_or_scene(ids, videos, expected):
    known = known_of(
        ids, None, (), videos=[Video(i, Path(i), part=part, scene=s) for i, part, s in videos]
    )
    assert (known.grouped_by, known.groups) == expected


def test_of_many_videos_the_worst_and_some_others_are_pictured(record, monkeypatch):
    (one, *_) = tried_heads([record], Drawn.of(record))
    assert pictured(one, Drawn.of(record)) is None
    for name, value in {"MANY_VIDEOS": 20, "WORST": 3, "AT_RANDOM": 4}.items():
        monkeypatch.setattr(f"vqbank.pipelines.report.page.{name}", value)
    rows = pictured(one, Drawn.of(record))
    residual = np.abs(one.mapped - np.array(record.mos))
    assert int(np.nanargmax(residual)) in rows
    assert 4 <= len(rows) <= 7


# --- the map


def table_of(rows):
    videos = [Video(f"a/{number}", Path(f"{number}")) for number in range(len(rows))]
    return FeatureTable.from_arrays(videos, {"one": [row[None] for row in rows]})


def test_the_map_has_the_principal_components_of_standardised_features():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(60, 1))
    rows = (hidden @ rng.normal(size=(1, 6)) + 0.01 * rng.normal(size=(60, 6))) * [
        1,
        10,
        1,
        1,
        1,
        9,
    ]
    places, text = map_of(table_of(rows))
    assert abs(np.corrcoef(places[:, 0], hidden[:, 0])[0, 1]) > 0.999
    assert "99%" in text or "100%" in text
    again, _ = map_of(table_of(rows))
    np.testing.assert_array_equal(places, again)


def test_videos_beside_the_drawn_ones_are_laid_between_them(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(50, 4))
    whole, _ = map_of(table_of(rows))
    monkeypatch.setattr("vqbank.pipelines.report.feature_map.SAMPLE", 40)
    drawn, _ = map_of(table_of(rows))
    assert drawn.shape == (50, 2)
    assert np.isfinite(drawn).all()
    assert abs(np.corrcoef(whole[:, 0], drawn[:, 0])[0, 1]) > 0.5


def test_tsne_keeps_clusters_together():
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(0, 0.1, (20, 5)), rng.normal(5, 0.1, (20, 5))])
    places, text = map_of(table_of(rows), kind="tsne")
    within = np.linalg.norm(places[:20] - places[:20].mean(0), axis=1).max()
    assert np.linalg.norm(places[:20].mean(0) - places[20:].mean(0)) > within
    assert "t-SNE" in text


@pytest.mark.parametrize(
    "rows", [np.ones((5, 3)), np.arange(2.0)[:, None], np.arange(9.0)[:, None]]
)
def test_a_map_of_what_does_not_differ_is_no_error(rows):
    places, _ = map_of(table_of(rows))
    assert places.shape == (len(rows), 2)
    assert np.isfinite(places).all()


def test_a_turned_feature_is_alike_and_another_is_not():
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(200, 3)), rng.normal(size=(200, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    videos = [Video(f"a/{number}", Path(f"{number}")) for number in range(200)]
    columns = {"one": one, "turned": 5 * one @ turn, "other": other}
    table = FeatureTable.from_arrays(
        videos, {name: [row[None] for row in values] for name, values in columns.items()}
    )
    _, alike = likeness(table)
    assert alike[0, 1] == pytest.approx(1, abs=1e-5)
    assert alike[0, 2] < 0.1


def test_heads_agree_over_the_videos_that_both_predict():
    one = np.array([1.0, 2, 3, 4, np.nan])
    other = np.array([10.0, 20, 30, np.nan, 0])
    assert agreement([one, other, -one]).tolist() == [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]


# --- the file


def test_the_page_asks_for_nothing(page):
    for tag, own in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert own.get(name, "data:").startswith("data:"), (tag, own)
    assert not page.named("iframe", "object", "embed", "base", "meta[http-equiv]")
    styles = Path(known_module.__file__).parents[1].joinpath("templates/page.css").read_text()
    assert "url(" not in styles
    assert "@import" not in styles


def test_everything_that_is_asked_for_has_a_name(page):
    """What a screen reader says; axe-core checks the same where there is a browser."""
    labelled = {own["for"] for own in page.named("label")}
    for own in page.named("select", "input"):
        assert own["id"] in labelled
    assert all(own.get("alt") for own in page.named("img"))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption")
    assert tags.count("h1") == 1
    ids = [own["id"] for _, own in page.tags if "id" in own]
    assert len(ids) == len(set(ids))
    for _, own in page.tags:
        assert set(own.get("aria-labelledby", "").split()) <= set(ids)
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_pictures_are_cut_out_of_one_text(page, bank, record):
    data = json.loads(page.scripts["data"])
    ends = np.cumsum([0, *data["picture_lengths"]])
    assert len(page.scripts["pictures"]) == ends[-1]
    own = base64.b64decode(page.scripts["pictures"][ends[6] : ends[7]])
    assert own == known_of(record.ids, bank, []).pictures[6]


@pytest.mark.parametrize(
    "values", [[1.0, 2.5, np.nan, -3.0], [7.0, 7.0], [np.nan], [], [1e-9, 2e-9, 0.0]]
)
def test_packed_numbers_are_those_within_a_step(values):
    found = packed(np.array(values, np.float64))
    steps = np.frombuffer(base64.b64decode(found["u16"]), "<u2")
    back = np.where(steps == 65535, np.nan, found["low"] + found["step"] * steps)
    spread = np.ptp(values) if len(values) and np.isfinite(values).all() else 10
    np.testing.assert_allclose(back, values, atol=spread / 65_000, rtol=0)


def test_pictures_that_are_not_there_have_no_length():
    assert joined_pictures({1: b"abc"}, 3) == ([0, 4, 0], "YWJj")


def test_what_others_wrote_is_text(bank, videos, record):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    ids = [f"set/{HOSTILE}" if row == 3 else name for row, name in enumerate(record.ids)]
    head = record.heads[0].model_copy(update={"name": HOSTILE})
    odd = record.model_copy(
        update={"title": HOSTILE, "score_name": HOSTILE, "ids": ids, "heads": [head]}
    )
    renamed = [Video(f"set/{HOSTILE}", Path("x"), scene=HOSTILE), *videos]
    page = elements_of(Page.of([odd], bank=bank.path, videos=renamed))
    sources = {own.get("src", "data:") for own in page.named("img")}
    assert all(source.startswith("data:") for source in sources)
    assert not any("onerror" in own for _, own in page.tags)
    data = json.loads(page.scripts["data"])
    assert data["heads"][0]["label"] == HOSTILE
    assert HOSTILE in data["groups"]["names"]


def test_a_page_without_a_bank_says_what_it_lacks(record):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    page = elements_of(Page.of([record]))
    text = " ".join(" ".join(page.text).split())
    assert "no bank is named" in text
    assert "No pictures" in text
    assert "No frame difference over time" in text


def test_a_bank_without_a_feature_of_the_record_still_gives_a_page(record, tmp_path, caplog):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    FeatureStore.create(tmp_path / "empty")
    write_record(record, tmp_path / "run.json")
    run = CliRunner().invoke(
        app,
        ["report", str(tmp_path / "run.json"), "-o", str(tmp_path / "page.html"), "--bank",
         str(tmp_path / "empty")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "no map of features" in caplog.text
    assert "has no features" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_command_writes_the_page_of_several_runs(bank, videos, record, tmp_path):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    motion = evaluate(experiment_on(bank, videos, title="motion", roles=("motion",)))
    for one in (record, motion):
        write_record(one, tmp_path / "runs.jsonl")
    output = tmp_path / "page.html"
    line = ["report", tmp_path / "runs.jsonl", "-o", output, "--bank", bank.path]
    run = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    text = output.read_text(encoding="utf-8")
    assert "ridge on motion.series" in text
    assert "What was tried, side by side" in text
    assert 1.3e6 < len(text) < 2.5e6


def test_evaluate_writes_the_page_of_its_own_run(bank, videos, tmp_path):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    lines = [f"{v.id},{v.path},{v.mos},{v.scene}" for v in videos]
    (tmp_path / "set.csv").write_text("\n".join(["id,path,mos,scene", *lines]))
    output = tmp_path / "page.html"
    line = ["evaluate", "--videos", tmp_path / "set.csv", "--bank", bank.path, "--head", "ridge",
            "--features", "tells.feature", "--jobs", 1, "--report", output]  # fmt: skip
    run = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    page = Elements(output.read_text(encoding="utf-8"))
    data = json.loads(page.scripts["data"])
    assert (data["grouped_by"], len(data["groups"]["names"])) == ("scene", 10)
    assert all(data["picture_lengths"])


def test_a_shipped_heads_seconds_stand_on_the_time_lines(bank, videos, record, tmp_path):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    own = experiment_on(bank, videos)
    head = own.cells[0].head.fit(own.rated.table, own.rated.mos)
    head.save(tmp_path / "head", {"trained_on": {"ids": marks_of(record.ids[:30])}})
    page = Page.of([record], bank=bank.path, head=tmp_path / "head")
    expected = over_time(head, own.rated.table)
    elements = elements_of(page)
    told = json.loads(elements.scripts["data"])["scores"]
    assert told["counts"] == [len(one.scores) for one in expected]
    assert told["worst"] == [one.worst for one in expected]
    steps = np.frombuffer(base64.b64decode(told["u16"]), "<u2")
    scores = np.concatenate([one.scores for one in expected])
    np.testing.assert_allclose(told["low"] + told["step"] * steps, scores, atol=1e-2)
    assert "trained on 30 of these 40 videos" in " ".join(elements.text)
    with pytest.raises(RecipeError, match="--bank"):
        Page.of([record], head=tmp_path / "head")


def test_a_manifest_that_is_not_there_is_refused(bank, record, tmp_path):
    pytest.importorskip("bokeh", reason="Bokeh is not installed: `make install`")
    with pytest.raises(ManifestError, match=r"gone\.csv"):
        write_report_page(
            [record], tmp_path / "p.html", bank=bank.path, videos=tmp_path / "gone.csv"
        )


def test_without_bokeh_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(VqbankError, match="pip install"):
        check_bokeh()


def test_a_parquet_file_has_what_the_page_shows(bank, videos, record, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_record(record, tmp_path / "run.json")
    output = tmp_path / "videos.parquet"
    line = ["export", bank.path, output, "--record", tmp_path / "run.json"]
    run = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    rows = parquet.read_table(output).to_pylist()
    assert [row["id"] for row in rows] == record.ids
    page = Page.of([record], bank=bank.path)
    for one in page.tried:
        predicted = [row[f"predicted: {one.label}"] for row in rows]
        known = [value is not None for value in predicted]
        assert known == np.isfinite(one.mapped).tolist()
        own = np.array([value for value in predicted if value is not None])
        np.testing.assert_array_equal(own, one.mapped[known])
    places, _ = map_of(page.table)
    assert [row["projection_x"] for row in rows] == places[:, 0].tolist()
    assert Image.open(io.BytesIO(rows[4]["picture"]["bytes"])).size == (96, 54)
    assert rows[1]["lines"] == 1080


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["v.parquet"], "--record RUN.json"),
        (["v.parquet", "--features", "tells.feature"], "name none"),
        (["v.h5", "--record", "run.json"], "are of a .parquet file"),
    ],
)
def test_what_a_table_of_videos_is_not_made_of_is_refused(bank, tmp_path, words, message):
    first, *others = words
    line = ["export", str(bank.path), str(tmp_path / first), *others]
    run = CliRunner().invoke(app, line)
    assert isinstance(run.exception, RecipeError)
    assert message in str(run.exception)


NODE = """
const texts = JSON.parse(process.argv[1]);
globalThis.window = globalThis;
globalThis.document = { getElementById: (id) => ({ textContent: texts[id] }) };
require(process.argv[2]);
const found = [0, 6].map((row) => window.vqbankPage.picture(row));
process.stdout.write(JSON.stringify(found));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js to run the page's script in")
def test_the_pages_script_cuts_out_the_same_pictures(page, bank, record):
    script = Path(known_module.__file__).parents[1] / "templates/page.js"
    data = json.loads(page.scripts["data"])
    data |= {"picture_lengths": [0, *data["picture_lengths"][1:]]}
    first = json.loads(page.scripts["data"])["picture_lengths"][0]
    texts = {"data": json.dumps(data), "pictures": page.scripts["pictures"][first:]}
    run = subprocess.run(
        ["node", "-e", NODE, json.dumps(texts), str(script)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    nothing, own = json.loads(run.stdout)
    picture = base64.b64encode(known_of(record.ids, bank, []).pictures[6]).decode()
    assert nothing == "data:,"
    assert own == f"data:image/jpeg;base64,{picture}"
