"""One training, many test sets: what is predicted, shown, kept, refused."""

import csv
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import vqbank
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments import fits
from vqbank.pipelines.paper import Paper
from vqbank.pipelines.recipe import Protocol, RatedFile, Recipe, read_recipe
from vqbank.pipelines.results.compare import compare
from vqbank.pipelines.results.published import published_table
from vqbank.pipelines.results.records import alone, joined, read_records, write_record
from vqbank.pipelines.results.report import write_report
from vqbank.pipelines.results.tables import (
    result_table,
    to_csv,
    to_latex,
    to_markdown,
    to_ntire,
)
from vqbank.pipelines.runs.asked import recipe_of
from vqbank.pipelines.sources import labelled_videos
from vqbank.regressors import make_head
from vqbank.regressors.card import seen_is_known
from vqbank.regressors.metrics import quality_metrics
from vqbank.regressors.ridge import Ridge
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import (
    HeadError,
    ManifestError,
    MissingFeatureError,
    RecipeError,
    UnknownNameError,
)
from vqbank.store.exchange.feats_mat import import_feats_mat
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

PARTS = ["train"] * 30 + ["test"] * 10 + ["test-1080p"] * 12
OTHER = 25
"""Videos of another data set, on a scale from 0 to 100."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bank, a manifest with parts as LSVQ has them, and other sets; `twin` shares a file."""
    folder = tmp_path_factory.mktemp("sets")
    store = FeatureStore.create(folder / "bank")
    rng = np.random.default_rng(0)
    writer = store.writer(FeatureSpec("a.f", (3,), "float32", {}), provenance={})
    names = [f"large/l{row}.mp4" for row in range(len(PARTS))]
    names += [f"other/o{row}.mp4" for row in range(OTHER)] + [
        f"twin/t{row}.mp4" for row in range(5)
    ]
    mos = {}
    for number, name in enumerate(names):
        values = rng.normal(size=(2, 3)).astype(np.float32)
        mos[name] = float(values[:, 0].mean() + 0.3 * rng.normal())
        content = 0 if name == "twin/t3.mp4" else number
        feature = Feature(values, np.arange(2.0), np.arange(2))
        writer.add(name, feature, fingerprint=Fingerprint(1, f"{content:064}"), probe={})
    writer.commit()

    def manifest(name, videos, *, scale=float, parts=None):
        lines = ["path,id,mos" + (",part" if parts else "")]
        for row, video in enumerate(videos):
            score = scale(mos[video]) if video in mos else 1.0
            part = f",{parts[row]}" if parts else ""
            lines.append(f"{Path(video).name},{video},{score}{part}")
        (folder / name).write_text("\n".join(lines) + "\n")

    def of(data_set):
        return [name for name in names if name.startswith(data_set)]

    manifest("large.csv", of("large"), parts=PARTS)
    manifest("other.csv", of("other"), scale=lambda score: 100 / (1 + np.exp(-2 * score)))
    manifest("twin.csv", of("twin"))
    manifest("seen.csv", of("other")[:4] + of("large")[28:32])
    manifest("lacking.csv", [*of("other")[:3], "other/none.mp4"])
    manifest("constant.csv", of("other")[:3], scale=lambda score: 2.0)
    (folder / "unscored.csv").write_text(
        "path,id,mos\no0.mp4,other/o0.mp4,\no1.mp4,other/o1.mp4,3\n"
    )
    (folder / "labels.txt").write_text(
        "name,mos,score\n" + "".join(f"other/o{row}.mp4,{row},{row % 5}\n" for row in range(9))
    )
    return folder


def asked(place, **changes):
    own = {
        "bank": place / "bank", "features": "a.f", "videos": place / "large.csv",
        "heads": ["ridge"], "splits": "official", "test": {"other": place / "other.csv"}, "jobs": 1,
    }  # fmt: skip
    return own | changes


@pytest.fixture(scope="module")
def record(place):
    """Two heads of one training, tested on its own part and on two sets."""
    return vqbank.evaluate(**asked(place, heads=["ridge", "svr"]))


def numbers(record):
    """All that another run of the same has to come to."""
    heads = [head.model_copy(update={"seconds": []}) for head in record.heads]
    return record.model_copy(update={"heads": heads}).model_dump_json()


def counted_fits(monkeypatch):
    done = []
    fit = Ridge._fit

    def counting(self, table, mos):
        done.append(len(table))
        return fit(self, table, mos)

    monkeypatch.setattr(Ridge, "_fit", counting)
    return done


def test_one_training_is_tested_on_every_set_by_the_scale_of_each(place, monkeypatch):
    done = counted_fits(monkeypatch)

    record = vqbank.evaluate(**asked(place))

    assert done == [30]
    assert [one.name for one in record.test_sets] == ["1080p", "other"]
    assert [row.plain_label for row in record.rows] == [
        "ridge, test part", "ridge, 1080p", "ridge, other",
    ]  # fmt: skip
    (head,) = record.heads
    videos = vqbank.read_videos(place / "large.csv")
    train, test, further = (
        [video for video in videos if video.part == part]
        for part in ("train", "test", "test-1080p")
    )
    table = FeatureStore(place / "bank").table
    features = {"a.f": "a.f"}
    alone = make_head("ridge").fit(table(train, features), np.array([v.mos for v in train]))
    sets = [test, further, vqbank.read_videos(place / "other.csv")]
    for scores, tested in zip([head, *head.sets], sets, strict=True):
        predicted = alone.predict(table(tested, features))
        np.testing.assert_array_equal(scores.predicted[0], predicted)
        expected = quality_metrics(np.array([v.mos for v in tested]), predicted)
        for metric in ("srcc", "krcc", "plcc", "rmse"):
            assert scores.per_split[metric] == [getattr(expected, metric)]
    # The unit of a set's RMSE is its own: of 0 to 100, where predictions are about 0.
    assert head.sets[1].statistics["rmse"].median > 5 > head.sets[0].statistics["rmse"].median
    assert head.sets[1].statistics["srcc"].median > 0.8


def test_a_set_is_predicted_by_the_head_of_every_split(place, tmp_path):
    record = vqbank.evaluate(**asked(place, videos=place / "other.csv", splits="random7",
                                     test=str(place / "twin.csv")))  # fmt: skip
    (scores,) = record.heads[0].sets

    assert record.test_sets[0].name == "twin"
    assert len({tuple(predicted) for predicted in scores.predicted}) == 7
    assert scores.statistics["plcc"].mean == pytest.approx(np.mean(scores.per_split["plcc"]))
    own, of_set = record.rows
    assert np.isfinite(own.confidence("srcc")).all()
    assert of_set.interval("srcc") == "-"  # the same videos seven times
    assert "no interval" in " ".join(record.method)


def test_further_parts_are_tested_apart_only_where_parts_are_the_protocol(place):
    record = vqbank.evaluate(**asked(place, splits="random2", test=None))

    assert record.videos == len(PARTS)
    assert record.test_sets == []


def test_a_part_of_a_file_is_a_set_and_a_label_file_says_its_column(place):
    test = {
        "a": {"file": place / "large.csv", "part": "test"},
        "b": RatedFile(file=place / "labels.txt", score="score", score_name="pseudo-score"),
    }
    record = vqbank.evaluate(**asked(place, videos=place / "other.csv", splits="random2", test=test,
                                     overlap="mark"))  # fmt: skip

    assert [len(one.ids) for one in record.test_sets] == [10, 9]
    assert record.test_sets[1].mos == [float(row % 5) for row in range(9)]
    assert record.test_sets[1].score_name == "pseudo-score"
    assert "labels.txt" in record.test_sets[1].labels


def shown_in_terminal(record):
    text = io.StringIO()
    Console(file=text, width=300).print(result_table(record))
    return text.getvalue()


def test_every_output_has_a_line_for_every_set_with_the_numbers_of_the_record(record, tmp_path):
    labels = [f"{head}, {part}" for head in ("ridge", "svr")
              for part in ("test part", "1080p", "other")]  # fmt: skip
    sets = [scores for head in record.heads for scores in (head, *head.sets)]
    write_record(record, tmp_path / "run.json")
    (again,) = read_records(tmp_path / "run.json")
    assert again.model_dump_json() == record.model_dump_json()

    by_command = CliRunner().invoke(app, ["results", str(tmp_path / "run.json")]).output
    texts = [
        shown_in_terminal(record), to_markdown([record]), to_latex([record]), by_command,
        record._repr_html_(), write_report(record, tmp_path / "out").read_text(),
    ]  # fmt: skip
    for label, scores in zip(labels, sets, strict=True):
        for text in texts:
            lines = text.split("<tr>" if "<tr>" in text else "\n")
            rmse = f"{scores.statistics['rmse'].median:.4f}"
            line, *_ = [line for line in lines if label in line and rmse in line]
            assert f"{scores.statistics['srcc'].median:.4f}" in line
    rows = list(csv.DictReader(io.StringIO(to_csv([record]))))
    assert [row["test_set"] for row in rows] == ["", "1080p", "other"] * 2
    assert [row["videos"] for row in rows] == ["40", "12", "25"] * 2
    assert [float(row["plcc_median"]) for row in rows] == [
        pytest.approx(scores.statistics["plcc"].median, abs=1e-6) for scores in sets
    ]
    with (tmp_path / "out" / "predictions.csv").open() as file:
        predicted = [row for row in csv.DictReader(file) if row["test_set"] == "other"]
    assert len(predicted) == 2 * OTHER
    assert predicted[0]["id"] == "other/o0.mp4"
    for text in (*texts[:4], texts[5], repr(record)):
        assert "other" in text
    assert "Test sets, of which nothing was fitted or chosen: 1080p (12 videos)" in texts[1]


def test_heads_compete_on_each_set_alone(record):
    lines = [line for line in to_markdown([record]).splitlines() if line.startswith("| a.f")]

    assert len(lines) == 6
    for place_of_set in range(3):
        assert sum("**" in lines[place_of_set + 3 * head] for head in range(2)) >= 1
    # On a set with other scores under the same name they do not.
    sets = [one.model_copy(update={"mos_sha256": one.name}) for one in record.test_sets]
    alone = record.model_copy(update={"test_sets": sets, "heads": record.heads[:1]})
    other = record.model_copy(update={"heads": record.heads[1:]})
    rows = [row for row in to_markdown([other, alone]).splitlines() if row.startswith("| a.f")]
    assert ["**" in row for row in rows if "test part" not in row] == [False] * 4


def test_runs_are_compared_on_each_set_that_they_share(place, tmp_path):
    record = vqbank.evaluate(**asked(place, videos=place / "other.csv", splits="random7",
                                     heads=["ridge", "svr"], test=place / "twin.csv"))  # fmt: skip
    own, on_set = compare([record])

    assert (own.other, on_set.other) == ("svr on a.f", "svr on a.f, twin")
    one, two = (np.array(head.sets[0].per_split["srcc"]) for head in record.heads)
    assert on_set.paired.median_gain == pytest.approx(np.median(two - one))
    assert on_set.better_in == f"{(two > one).sum()} of 7"
    assert on_set.p_values == ("-", "-")  # seven times the same videos
    assert own.p_values != ("-", "-")
    write_record(record, tmp_path / "run.json")
    said = CliRunner().invoke(app, ["compare", str(tmp_path / "run.json")], env={"COLUMNS": "200"})
    assert "svr on a.f, twin" in said.output


def test_runs_of_one_split_are_compared_without_tests(record):
    found = compare([record])

    assert [one.other for one in found] == [
        "svr on a.f", "svr on a.f, 1080p", "svr on a.f, other",
    ]  # fmt: skip
    ridge, svr = record.heads
    assert found[0].paired.median_gain == svr.per_split["srcc"][0] - ridge.per_split["srcc"][0]
    assert {one.p_values for one in found} == {("-", "-")}


def test_a_set_can_be_seen_as_what_every_split_tests(place, tmp_path):
    record = vqbank.evaluate(**asked(place, videos=place / "other.csv", splits="random7",
                                     test=place / "twin.csv"))  # fmt: skip
    own, twin = alone(record), alone(record, "twin")

    assert (own.ids, own.test_sets) == (record.ids, [])
    write_record(twin, tmp_path / "twin.json")
    (again,) = read_records(tmp_path / "twin.json")  # which looks at all that is in it
    assert again.predictions_of(again.heads[0]).keys() == set(record.test_sets[0].ids)
    (row,) = twin.rows
    assert row.number("srcc") == record.rows[1].number("srcc")
    assert row.interval("srcc") == "-"
    with pytest.raises(RecipeError, match=r"unknown test set of 'vqbank' 'twn'.*twin"):
        alone(record, "twn")


def test_published_numbers_stand_beside_those_of_every_set(record):
    paper = Paper(
        name="A", shows="table 1", data=["1080p", "other"], metrics=["srcc"],
        rows={"ridge": [0.5, 0.25]},
    )  # fmt: skip
    text = io.StringIO()
    Console(file=text, width=300).print(published_table(record, paper))

    (line,) = [line for line in text.getvalue().splitlines() if "0.2500" in line]
    wanted = ["0.5000", "0.2500"]
    wanted += [f"{row.number('srcc'):.4f}" for row in record.rows if row.head.name == "ridge"]
    assert line.replace("│", "").split() == ["ridge", *wanted]
    for column in ("other SRCC", "here SRCC", "1080p here SRCC", "other here SRCC"):
        assert column in text.getvalue()


def test_all_videos_are_trained_on_where_sets_alone_are_tested(place, monkeypatch, tmp_path):
    done = counted_fits(monkeypatch)
    record = vqbank.evaluate(**asked(place, splits="all", heads=["ridge", "svr"]))

    assert done == [len(PARTS)]
    assert [row.plain_label for row in record.rows] == ["ridge, other", "svr, other"]
    assert record.cautions == []
    assert "ridge, test part" not in shown_in_terminal(record)
    (only,) = compare([record])
    assert only.other == "svr on a.f, other"
    with pytest.raises(RecipeError, match="splits all test nothing"):
        to_ntire([record.model_copy(update={"heads": record.heads[:1]})])
    page = write_report(record, tmp_path).read_text()
    assert "svr, other" in page
    write_record(record, tmp_path / "run.json")
    assert numbers(*read_records(tmp_path / "run.json")) == numbers(record)
    with pytest.raises(RecipeError, match=r"train on all videos, and nothing is tested; name a te"):
        vqbank.evaluate(**asked(place, splits="all", test=None))


REFUSED = [
    ({"unscored": "unscored.csv"}, ManifestError, "test set unscored: 1 of 2 videos have no mos"),
    ({"s": "seen.csv"}, RecipeError, r"test set s: 2 of its 8 .* trained on.*: large/l28.mp4, "),
    ({"t": "twin.csv"}, RecipeError, r"test set t: 1 of its 5 .* the same file.*: twin/t3.mp4; "),
    ({"l": "lacking.csv"}, MissingFeatureError, r"test set l: 1 of 4 .* no a.f.*: other/none.mp4"),
    ({"c": "constant.csv"}, RecipeError, r"test set c: it has 3 videos of one score, 2, and needs"),
    ({"1080p": "other.csv"}, RecipeError, r"test sets share a name: 1080p, 1080p; rename one"),
    ({"none": "none.csv"}, ManifestError, "none.csv cannot be read"),
    (
        {"p": {"file": "large.csv", "part": "tets"}}, RecipeError,
        r"test set p: .*large.csv has no video of part 'tets'; its parts are train, test, tes",
    ),
    (
        {"m": {"file": "other.csv", "score": "mos"}}, RecipeError,
        "test set m: score 'mos' is a column of a label file",
    ),
    (
        {"b": "labels.txt"}, ManifestError,
        "test set b: .* 'mos' and 'score' may be the score",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("test", "error", "message"), REFUSED)
def test_a_set_that_cannot_be_tested_is_refused_by_name_before_any_fit(
    place, test, error, message, monkeypatch
):
    monkeypatch.setattr(fits.Fits, "on_splits", None)
    files = {
        name: {**one, "file": place / one["file"]} if isinstance(one, dict) else place / one
        for name, one in test.items()
    }
    with pytest.raises(error, match=message):
        vqbank.evaluate(**asked(place, test=files))


def test_videos_that_are_trained_on_are_marked_where_they_are_allowed(place):
    sets = {"seen": place / "seen.csv", "twin": place / "twin.csv", "other": place / "other.csv"}
    record = vqbank.evaluate(**asked(place, test=sets, overlap="mark"))

    trained = {one.name: [one.ids[row] for row in one.trained_on] for one in record.test_sets}
    assert trained == {
        "1080p": [],
        "seen": ["large/l28.mp4", "large/l29.mp4"],
        "twin": ["twin/t3.mp4"],
        "other": [],
    }
    assert [row.label for row in record.rows][1:] == [
        "ridge, 1080p", "ridge, seen †", "ridge, twin †", "ridge, other",
    ]  # fmt: skip
    said = "† seen: 2 of 8 videos are in a training part"
    for text in (shown_in_terminal(record), to_markdown([record]), record._repr_html_()):
        assert said in text
    assert "ridge, seen \\textdagger{}" in to_latex([record])


def test_versions_of_a_scene_that_is_trained_on_are_seen_and_scenes_of_other_sets_are_not(
    place, tmp_path
):
    """The further test part has the scene of a training video; the other set has a scene 1."""
    for name, scenes in (
        ("large", {3: "1", 31: "2", 41: "1", 45: "2"}), ("other", {0: "1"}),
    ):  # fmt: skip
        header, *lines = (place / f"{name}.csv").read_text().splitlines()
        with_scenes = [f"{line},{scenes.get(row, '')}" for row, line in enumerate(lines)]
        text = "\n".join([f"{header},scene", *with_scenes])
        (tmp_path / f"{name}.csv").write_text(text + "\n")
    own = asked(place, videos=tmp_path / "large.csv", test=tmp_path / "other.csv")

    with pytest.raises(RecipeError, match=r"test set 1080p: 1 of its 12 .* scene: large/l41.mp4; "):
        vqbank.evaluate(**own)
    record = vqbank.evaluate(**own, overlap="mark")
    assert [one.trained_on for one in record.test_sets] == [[1], []]


def test_a_set_that_weights_have_seen_is_marked_and_others_are_not(record):
    sets = [record.test_sets[0], record.test_sets[1].model_copy(
        update={"seen_by_weights": ["other (a.f)"]})]  # fmt: skip
    changed = record.model_copy(update={"test_sets": sets})

    assert [row.label for row in changed.rows[:3]] == [
        "ridge, test part", "ridge, 1080p", "ridge, other *",
    ]  # fmt: skip
    assert any("trained on other (a.f)" in line for line in changed.cautions)


def test_videos_of_a_set_that_lack_a_feature_are_dropped_and_counted(place):
    test = {"lacking": place / "lacking.csv"}
    record = vqbank.evaluate(**asked(place, test=test, missing="drop"))

    assert record.test_sets[1].dropped == 1
    assert "lacking: 1 of 4 videos lack a feature and are left out." in record.cautions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=x.csv", "a=y.csv"], "two test sets have the name 'a'; give --test NAME=FILE"),
        ({"a": {"file": "x.csv", "colour": 1}}, "test.a.colour: extra inputs are not permitted"),
        ({"a": {}}, "test.a.file: field required"),
        (3, "test cannot be 3; it is a file, several, or files by name"),
        ("a=", r"--test 'a=' names no file; it is of the form \[NAME=\]FILE"),
    ],
)
def test_what_names_no_set_is_refused(place, given, message):
    with pytest.raises(RecipeError, match=message):
        vqbank.evaluate(**asked(place, test=given))


def test_overlap_is_stop_or_mark(place):
    with pytest.raises(UnknownNameError, match=r"unknown --overlap 'drop'. Known: mark, stop"):
        vqbank.evaluate(**asked(place, overlap="drop"))


def test_a_recipe_names_sets_and_the_command_line_replaces_them(place, tmp_path):
    (place / "r.yaml").write_text(
        "videos: large.csv\nbank: bank\nfeatures: {a: a.f}\nheads: {ridge: }\n"
        "protocol: {splits: official, statistic: mean}\n"
        "test:\n  other: other.csv\n  pseudo: {file: labels.txt, score: score}\n"
    )
    recipe = read_recipe(place / "r.yaml")
    assert recipe.test["other"].file == place / "other.csv"

    run = [str(place / "r.yaml"), "--jobs=1", f"--json={tmp_path / 'run.json'}"]
    assert CliRunner().invoke(app, ["evaluate", *run]).exit_code == 0
    sets = ["--test", str(place / "other.csv"), f"--test=again={place / 'other.csv'}"]
    done = CliRunner().invoke(app, ["evaluate", *run, *sets, "--splits=random3"])
    assert done.exit_code == 0, done.output

    (record,) = read_records(tmp_path / "run.json")
    assert [one.name for one in record.test_sets] == ["other", "again"]
    assert record.heads[0].sets[0] == record.heads[0].sets[1]
    assert record.statistic == "mean"  # of any splits
    bad = (place / "r.yaml").read_text().replace("score: score", "scor: mos")
    (place / "bad.yaml").write_text(bad)
    with pytest.raises(RecipeError, match=r"test.pseudo: unknown key 'scor'. Did you mean 'score'"):
        read_recipe(place / "bad.yaml")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("[other.csv]", "test: files by name are wanted, such as `LIVE-VQC: live-vqc.csv`"),
        ("{other: 5}", r"test.other: a file is wanted, or its keys \(`file`, `score`"),
        ("{'': other.csv}", "at least 1 character"),
    ],
)
def test_a_recipe_whose_sets_have_no_names_or_files_is_refused(test, message, tmp_path):
    (tmp_path / "r.yaml").write_text(f"test: {test}\n")

    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_training_a_head_to_ship_takes_every_row_and_no_set(place, tmp_path, monkeypatch):
    (place / "t.yaml").write_text(
        "videos: large.csv\nbank: bank\nfeatures: {a: a.f}\nheads: {ridge: }\n"
        "protocol: {splits: official}\ntest: {gone: gone.csv}\n"
    )
    done = counted_fits(monkeypatch)
    vqbank.train(place / "t.yaml", output=tmp_path / "head")

    assert done == [len(PARTS)]


# --- what is kept


@pytest.mark.parametrize("head", ["ridge", "mlp"])
def test_a_set_that_is_named_later_is_tested_by_the_heads_that_were_kept(
    place, tmp_path, head, monkeypatch, caplog
):
    heads = {head: {"epochs": 2} if head == "mlp" else {}}
    own = asked(place, videos=place / "other.csv", splits="random3", heads=heads, test=None)
    first, second = {"twin": place / "twin.csv"}, {"l": place / "large.csv"}
    vqbank.evaluate(**own | {"test": first}, keep=tmp_path)
    whole = vqbank.evaluate(**own | {"test": first | second})

    kind = type(make_head(head))
    monkeypatch.setattr(kind, "fit_many", None)  # nothing is fitted
    caplog.set_level(logging.INFO, logger="vqbank")
    later = vqbank.evaluate(**own | {"test": first | second}, keep=tmp_path)

    assert numbers(later) == numbers(whole)
    assert f"{head}: its kept heads are tested on l, and not trained again" in caplog.text
    fewer = vqbank.evaluate(**own | {"test": {"another name": place / "large.csv"}}, keep=tmp_path)
    assert repr(fewer.heads[0].sets) == repr([whole.heads[0].sets[1]])
    assert [one.name for one in fewer.test_sets] == ["another name"]
    assert numbers(vqbank.evaluate(**own, keep=tmp_path)) == numbers(
        whole.model_copy(
            update={
                "test_sets": [],
                "heads": [whole.heads[0].model_copy(update={"sets": []})],
            }
        )
    )


def test_other_scores_or_files_of_a_set_are_another_set(place, tmp_path, monkeypatch):
    own = asked(place, videos=place / "other.csv", splits="random2", test=place / "twin.csv")
    before = vqbank.evaluate(**own, keep=tmp_path)
    text = (place / "twin.csv").read_text().splitlines()
    text[1] = text[1].rpartition(",")[0] + ",3.5"
    (tmp_path / "twin.csv").write_text("\n".join(text) + "\n")
    monkeypatch.setattr(Ridge, "fit_many", None)

    after = vqbank.evaluate(**own | {"test": tmp_path / "twin.csv"}, keep=tmp_path)

    assert after.test_sets[0].mos[0] == 3.5
    assert after.heads[0].sets[0].predicted == before.heads[0].sets[0].predicted
    assert after.heads[0].sets[0].per_split != before.heads[0].sets[0].per_split


def test_a_cell_without_kept_heads_is_trained_again_and_says_so(
    place, tmp_path, monkeypatch, caplog
):
    own = asked(place, videos=place / "other.csv", splits="random3", test=None)
    vqbank.evaluate(**own, keep=tmp_path)
    done = counted_fits(monkeypatch)

    record = vqbank.evaluate(**own | {"test": place / "twin.csv"}, keep=tmp_path)

    assert len(done) == 3
    assert "ridge is trained again to be tested on twin: its heads were not kept" in caplog.text
    done.clear()
    assert numbers(vqbank.evaluate(**own | {"test": place / "twin.csv"}, keep=tmp_path)) == numbers(
        record
    )
    assert done == []


def test_splits_that_were_fitted_before_a_kill_are_not_fitted_again(place, tmp_path, monkeypatch):
    own = asked(place, videos=place / "other.csv", splits="random3", test=place / "twin.csv")
    whole = vqbank.evaluate(**own)
    vqbank.evaluate(**own, keep=tmp_path)
    (kept,) = tmp_path.glob("*.json")
    kept.unlink()  # as if it had been killed in the last split
    (tmp_path / kept.stem / "00002" / "card.yaml").unlink()
    done = counted_fits(monkeypatch)

    again = vqbank.evaluate(**own, keep=tmp_path)

    assert len(done) == 1
    assert numbers(again) == numbers(whole)


def test_a_kept_head_that_is_damaged_is_refused(place, tmp_path):
    own = asked(place, videos=place / "other.csv", splits="random2", test=place / "twin.csv")
    vqbank.evaluate(**own, keep=tmp_path)
    (kept,) = tmp_path.glob("*.json")
    kept.unlink()
    (model,) = (tmp_path / kept.stem / "00001").glob("model-*")
    model.write_bytes(model.read_bytes()[:-1] + b"x")

    with pytest.raises(HeadError, match=model.name):
        vqbank.evaluate(**own, keep=tmp_path)


def test_a_record_of_one_training_keeps_its_head_for_sets_to_come(place, tmp_path, monkeypatch):
    vqbank.evaluate(**asked(place, videos=place / "large.csv", test=None), keep=tmp_path)
    monkeypatch.setattr(Ridge, "fit_many", None)

    record = vqbank.evaluate(**asked(place), keep=tmp_path)

    assert [one.name for one in record.test_sets] == ["1080p", "other"]


def test_processes_change_nothing_of_sets(place, monkeypatch):
    own = asked(place, videos=place / "other.csv", splits="random3", test=place / "twin.csv")
    alone = vqbank.evaluate(**own)
    monkeypatch.setattr(fits, "WORTH_WORKERS_SECONDS", 0.0)

    assert numbers(vqbank.evaluate(**own | {"jobs": 2})) == numbers(alone)


def test_a_start_that_was_trained_on_a_set_is_refused(place, tmp_path):
    gru = {"gru": {"epochs": 1}}
    vqbank.train(bank=place / "bank", features="a.f", videos=place / "twin.csv", head="ridge",
                 output=tmp_path / "r")  # fmt: skip
    vqbank.train(bank=place / "bank", features="a.f", videos=place / "other.csv", head=gru,
                 output=tmp_path / "start")  # fmt: skip
    heads = {"gru": {"epochs": 1, "start": str(tmp_path / "start")}}

    with pytest.raises(
        RecipeError,
        match=rf"gru starts from .* trained on {OTHER} of the {OTHER} .* in test set other: other/",
    ):
        vqbank.evaluate(**asked(place, heads=heads))


def test_a_start_that_does_not_say_what_it_was_trained_on_is_told_of_in_every_table(
    place, tmp_path
):
    """As cards of published weights, which name no videos."""
    gru = {"gru": {"epochs": 1}}
    known = vqbank.train(bank=place / "bank", features="a.f", videos=place / "other.csv", head=gru,
                         output=tmp_path / "known")  # fmt: skip
    known.save(tmp_path / "unknown", {"trained_on": None})
    further = known.set_params(start=str(tmp_path / "unknown"))

    assert seen_is_known(tmp_path / "known")
    assert not further.knows_what_was_seen()
    record = vqbank.evaluate(**asked(place, heads={"gru": {"epochs": 1, "start": further.start}}))
    said = "gru starts from a head of which nobody knows what it was trained on"
    assert any(line.startswith(said) for line in record.cautions)
    (own,) = [line for line in record.cautions_of(record.rows[0]) if line.startswith(said)]
    assert own


# --- records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["heads"][0]["sets"].pop(), "ridge has scores on 1 of 2 test sets"),
        (lambda run: run["test_sets"][0].update(name="other"), "test sets share a name: other"),
        (lambda run: run["test_sets"][0]["mos"].pop(), "test set 1080p: mos has 11 values for 12"),
        (lambda run: run["test_sets"][0].update(trained_on=[12]), "names video 12 of 12"),
        (lambda run: run["test_sets"][0].update(trained_on=[2, 1]), "ascending order"),
        (
            lambda run: run["heads"][0]["sets"][0]["predicted"][0].pop(),
            "ridge on 1080p predicts 11 of 12 videos",
        ),
        (
            lambda run: run["heads"][0]["sets"][1]["per_split"].update(srcc=[0.5]),
            "its srcc of ridge on other says .*, and its splits come to 0.5000",
        ),
        (lambda run: run["heads"][0]["sets"][1].update(undefined=1), "undefined of ridge on other"),
        (
            lambda run: (
                run.update(test_videos=[0], tests=[[]], test_sets=[]),
                [head.update(sets=[], predicted=[[]]) for head in run["heads"]],
            ),
            "nothing is tested",
        ),
    ],
)
def test_a_record_whose_sets_contradict_it_is_refused(record, tmp_path, change, message):
    content = json.loads(record.model_dump_json())
    change(content)
    (tmp_path / "run.json").write_text(json.dumps(content))

    with pytest.raises(RecipeError, match=message):
        read_records(tmp_path / "run.json")


def test_records_of_other_sets_are_kept_apart(record):
    one, two = (record.model_copy(update={"heads": [head]}) for head in record.heads)
    assert numbers(joined([one, two])) == numbers(record)
    other = two.model_copy(
        update={
            "test_sets": record.test_sets[:1],
            "heads": [two.heads[0].model_copy(update={"sets": two.heads[0].sets[:1]})],
        }
    )
    with pytest.raises(RecipeError, match="have other test sets"):
        joined([one, other])


# --- the number that tables print


def test_the_stated_statistic_is_printed_and_both_are_kept(place):
    own = asked(place, videos=place / "other.csv", splits="random7", test=place / "twin.csv")
    recipe = Recipe(protocol=Protocol(splits="random7", statistic="mean"))
    median, mean = vqbank.evaluate(**own), vqbank.evaluate(recipe, **own)

    assert numbers(median.model_copy(update={"number_selected_by": mean.number_selected_by})) == (
        numbers(mean)
    )
    for record in (median, mean):
        for scores in (record.heads[0], *record.heads[0].sets):
            found = scores.statistics["srcc"]
            assert found.mean != found.median
            stated = f"{getattr(found, record.statistic):.4f}"
            for text in (shown_in_terminal(record), to_markdown([record]), to_latex([record]),
                         record._repr_html_(), repr(record)):  # fmt: skip
                assert stated in text
    assert "t: mean (standard deviation)" in shown_in_terminal(mean.model_copy(
        update={"title": "t"}))  # fmt: skip
    assert "- Means and standard deviations over splits." in to_markdown([mean])
    both = to_markdown([median, mean])
    assert "- Medians or means and standard deviations" in both
    assert "| ridge, twin (mean) |" in both
    assert "| ridge, twin (median) |" in both
    assert "**" not in both  # a mean does not compete with a median
    rows = csv.DictReader(io.StringIO(to_csv([median, mean])))
    assert [row["statistic"] for row in rows] == ["median", "median", "mean", "mean"]
    with pytest.raises(RecipeError, match="have other statistics"):
        joined([median, mean])


def test_the_best_is_by_the_stated_statistic(place):
    own = asked(place, videos=place / "other.csv", splits="random5", test=None)
    record = vqbank.evaluate(**own | {"heads": ["ridge", "svr"]})

    def with_srcc(head, median, mean):
        found = head.statistics["srcc"].model_copy(update={"median": median, "mean": mean})
        return head.model_copy(update={"statistics": head.statistics | {"srcc": found}})

    heads = [with_srcc(record.heads[0], 0.9, 0.7), with_srcc(record.heads[1], 0.8, 0.75)]
    for stated, best in (("median", "**0.9000**"), ("mean", "**0.7500**")):
        changed = record.model_copy(
            update={"heads": heads, "number_selected_by": f"{stated} over all splits"}
        )
        assert best in to_markdown([changed])


def test_a_kept_cell_does_not_depend_on_the_stated_statistic(place, tmp_path, monkeypatch):
    own = asked(place, videos=place / "other.csv", splits="random3", test=None)
    vqbank.evaluate(**own, keep=tmp_path)
    monkeypatch.setattr(fits.Fits, "on_splits", None)

    record = vqbank.evaluate(Recipe(protocol=Protocol(statistic="mean")), **own, keep=tmp_path)

    assert record.statistic == "mean"


# --- on published features


def test_videval_across_the_public_sets(shared_data, tmp_path):
    """KoNViD-1k whole to LIVE-VQC and back: SRCC of heads that never saw a video of the set."""
    store = FeatureStore.create(tmp_path / "bank")
    labels = {}
    for name in ("KONVID_1K", "LIVE_VQC"):
        matrix = shared_data / "data" / "features" / f"{name}_VIDEVAL_feats.mat"
        labels[name] = shared_data / "data" / "labels" / f"{name}_metadata.csv"
        if not (matrix.exists() and labels[name].exists()):
            pytest.skip(f"{matrix.name} absent")
        ids = [video.id for video in labelled_videos(labels[name])]
        import_feats_mat(matrix, store, name="videval", ids=ids)
    found = {}
    for source, target in (("KONVID_1K", "LIVE_VQC"), ("LIVE_VQC", "KONVID_1K")):
        record = vqbank.evaluate(
            bank=store.path, features="videval", labels=labels[source], heads=["ridge"],
            splits="all", test={target: labels[target]}, jobs=1,
        )  # fmt: skip
        (row,) = record.rows
        assert row.plain_label == f"ridge, {target}"
        found[source] = row.number("srcc")

    assert found["KONVID_1K"] > 0.6
    assert found["LIVE_VQC"] > 0.5


def test_a_test_set_may_lie_in_a_file_whose_name_has_an_equals_sign(tmp_path):
    file = tmp_path / "rate=30.csv"
    file.write_text("path,mos\n")

    found = recipe_of(None, test=[str(file)]).test, recipe_of(None, test=[f"set={file}"]).test

    assert [list(one) for one in found] == [["rate=30"], ["set"]]
    assert [one.file for (one,) in (own.values() for own in found)] == [file, file]
