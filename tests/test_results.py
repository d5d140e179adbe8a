"""Records of runs, the tables made from them, and the comparison of two runs."""

import csv
import html
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from rich.console import Console
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell, Fits, SplitResult, cost
from vqbank.pipelines.experiments.rated import RatedVideos, banked_videos
from vqbank.pipelines.labels import read_labels
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.recipe import Protocol, Recipe
from vqbank.pipelines.results import statistics
from vqbank.pipelines.results.compare import compare
from vqbank.pipelines.results.record import MOST_SPLITS, Record
from vqbank.pipelines.results.records import joined, read_records, write_record
from vqbank.pipelines.results.report import write_report
from vqbank.pipelines.results.statistics import METRICS, SHOWN, shown
from vqbank.pipelines.results.tables import (
    COLUMNS,
    result_table,
    to_csv,
    to_latex,
    to_markdown,
    to_ntire,
)
from vqbank.pipelines.splits.file import write_splits
from vqbank.pipelines.splits.schemes import named_splits
from vqbank.pipelines.splits.split import Split
from vqbank.pipelines.terminal import plain
from vqbank.regressors import make_head, parallel, pooling
from vqbank.regressors.metrics import quality_metrics
from vqbank.regressors.significance import confidence_of_median
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, MissingFeatureError, RecipeError, VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable


def cells(*heads):
    return [Cell(name, make_head(name), ("x",)) for name in heads]


def experiment(*heads, splits="random4", n=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(n)]
    table = FeatureTable.from_arrays(videos, {"x": list(rows[:, None])})
    rated = RatedVideos(table, rows[:, 0] + 0.3 * rng.normal(size=n))
    return Experiment("trial", rated, cells(*heads), Protocol(splits=splits))


def fits(made, **options):
    """What comes out of every fit."""
    return list(made.fits(made.cells).run(**options))


def untimed(record):
    """The record as JSON, in which NaN is itself, without what another run has otherwise."""
    heads = [
        head.model_copy(update={"seconds": [0.0] * len(head.seconds)}) for head in record.heads
    ]
    return record.model_copy(update={"heads": heads}).model_dump_json()


def with_splits(made, rows):
    """The experiment on other splits of the same name."""
    made.__dict__["splits"] = replace(made.splits, rows=rows)
    return made


@pytest.fixture(scope="module")
def record():
    return evaluate(experiment("ridge", "svr", splits="random6"))


def changed(record, **statistics):
    """The record with other medians, head by head."""
    heads = [
        head.model_copy(
            update={
                "statistics": {
                    metric: old.model_copy(
                        update={"median": statistics.get(metric, {}).get(head.name, old.median)}
                    )
                    for metric, old in head.statistics.items()
                }
            }
        )
        for head in record.heads
    ]
    return record.model_copy(update={"heads": heads})


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    write_record(record, tmp_path / "run.json")

    assert read_records(tmp_path / "run.json") == [record]
    assert json.loads((tmp_path / "run.json").read_text())["splits_name"] == "random6"


def test_json_is_written_anew_and_jsonl_grows(record, tmp_path):
    for _ in range(2):
        write_record(record, tmp_path / "run.json")
        write_record(record, tmp_path / "runs.jsonl")

    assert len(read_records(tmp_path / "run.json")) == 1
    assert len(read_records(tmp_path / "runs.jsonl")) == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"vqbank_results": 2}', '{"title": "x"}'])
def test_a_line_that_is_no_record_is_named(record, tmp_path, line):
    write_record(record, tmp_path / "runs.jsonl")
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(RecipeError, match=r"runs\.jsonl:2: no record of a run"):
        read_records(tmp_path / "runs.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(same_test_as=[9] * 6), "same_test_as names a split that is no"),
        (lambda run: run.update(directions=["a"]), "directions has 1 values for 6 splits"),
        (lambda run: run.update(train_videos=[0] * 6), "train_videos: 0: Input should be"),
        (lambda run: run["heads"][0]["statistics"].pop("rmse"), "of ridge have no rmse"),
        (lambda run: run["heads"][0]["per_split"].update(srcc=[1]), "srcc of ridge has 1 values"),
        (lambda run: run["heads"][0].update(selection=[]), "selection of ridge has 0 values"),
        (lambda run: run.update(heads=[]), "heads: List should have at least 1 item"),
        (lambda run: run["heads"][0]["statistics"]["plcc"].update(std=0.5), "plcc of ridge says"),
        (
            lambda run: run["heads"][1]["statistics"]["rmse"].update(median=9),
            "its rmse of svr says",
        ),
        (lambda run: run["heads"][0].update(undefined=2), "undefined of ridge is 2 where 0 splits"),
        (lambda run: run["heads"][0]["predicted"][2].pop(), "predicts 7 of 8 videos of split 2"),
        (lambda run: run["heads"][0].update(seconds=[]), "seconds of ridge has 0 values"),
        (lambda run: run["tests"][1].reverse(), "split 1 does not name its videos in ascending"),
        (lambda run: run["tests"][1].__setitem__(-1, 40), "split 1 names video 40 of 40"),
        (lambda run: run["tests"][1].pop(), "split 1 tests 7 videos, not 8"),
        (lambda run: run.update(ids=["a"]), "ids has 1 values for 40 videos"),
        (lambda run: run.update(tests=[]), "tests has 0 values for 6 splits"),
        (
            lambda run: run.update(same_test_as=[0, 0, 2, 3, 4, 5]),
            "same_test_as of split 1 is not the first",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_in_one_line(record, tmp_path, change, message):
    run = json.loads(record.model_dump_json())
    change(run)
    (tmp_path / "run.json").write_text(json.dumps(run))

    with pytest.raises(RecipeError, match=rf"run\.json:1: no record of a run: .*{message}"):
        read_records(tmp_path / "run.json")


def test_an_interval_that_splits_do_not_come_to_is_refused_where_it_is_shown(record, tmp_path):
    run = json.loads(record.model_dump_json())
    run["heads"][1]["statistics"]["srcc"].update(confidence=[0, 1])
    (tmp_path / "run.json").write_text(json.dumps(run))
    (read,) = read_records(tmp_path / "run.json")

    for show in (result_table, read.__class__._repr_html_):
        with pytest.raises(RecipeError, match="come to another interval of the srcc of svr"):
            show(read)
    for text in (to_csv, to_markdown, to_latex):
        with pytest.raises(RecipeError, match="come to another interval of the srcc of svr"):
            text([read])
    ridge = read.model_copy(update={"heads": [read.head("ridge")]})
    assert to_csv([ridge]).count("\n") == 2


def test_reading_a_record_and_comparing_draw_no_interval(record, tmp_path, monkeypatch):
    write_record(record, tmp_path / "run.json")
    monkeypatch.setattr("vqbank.regressors.significance.RESAMPLES", None)  # no number to draw
    statistics._interval.cache_clear()

    (read,) = read_records(tmp_path / "run.json")
    assert len(compare([read])) == 1
    with pytest.raises(TypeError):
        result_table(read)


def test_a_record_of_more_splits_than_a_protocol_makes_is_refused(record, tmp_path):
    run = json.loads(record.model_dump_json())
    run["test_videos"] = [8] * (MOST_SPLITS + 1)
    (tmp_path / "run.json").write_text(json.dumps(run))

    with pytest.raises(RecipeError, match="test_videos: List should have at most 10000 items"):
        read_records(tmp_path / "run.json")


def in_another_order(record):
    """The same run of videos that stand in another order."""
    new = np.random.default_rng(0).permutation(record.videos)  # row now -> row before
    row_of = {int(before): now for now, before in enumerate(new)}
    orders = [sorted(range(len(test)), key=lambda n: row_of[test[n]]) for test in record.tests]
    heads = [
        head.model_copy(
            update={
                "predicted": [
                    [predicted[n] for n in order]
                    for predicted, order in zip(head.predicted, orders, strict=True)
                ]
            }
        )
        for head in record.heads
    ]
    return record.model_copy(
        update={
            "ids": [record.ids[row] for row in new],
            "mos": [record.mos[row] for row in new],
            "tests": [sorted(row_of[row] for row in test) for test in record.tests],
            "heads": heads,
        }
    )


def test_records_of_videos_in_another_order_become_one_by_the_videos_ids(record):
    first = record.model_copy(update={"heads": record.heads[:1]})
    other = in_another_order(record)
    other = other.model_copy(update={"heads": other.heads[1:]})
    assert other.ids != first.ids
    assert other.heads[0].predicted != record.heads[1].predicted

    assert joined([first, other]) == record
    renamed = other.model_copy(update={"ids": ["another", *other.ids[1:]]})
    with pytest.raises(RecipeError, match="'trial' and 'trial' are of other videos"):
        joined([first, renamed])
    moved = other.model_copy(update={"tests": [*other.tests[1:], other.tests[0]]})
    with pytest.raises(RecipeError, match="test other videos in split 0"):
        joined([first, moved])
    before = other.model_copy(update={"vqbank_results": 3})
    with pytest.raises(RecipeError, match="have other formats"):
        joined([first, before])


def test_rows_of_random_weights_are_marked_and_never_best(record):
    best = changed(record, srcc={"ridge": 0.99, "svr": 0.98})
    random = best.model_copy(update={"random_weights": True, "features": {"x": "random.x@0"}})
    lines = to_markdown([random, changed(record, srcc={"ridge": 0.5, "svr": 0.4})]).splitlines()
    rows = [line for line in lines if line.startswith(("| memory", "| random"))]

    assert [" ridge <sup>1</sup> |" in row or " svr <sup>1</sup> |" in row for row in rows] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [line for line in rows if "**" in line or "<u>" in line] == rows[2:]
    assert "**0.5000**" in rows[2]
    assert lines.count(
        "- <sup>1</sup> random.x: RANDOM WEIGHTS: these numbers say nothing about any network."
    ) == 1  # fmt: skip
    latex = to_latex([random])
    assert "& ridge \\textsuperscript{1} &" in latex
    assert "\n% \\textsuperscript{1} RANDOM WEIGHTS" in latex


def test_a_caution_of_one_head_marks_its_rows_alone(record):
    few = record.heads[0].model_copy(update={"held_out": [2] * 6})
    rows = to_markdown([record.model_copy(update={"heads": [few, record.heads[1]]})]).splitlines()

    assert [row.count("<sup>") for row in rows if row.startswith("| memory")] == [1, 0]


def test_a_record_is_one_line_whatever_its_titles_hold(record, tmp_path, monkeypatch):
    odd = record.model_copy(update={"title": "a\u2028b\x85c\x1cd"})
    write_record(odd, tmp_path / "run.json")
    assert read_records(tmp_path / "run.json") == [odd]

    monkeypatch.setattr("vqbank.pipelines.results.records.MOST_RECORD_BYTES", 1000)
    with pytest.raises(RecipeError, match=r"run\.json:1: longer than any record"):
        read_records(tmp_path / "run.json")


def test_a_record_says_how_every_number_was_selected(record):
    for head in record.heads:
        assert len(head.selection) == 6
        assert all("training scenes" in rule for rule in head.selection)
    assert record.number_selected_by == "median over all splits"


def test_medians_are_of_the_splits_and_predictions_of_tested_videos(record):
    head = record.heads[0]

    assert head.statistics["srcc"].median == pytest.approx(np.median(head.per_split["srcc"]))
    assert head.statistics["srcc"].std == pytest.approx(np.std(head.per_split["srcc"]))
    low, high = head.statistics["srcc"].confidence
    assert low <= head.statistics["srcc"].median <= high
    predictions = record.predictions_of(head)
    assert set(predictions) <= {f"set/{row}.mp4" for row in range(40)}
    assert len(predictions) > 8
    tested = [
        predicted
        for test, values in zip(record.tests, head.predicted, strict=True)
        for row, predicted in zip(test, values, strict=True)
        if record.ids[row] == next(iter(predictions))
    ]
    assert next(iter(predictions.values())) == pytest.approx(np.mean(tested))


def three_rows(record):
    third = record.heads[0].model_copy(update={"name": "third"})
    return record.model_copy(update={"heads": [*record.heads, third]})


def test_the_best_is_bold_and_the_second_underlined_and_less_rmse_is_better(record):
    medians = changed(
        three_rows(record),
        srcc={"ridge": 0.9, "svr": 0.8, "third": 0.7},
        rmse={"ridge": 0.4, "svr": 0.3, "third": 0.5},
    )

    markdown, latex = to_markdown([medians]), to_latex([medians])

    assert "**0.9000** ±" in markdown
    assert "<u>0.8000</u>" in markdown
    assert "<u>0.4000</u>" in markdown
    assert "**0.3000**" in markdown
    assert "\\textbf{0.9000} $\\pm$" in latex
    assert "\\underline{0.4000}" in latex
    assert "0.7000" in latex
    assert "{0.7000}" not in latex


def test_the_worse_of_two_is_no_second_best(record):
    two = changed(record, srcc={"ridge": 0.9, "svr": 0.8})
    third_has_none = changed(three_rows(two), srcc={"third": float("nan")})

    for records in ([two], [two.model_copy(update={"heads": [head]}) for head in two.heads]):
        assert "\\textbf{0.9000}" in to_latex(records)
        assert "\\underline" not in to_latex(records)
        assert "<u>" not in to_markdown(records)
    assert "\\underline{0.8000}" not in to_latex([third_has_none])


def test_only_equal_splits_compete(record):
    other = record.model_copy(update={"splits_sha256": "other", "heads": record.heads[:1]})

    alone = [line for line in to_markdown([record, other]).splitlines() if "| ridge" in line][1]

    assert "**" not in alone
    assert "<u>" not in alone


def test_latex_escapes_what_latex_would_read(record):
    named = record.model_copy(update={"features": {"a_b": "clip_b32.embedding@0"}})

    assert "clip\\_b32.embedding" in to_latex([named])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\\b", "a\\textbackslash{}b"),
        ("2^8", "2\\textasciicircum{}8"),
        ("~", "\\textasciitilde{}"),
        ("{50%}", "\\{50\\%\\}"),
    ],
)
def test_latex_prints_a_heads_label_as_it_is(record, text, escaped):
    heads = [record.heads[0].model_copy(update={"name": text})]

    assert f"& {escaped} &" in to_latex([record.model_copy(update={"heads": heads})])


def test_every_table_shows_the_bootstrap_interval(record):
    low, high = record.heads[0].statistics["srcc"].confidence
    row = next(csv.DictReader(io.StringIO(to_csv([record]))))

    assert (float(row["srcc_low"]), float(row["srcc_high"])) == pytest.approx((low, high), abs=1e-6)
    assert low < high
    for text in (to_markdown([record]), to_latex([record])):
        assert f"ridge: 95 % bootstrap interval of the median: SRCC {low:.4f} to {high:.4f}" in text


def test_csv_has_every_statistic(record):
    ridge, svr = csv.DictReader(io.StringIO(to_csv([record])))

    assert (ridge["head"], svr["head"]) == ("ridge", "svr")
    assert float(ridge["srcc_median"]) == pytest.approx(
        record.heads[0].statistics["srcc"].median, abs=1e-6
    )


def test_a_submission_is_of_one_head_by_file_name(record):
    with pytest.raises(RecipeError, match="one head, not ridge, svr"):
        to_ntire([record])
    lines = to_ntire([record.model_copy(update={"heads": [record.head("svr")]})]).splitlines()

    assert lines[0] == "filename,score"
    name, score = lines[1].split(",")
    predictions = record.predictions_of(record.head("svr"))
    assert float(score) == pytest.approx(predictions[f"set/{name}"], abs=1e-6)


def without_a_correlation(record, name):
    """The record as if a head had no SRCC in any split."""
    splits, nan = len(record.test_videos), float("nan")
    heads = [
        head.model_copy(
            update={
                "undefined": splits,
                "per_split": {**head.per_split, "srcc": [nan] * splits},
                "statistics": {
                    **head.statistics,
                    "srcc": head.statistics["srcc"].model_copy(
                        update={"median": nan, "mean": nan, "std": nan, "confidence": (nan, nan)}
                    ),
                },
            }
        )
        if head.name == name
        else head
        for head in record.heads
    ]
    return record.model_copy(update={"heads": heads})


def test_imported_features_and_undefined_metrics_are_marked_and_kept(record, tmp_path):
    marked = without_a_correlation(record, "svr").model_copy(
        update={"provenance_unknown": ["imported.x"]}
    )
    write_record(marked, tmp_path / "run.json")

    (read,) = read_records(tmp_path / "run.json")
    assert np.isnan(read.heads[1].statistics["srcc"].median)
    assert "Provenance unknown, because imported: imported.x." in to_markdown([read])
    assert "\n% " in to_latex([read])


# One source of numbers.


def record_of(made, predictions):
    """What a run would find whose heads predict this, split by split."""
    records = []
    for cell in made.cells:
        results = [
            SplitResult(
                cell=cell.label,
                split=number,
                metrics=quality_metrics(made.rated.mos[split.test], predicted),
                selection="by nothing",
                held_out=None,
                predicted=predicted,
                seconds=1.0,
            )
            for number, (split, predicted) in enumerate(
                zip(made.splits.rows, predictions[cell.label], strict=True)
            )
        ]
        records.append(made.record(cell, results))
    return joined(records)


def record_with_constant_predictions(seed=0):
    """Four heads: a sound one, its double, one that is constant in some splits, and in all."""
    rng = np.random.default_rng(seed)
    names = ("sound", "double", "partly", "never")
    made = replace(
        experiment(splits="random7"),
        cells=[Cell(name, make_head("ridge"), ("x",)) for name in names],
    )
    splits, mos = made.splits.rows, made.rated.mos
    noisy = [mos[split.test] + rng.normal(size=len(split.test)) for split in splits]
    flat = [np.full(len(split.test), 7.0) for split in splits]
    partly = [*flat[:3], *noisy[3:]]
    return record_of(made, {"sound": noisy, "double": noisy, "partly": partly, "never": flat})


SHOWN_NUMBER = re.compile(r"(?<![\d.])-?\d+\.\d{4}|(?<=[ ({>])-(?=[ )}<])")


def numbers(text):
    """What stands there of medians and deviations, in order; a dash is none."""
    return SHOWN_NUMBER.findall(text)


def test_a_split_with_constant_predictions_counts_in_rmse_alone():
    record = record_with_constant_predictions()
    partly, never = record.head("partly"), record.head("never")
    sound = [
        quality_metrics(np.array(record.mos)[test], np.array(predicted))
        for test, predicted in zip(record.tests, partly.predicted, strict=True)
    ][3:]

    assert (partly.undefined, never.undefined) == (3, 7)
    assert partly.statistics["srcc"].median == np.median([metrics.srcc for metrics in sound])
    assert partly.statistics["rmse"].median == np.median(partly.per_split["rmse"])
    assert partly.statistics["rmse"].median > np.median([metrics.rmse for metrics in sound])
    assert np.isnan(never.statistics["plcc"].median)
    assert np.isnan(partly.statistics["srcc"].confidence).all()  # of four splits


@pytest.mark.parametrize("seed", range(3))
def test_every_output_shows_the_numbers_of_the_record(seed, tmp_path):
    record = record_with_constant_predictions(seed)
    expected = {
        head.name: {
            metric: (shown(own.median), shown(own.std), *own.confidence)
            for metric, own in head.statistics.items()
        }
        for head in record.heads
    }

    page = StringIO()
    Console(file=page, width=200).print(result_table(record))
    report = write_report(record, tmp_path).read_text()
    for name, own in expected.items():
        both = [text for metric in SHOWN for text in own[metric][:2]]
        low, high = own["srcc"][2:]
        interval = ["-"] if np.isnan(low) else [shown(low), shown(high)]
        (line,) = [line for line in page.getvalue().splitlines() if f" {name} " in line]
        assert numbers(line) == both + interval
        (row,) = [row for row in report.split("<tr>") if row.startswith(f"<td>{name}</td><td ")
                  and "±" in row]  # fmt: skip
        assert numbers(row) == both + interval
        some = [t for m in SHOWN for t in own[m][: 2 if m in ("srcc", "plcc") else 1]]
        for text in (to_markdown([record]), to_latex([record])):
            (line,) = [
                line for line in text.splitlines() if f" {name} " in line and ":" not in line
            ]
            assert numbers(re.sub(r"\*\*|</?u>|\\(textbf|underline)|[{}]", "", line)) == some
            assert f"{name}: by nothing" in text
        undefined = record.head(name).undefined
        if undefined:
            for text in (page.getvalue(), report):
                assert f"7 ({undefined} undefined)" in text
            for text in (to_markdown([record]), to_latex([record])):
                assert f"{name}: {undefined} of 7 splits undefined" in text
    for text in (
        to_markdown([record]),
        to_latex([record]),
        report,
        " ".join(page.getvalue().split()),
    ):
        assert "such splits count in RMSE alone" in text
    for row in csv.DictReader(io.StringIO(to_csv([record]))):
        head = record.head(row["head"])
        assert (row["split_count"], int(row["undefined"])) == ("7", head.undefined)
        for metric in METRICS:
            own = head.statistics[metric]
            values = own.median, own.mean, own.std, *own.confidence
            names = ("median", "mean", "std", "low", "high")
            column = COLUMNS.get(metric, metric)
            assert [row[f"{column}_{name}"] for name in names] == [f"{v:.6f}" for v in values]
    with (tmp_path / "results.csv").open() as file:
        for row in csv.DictReader(file):
            values = record.head(row["head"]).per_split
            number = int(row["split"])
            assert [row[m] for m in SHOWN] == [f"{values[m][number]:.6f}" for m in SHOWN]
    lines = to_markdown([record]).splitlines()
    (sound,) = [line for line in lines if "| sound |" in line]
    assert sound.replace("sound", "double") in lines  # a tie: both are marked alike
    write_record(record, tmp_path / "run.json")
    assert to_csv(read_records(tmp_path / "run.json")) == to_csv([record])


def test_every_direction_between_data_sets_has_a_row(tmp_path):
    rng = np.random.default_rng(0)
    videos = [Video(f"{name}/{row}.mp4", Path("x")) for name in "ab" for row in range(20)]
    x = rng.normal(size=(40, 1)).astype(np.float32)
    table = FeatureTable.from_arrays(videos, {"x": list(x[:, None])})
    rated = RatedVideos(table, x[:, 0] + np.repeat([0.1, 2.0], 20) * rng.normal(size=40))
    heads = [Cell(name, make_head("ridge"), ("x",)) for name in ("one", "two", "three")]
    record = evaluate(Experiment("t", rated, heads, Protocol(splits="across")))
    page = StringIO()
    Console(file=page, width=200).print(result_table(record))
    report = write_report(record, tmp_path).read_text()

    assert record.directions == ["b → a", "a → b"]
    rows = list(csv.DictReader(io.StringIO(to_csv([record]))))
    assert [row["direction"] for row in rows] == 3 * ["b → a", "a → b", "all"]
    for number, direction in enumerate(record.directions):
        value = shown(record.head("one").per_split["srcc"][number])
        assert f"{float(rows[number]['srcc_median']):.4f}" == value
        for text in (page.getvalue(), report, to_markdown([record])):
            (line,) = [t for t in re.split(r"\n|<tr>", text) if f"one, {direction} " in t
                       or f"one, {direction}<" in t]  # fmt: skip
            assert numbers(line.replace("**", ""))[0] == value
    assert "& one, b $\\rightarrow$ a \\textsuperscript{1} &" in to_latex([record])
    both = [shown(record.head("one").per_split["srcc"][number]) for number in range(2)]
    assert both[0] != both[1]
    assert to_markdown([record]).count(f"**{both[1]}**") == 3  # directions compete with their like


def test_a_record_shows_itself_as_text_and_in_notebooks_and_escapes_what_others_wrote(record):
    head = record.heads[0].model_copy(update={"name": "<b>x</b>\x1b"})
    odd = record.model_copy(update={"title": "<script>", "heads": [head], "random_weights": True})

    assert repr(record) == (
        "<Record 'trial': memory.x, 40 videos, 6 splits random6; median SRCC: "
        f"ridge {shown(record.heads[0].statistics['srcc'].median)}, "
        f"svr {shown(record.heads[1].statistics['srcc'].median)}>"
    )
    assert repr(record.heads[0]).startswith("<HeadRecord 'ridge': median SRCC ")
    assert len(repr(head)) < 150
    assert "\x1b" not in repr(head)
    text = odd._repr_html_()
    assert "<script>" not in text
    assert "<b>" not in text
    assert "\x1b" not in text + repr(odd)
    assert "&lt;b&gt;x&lt;/b&gt;\\x1b" in text
    assert "RANDOM WEIGHTS" in text
    for line in (*odd.cautions, *odd.method):
        assert f"<p>{html.escape(plain(line))}</p>" in text
    for row in record.rows:
        (line,) = [
            one for one in record._repr_html_().split("<tr>") if f"<td>{row.label}</td>" in one
        ]
        both = [(row.statistics[m].median, row.statistics[m].std) for m in SHOWN]
        expected = [shown(number) for pair in both for number in pair]
        assert numbers(line)[: len(expected)] == expected


def test_results_and_compare_import_no_learning_library(record, tmp_path):
    """What keeps them under 0.7 s."""
    write_record(record, tmp_path / "run.json")
    heavy = ("torch", "sklearn", "scipy.stats", "scipy.optimize", "matplotlib", "zarr", "h5py")
    code = f"""
import sys
from vqbank.pipelines.commands.cli import app
for command in ("results", "compare"):
    app([command, {str(tmp_path / "run.json")!r}], standalone_mode=False)
print([name for name in {heavy!r} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[-1] == "[]"


def test_a_record_of_format_3_is_shown_and_has_no_report(record, tmp_path):
    run = json.loads(record.model_dump_json()) | {"vqbank_results": 3}
    newer = ("sources", "seen_per_split", "ids", "mos", "tests", "validations", "software")
    for name in newer:
        del run[name]
    for head, whole in zip(run["heads"], record.heads, strict=True):
        for name in ("held_out", "mappings", "predicted", "seconds", "cell"):
            del head[name]
        head["predictions"] = record.predictions_of(whole)
    (tmp_path / "run.json").write_text(json.dumps(run))

    (read,) = read_records(tmp_path / "run.json")

    assert to_csv([read]) == to_csv([record])
    assert to_markdown([read]) == to_markdown([record])
    svr = [one.model_copy(update={"heads": [one.head("svr")]}) for one in (read, record)]
    assert to_ntire(svr[:1]) == to_ntire(svr[1:])
    with pytest.raises(RecipeError, match="format 3 keeps no predictions per split"):
        write_report(read, tmp_path / "report")
    run["heads"][0]["statistics"]["srcc"]["median"] += 0.001
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(RecipeError, match="its srcc of ridge says"):
        read_records(tmp_path / "run.json")


# Two runs.


def with_repeats(record):
    """The record as if its last three splits had the test parts of the first three."""
    return record.model_copy(update={"same_test_as": [0, 1, 2, 0, 1, 2]})


def test_a_comparison_says_which_splits_it_leaves_out(record):
    undefined = [*record.heads[1].per_split["srcc"][:2], *[float("nan")] * 4]
    svr = record.heads[1].model_copy(
        update={"per_split": {**record.heads[1].per_split, "srcc": undefined}}
    )
    two = record.model_copy(update={"heads": [record.heads[0], svr]})
    (some,) = compare([two])
    (repeated,) = compare([with_repeats(record)])
    (all_of_them,) = compare([record])

    assert some.paired.splits == 2
    assert some.better_in == f"{some.paired.wins} of 2 (4 undefined, of 6)"
    assert repeated.better_in == f"{repeated.paired.wins} of 3 (3 repeated, of 6)"
    assert all_of_them.better_in == f"{all_of_them.paired.wins} of 6"


def test_no_p_is_0(record):
    better = record.heads[0].model_copy(
        update={"name": "better", "per_split": {
            metric: [value + 0.125 for value in values]
            for metric, values in record.heads[0].per_split.items()
        }}
    )  # fmt: skip
    (found,) = compare([record.model_copy(update={"heads": [record.heads[0], better]})])

    assert found.p_values == ("0.031", "-")
    assert all(one.p_values[0] != "0" for one in compare([record]))


def test_runs_on_other_splits_are_not_compared(record):
    other = evaluate(experiment("ridge", splits="random3"))

    with pytest.raises(RecipeError, match="tried on other splits"):
        compare([record, other])
    with pytest.raises(RecipeError, match="one head only"):
        compare([other])
    with pytest.raises(RecipeError, match="unknown metric 'sroc'"):
        compare([record], metric="sroc")


def shuffled(made, order, **more):
    """The trial with its rows in another order, and the splits that belong to it."""
    order = np.array(order)
    rated = replace(
        made.rated, table=made.rated.table.subset(order), mos=made.rated.mos[order], **more
    )
    place = np.argsort(order)
    rows = [
        Split(np.sort(place[s.train]), np.sort(place[s.test]), np.sort(place[s.validation]))
        for s in made.splits.rows
    ]
    return with_splits(replace(made, rated=rated), rows)


def test_the_order_of_rows_makes_no_other_splits_and_the_validation_part_does():
    made = experiment("ridge", splits="minimalistic2")
    one = evaluate(made)
    two = evaluate(shuffled(made, range(39, -1, -1)))
    whole = [Split(split.train, split.test) for split in made.splits.rows]
    three = evaluate(with_splits(replace(made), whole))

    assert (one.splits_sha256, one.mos_sha256) == (two.splits_sha256, two.mos_sha256)
    assert one.splits_sha256 != three.splits_sha256
    (compared,) = compare([one, two], sources=["one.json", "two.json"])
    assert compared.paired.median_gain == pytest.approx(0, abs=1e-6)
    assert compared.reference == compared.other.replace("two.json", "one.json")


def test_runs_on_other_scores_are_not_compared_and_do_not_compete(record):
    made = experiment("ridge", "svr", splits="random6")
    rated = replace(made.rated, mos=made.rated.mos + np.linspace(0, 0.1, 40))
    realigned = evaluate(replace(made, rated=rated))
    labelled = [
        record.model_copy(update={"mos_kind": "original MOS"}),
        realigned.model_copy(update={"mos_kind": "realigned MOS"}),
    ]

    assert realigned.splits_sha256 == record.splits_sha256
    with pytest.raises(RecipeError, match=r"other scores .* \(realigned MOS; original MOS\)"):
        compare(labelled)
    assert to_markdown(labelled).count("**") == 2 * to_markdown(labelled[:1]).count("**")


def test_a_data_set_that_is_left_out_is_tested_by_scores_in_deviations():
    rng = np.random.default_rng(0)
    videos = [Video(f"{name}/{row}.mp4", Path("x")) for name in "abc" for row in range(20)]
    x = rng.normal(size=(60, 1)).astype(np.float32)
    mos = x[:, 0].astype(np.float64)
    mos[20:40] = 1000 - 100 + 40 * x[20:40, 0]  # another scale, far away
    rated = RatedVideos(FeatureTable.from_arrays(videos, {"x": list(x[:, None])}), mos)
    made = Experiment("t", rated, cells("ridge"), Protocol(splits="across"))

    for result in fits(made):
        assert result.metrics.srcc > 0.99
        assert np.abs(result.predicted).max() < 4
    assert "in standard deviations from the mean of their own data set" in made.splits.text


def test_more_rmse_is_a_loss(record):
    (by_srcc,) = compare([record])
    (by_rmse,) = compare([record], metric="rmse")
    ridge, svr = (np.array(head.per_split["rmse"]) for head in record.heads)

    assert by_rmse.paired.median_gain == pytest.approx(np.median(ridge - svr))
    assert by_srcc.reference == "ridge on memory.x"


def test_the_middle_part_of_a_split_is_not_trained_on():
    made = experiment("ridge", "mlp", splits="minimalistic1")
    ridge, mlp = fits(made)

    assert "the 8 validation videos of the split were not fitted" in ridge.selection
    assert "on 8 of 32 training videos, the validation part of the split" in mlp.selection


def test_processes_change_nothing(monkeypatch):
    made = experiment("ridge")
    alone = untimed(evaluate(made))
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.WORTH_WORKERS_SECONDS", 0.0)

    assert untimed(evaluate(made, jobs=2)) == alone


def test_a_cost_that_a_few_rows_cannot_tell_ends_no_run(monkeypatch):
    """The few rows that are measured may lie in one scene, though all rows have several."""
    made = experiment("svr", n=60)
    videos = [
        replace(v, scene="one" if row else "other") for row, v in enumerate(made.rated.table.videos)
    ]
    series = [made.rated.table.series("x", row) for row in range(60)]
    table, mos = FeatureTable.from_arrays(videos, {"x": series}), made.rated.mos
    (cell,) = made.cells
    assert cost(cell, table, mos, np.arange(60), fits=1).seconds > 0
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.MEASURED_VIDEOS", 20)

    assert cost(cell, table, mos, np.arange(1, 60), fits=1) is None


def test_networks_of_all_splits_are_trained_at_once_and_come_to_the_same(monkeypatch):
    made = experiment("mlp", splits="minimalistic5")
    expected = [
        made.fits(made.cells).on_splits("mlp", [split])[0] for split in enumerate(made.splits.rows)
    ]
    counts = []
    train = parallel.train

    def counting(series, folds, method, **options):
        counts.append(len(folds))
        return train(series, folds, method, **options)

    monkeypatch.setattr(parallel, "train", counting)
    told = []
    results = fits(made, watch=told.append)

    assert counts == [4, 1]
    assert {epoch.member for epoch in told} == {0, 1, 2, 3}
    for result, one in zip(results, expected, strict=True):
        assert (result.split, result.selection) == (one.split, one.selection)
        np.testing.assert_allclose(result.predicted, one.predicted, atol=1e-5)


def test_networks_are_shared_out_among_processes(monkeypatch):
    made = experiment("mlp", "ridge", splits="random9")
    alone = fits(made)
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.WORTH_WORKERS_SECONDS", 0.0)
    parts = []

    def kept(self, tasks, jobs, watch):
        parts.extend(tasks)
        for task in tasks:
            yield from self.on_splits(*task)

    monkeypatch.setattr(Fits, "_in_processes", kept)
    shared = fits(made, jobs=2)

    assert [(name, [number for number, _ in part]) for name, part in parts[-2:]] == [
        ("mlp", [4, 5, 6, 7]),
        ("mlp", [8]),
    ]
    for one, other in zip(alone, shared, strict=True):
        assert (one.cell, one.split) == (other.cell, other.split)
        assert np.array_equal(other.predicted, one.predicted)


@pytest.mark.soak
def test_processes_change_nothing_of_networks(monkeypatch):
    made = experiment("mlp", splits="random9")
    alone = untimed(evaluate(made))
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.WORTH_WORKERS_SECONDS", 0.0)

    assert untimed(evaluate(made, jobs=2)) == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"test": 1},
            r"split 1 of random2: its test part has 1 video \(set/.*\.mp4\), and needs 2",
        ),
        (
            {"test": 0},
            r"split 1 of random2: its test part has 8 videos of one score, 3\.5 .*tests?",
        ),
        ({"train": 2}, "split 1 of random2: its training part has 2 videos .* needs 3 or more"),
        ({"validation": 1}, "split 1 of random2: its validation part has 1 video "),
    ],
)
def test_a_part_that_cannot_be_used_ends_before_anything_is_fitted(change, message, monkeypatch):
    made = experiment("ridge", *(["mlp"] if "validation" in change else []), splits="random2")
    first, second = made.splits.rows
    if change == {"test": 0}:
        made.rated.mos[second.test] = 3.5
    elif "validation" in change:
        second = replace(second, validation=second.train[:1])
    else:
        ((side, count),) = change.items()
        second = replace(second, **{side: getattr(second, side)[:count]})
    with_splits(made, [first, second])
    fitted = []
    monkeypatch.setattr(Fits, "on_splits", lambda *_: fitted.append(1))

    with pytest.raises(RecipeError, match=message) as refused:
        next(made.run())
    assert "take splits with a larger one" in str(refused.value)
    assert "min_test_scenes" in str(refused.value)
    assert not fitted


@pytest.mark.parametrize("name", ["scene10", "threeway10", "random10"])
def test_a_run_has_no_more_splits_than_there_are_different_test_parts(name):
    made = experiment("ridge", n=40)
    scenes = [replace(v, scene=str(row % 4)) for row, v in enumerate(made.rated.table.videos)]
    made.rated.table.videos = tuple(scenes)
    made = replace(made, protocol=Protocol(splits=name))
    record = evaluate(made)
    possible = 10 if name == "random10" else 4

    assert len(made.splits) == len(record.head("ridge").per_split["srcc"]) == possible
    assert record.same_test_as == list(range(possible))
    fewer = "10 were asked for: there are no more different test parts." in record.splits
    assert fewer == (name != "random10")
    low, _ = record.head("ridge").statistics["srcc"].confidence
    assert np.isnan(low) == (possible < 6)


def test_a_file_of_splits_is_read_once_and_may_have_any_name(tmp_path, monkeypatch):
    made = experiment("ridge", splits="random2")
    write_splits(tmp_path / "s.json", "random99999", made.rated.table.videos, made.splits.rows)
    made = replace(made, protocol=Protocol(splits=str(tmp_path / "s.json")))
    assert made.splits.name == "random99999"
    (tmp_path / "s.json").unlink()

    assert evaluate(made).splits.startswith("The 2 splits random99999 of s.json.")


def test_published_splits_that_repeat_are_kept_and_counted_once():
    made = experiment("ridge", splits="fastvqa60", n=10)
    numbers = [tuple(split.test) for split in made.splits.rows]
    record = evaluate(made)
    values = np.array(record.head("ridge").per_split["srcc"])
    different = [number for number, test in enumerate(numbers) if test not in numbers[:number]]

    assert len(numbers) == 60 > len(different) >= 6
    assert record.different == different
    assert f"Only {len(different)} of the 60 test parts are different" in record.splits
    statistics = record.head("ridge").statistics["srcc"]
    assert statistics.median == np.median(values)
    assert statistics.confidence == confidence_of_median(values[different])


def test_a_data_set_on_both_sides_is_not_left_out():
    made = experiment("ridge", splits="random2")
    made.__dict__["splits"] = replace(made.splits, name="across")
    with pytest.raises(RecipeError, match="leave whole data sets out, and set stands on both"):
        next(made.run())


def test_splits_and_heads_share_one_pooling(monkeypatch):
    made = experiment("ridge", "blend", splits="random2")
    expected = [
        result.predicted
        for name in ("ridge", "blend")
        for split in enumerate(made.splits.rows)
        for result in made.fits(made.cells).on_splits(name, [split])
    ]
    counted = []
    mean_and_deviation = pooling.mean_and_deviation
    monkeypatch.setattr(
        pooling, "mean_and_deviation", lambda v: counted.append(1) or mean_and_deviation(v)
    )

    for result, same in zip(fits(made), expected, strict=True):
        assert np.array_equal(result.predicted, same)
    assert len(counted) == 40


# Label files in place of manifests.


@pytest.fixture
def store(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("x.feature", (2,), "float32", {})
    writer = store.writer(spec, provenance={}, durable=False)
    rng = np.random.default_rng(0)
    for row in range(12):
        values = rng.normal(size=(1, 2)).astype(np.float32)
        feature = Feature(values, np.zeros(1), np.zeros(1, np.int64))
        fingerprint = Fingerprint(1, f"{row}")
        writer.add(f"set/clips/v{row}.mp4", feature, fingerprint=fingerprint, probe={})
    writer.commit()
    store.refresh()
    return store


def label_file(tmp_path, names):
    path = tmp_path / "labels.csv"
    rows = [f"{name},{number / 10}" for number, name in enumerate(names)]
    path.write_text("\n".join(["filename,score", *rows]) + "\n")
    return path


def test_rows_of_a_label_file_find_the_banked_videos_in_its_order(store, tmp_path):
    names = [f"V{row}" for row in reversed(range(12))]

    videos = banked_videos(read_labels(label_file(tmp_path, names)), store, store.specs())

    assert [video.id for video in videos] == [f"set/clips/v{row}.mp4" for row in range(11, -1, -1)]
    assert [video.mos for video in videos][:3] == [0.0, 0.1, 0.2]


def test_rows_without_features_are_named_with_their_line(store, tmp_path):
    labels = read_labels(label_file(tmp_path, ["v1.mp4", "v2.mp4", "w3.mp4"]))

    with pytest.raises(MissingFeatureError, match=r"1 of the 3 .* w3\.mp4 \(.*labels\.csv:4\)"):
        banked_videos(labels, store, store.specs())


def test_a_manifest_of_the_same_videos_under_another_name_finds_them(store, tmp_path):
    manifest = tmp_path / "man.csv"
    rows = [f"man/v{row}.mp4,v{row}.mp4,{row}" for row in range(12)]
    manifest.write_text("\n".join(["id,path,mos", *rows]) + "\n")
    recipe = Recipe(
        bank=store.path, videos=manifest, features={"x": "x.feature"}, heads={"ridge": {}}
    )
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    by_labels = Recipe(**{**recipe.__dict__, "videos": None, "labels": labels})

    made, other = Experiment.of(recipe, title="t"), Experiment.of(by_labels, title="t")
    assert [v.id for v in made.rated.table.videos] == [v.id for v in other.rated.table.videos]
    splits = tmp_path / "splits.json"
    mine = read_videos(manifest)
    write_splits(splits, "random3", mine, named_splits("random3", mine))
    read = replace(other, protocol=Protocol(splits=str(splits)))
    assert [s.test.tolist() for s in read.splits.rows] == [
        s.test.tolist() for s in named_splits("random3", mine)
    ]


def test_names_that_do_not_state_their_data_set_are_of_one_and_the_table_says_which(
    store, tmp_path
):
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    recipe = Recipe(
        labels=labels, bank=store.path, features={"x": "x.feature"}, heads={"ridge": {}},
        protocol=Protocol(splits="random2"),
    )  # fmt: skip
    made = Experiment.of(recipe, title="t")
    caption = str(result_table(evaluate(made)).caption)
    assert "names do not state set; they were taken for its videos in the bank" in caption
    stating = label_file(tmp_path, [f"set/clips/v{row}.mp4" for row in range(12)])
    assert not Experiment.of(
        recipe.model_copy(update={"labels": stating}), title="t"
    ).rated.taken_for

    writer = store.writer(store.specs()[0], provenance={}, durable=False)
    feature = Feature(np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64))
    writer.add("other/w.mp4", feature, fingerprint=Fingerprint(1, "w"), probe={})
    writer.commit()
    mixed = label_file(tmp_path, ["v1.mp4", "v2.mp4", "w.mp4"])
    with pytest.raises(ManifestError, match=r"labels/v1.mp4 fits set/clips.*fits other/w.mp4"):
        Experiment.of(recipe.model_copy(update={"labels": mixed}), title="t")


def test_names_that_share_a_banked_video_are_refused(store, tmp_path):
    labels = label_file(tmp_path, ["a/v1.mp4", "b/v1.mp4"])
    store_of = FeatureStore.create(tmp_path / "flat")
    writer = store_of.writer(store.specs()[0], provenance={}, durable=False)
    feature = Feature(np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64))
    writer.add("v1", feature, fingerprint=Fingerprint(1, "v"), probe={})
    writer.commit()

    with pytest.raises(ManifestError, match=r"a/v1.mp4 may be v1, and so may another of"):
        banked_videos(read_labels(labels), store_of, store_of.specs())


def test_some_known_ids_are_no_reason_to_guess_the_others(store, tmp_path):
    manifest = tmp_path / "man.csv"
    manifest.write_text("id,path,mos\nset/clips/v1.mp4,v1.mp4,1\nman/v2.mp4,v2.mp4,2\n")
    recipe = Recipe(
        bank=store.path, videos=manifest, features={"x": "x.feature"}, heads={"ridge": {}}
    )

    with pytest.raises(MissingFeatureError, match=r"man/v2\.mp4"):
        Experiment.of(recipe, title="t")


def test_videos_that_an_import_filled_are_counted_in_every_table(tmp_path):
    features = np.random.default_rng(0).normal(size=(12, 4))
    features[3, 1] = np.nan
    scipy.io.savemat(tmp_path / "features.mat", {"feats_mat": features})
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    vqbank(
        "import", "feats-mat", tmp_path / "features.mat", "--labels", labels, "--bank",
        tmp_path / "filled", "--name", "x",
    )  # fmt: skip
    recipe = Recipe(
        labels=labels, bank=tmp_path / "filled", features={"x": "imported.x"}, heads={"ridge": {}},
        protocol=Protocol(splits="random2"),
    )  # fmt: skip
    made = Experiment.of(recipe, title="t")
    said = (
        "imported.x: 1 video had values that were not finite; their import filled these with means"
    )

    record = evaluate(made)
    for table in (to_markdown, to_latex, to_csv):
        assert said in table([record])
    assert said in str(result_table(record).caption)
    assert said in write_report(record, tmp_path / "report").read_text(encoding="utf-8")


def test_every_output_makes_the_same_notes(record, tmp_path):
    fits = {"fits": ["line", *[""] * 5], "held_out": [2, 9, 10, 40, 40, 40]}
    odd = record.model_copy(
        update={
            "random_weights": True,
            "seen_by_weights": ["KVQ (a.b)"],
            "weights_unknown": ["c.d"],
            "provenance_unknown": ["imported.x"],
            "taken_for": "KVQ",
            "filled": {"imported.x": 2},
            "left_out": {"imported.x": 3},
            "heads": [without_a_correlation(record, "ridge").heads[0].model_copy(update=fits)],
        }
    )
    page = html.unescape(write_report(odd, tmp_path).read_text(encoding="utf-8"))
    (line,) = csv.DictReader(io.StringIO(to_csv([odd])))
    markdown = re.sub(r"\\(.)", r"\1", to_markdown([odd]))

    assert len(odd.cautions) == 10
    for note in (*odd.cautions, *odd.method):
        assert note in str(result_table(odd).caption)
        assert note in page
        assert note in markdown
        assert re.search(rf"% (\\textsuperscript\{{\d+\}} )?{re.escape(note)}\n", to_latex([odd]))
        assert note in line["notes"]
    assert (
        "ridge: in 2 of 6 splits the epoch was chosen by SRCC on 2 to 9 held-out videos; on fewer "
        "than 10 that is little better than chance."
    ) in odd.cautions
    assert [note for note in (*record.cautions, *record.method) if note.startswith("*")] == []


def test_notes_of_one_run_of_several_say_whose_they_are(record):
    other = record.model_copy(
        update={"features": {"y": "other.y@0"}, "weights_unknown": ["other.y"]}
    )
    text = to_markdown([record, other])

    assert (
        "- <sup>1</sup> other.y: What the weights of other.y were trained on is not known.\n"
        in text
    )
    assert f"- {record.splits}\n" in text


def test_only_the_direction_that_weights_have_seen_is_marked(record):
    seen = record.model_copy(
        update={
            "directions": [f"{n} → {n + 1}" for n in range(6)],
            "seen_by_weights": ["KVQ (a.b)"],
            "seen_per_split": [["KVQ (a.b)"], *[[]] * 5],
        }
    )
    before = seen.model_copy(update={"seen_per_split": []})  # format 3 did not tell

    marked = [row.direction for row in seen.rows if row.seen]
    assert marked == 2 * ["0 → 1", "all"]
    assert to_markdown([seen]).count(r" \* |") == 4
    assert [row["seen_by_weights"] for row in csv.DictReader(io.StringIO(to_csv([seen])))] == [
        str(row.seen) for row in seen.rows
    ]
    assert all(row.seen for row in before.rows)


def test_a_heads_label_is_no_formula_in_pictures(tmp_path):
    made = experiment(splits="random2")
    rated = replace(made.rated, score_name=r"$\x$")
    made = replace(made, rated=rated, cells=[Cell(r"$\frac{$", make_head("ridge"), ("x",))])

    write_report(evaluate(made), tmp_path)

    assert (tmp_path / "result.png").stat().st_size > 1000


def test_videos_and_labels_together_are_refused(store, tmp_path):
    labels = label_file(tmp_path, ["v1.mp4", "v2.mp4"])
    recipe = Recipe(
        bank=store.path, videos=labels, labels=labels, features={"x": "x.feature"},
        heads={"ridge": {}},
    )  # fmt: skip

    with pytest.raises(RecipeError, match="give one of them"):
        Experiment.of(recipe, title="t")


def vqbank(*arguments):
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(run.exception, VqbankError | SystemExit | None), run.exception
    return run


def test_videos_that_lack_a_feature_stop_or_are_dropped_from_splits_of_all(store, tmp_path):
    spec = FeatureSpec("some.feature", (2,), "float32", {"source": "b"})
    writer = store.writer(spec, provenance={})
    rng = np.random.default_rng(0)
    for row in range(20):
        if row not in (3, 7):
            feature = Feature(rng.normal(size=(1, 2)).astype("f4"), np.zeros(1), np.zeros(1, int))
            fingerprint = Fingerprint(1, f"{row:064}")
            writer.add(f"set/v{row}.mp4", feature, fingerprint=fingerprint, probe={})
    writer.commit()
    manifest = tmp_path / "set.csv"
    manifest.write_text(
        "path,id,mos\n" + "".join(f"v{row}.mp4,set/v{row}.mp4,{row % 7}\n" for row in range(20))
    )
    options = (
        "evaluate", "--bank", store.path, "--features", "some.feature", "--videos", manifest,
        "--head", "ridge", "--splits", "videval5",
    )  # fmt: skip

    with pytest.raises(
        MissingFeatureError, match=r"2 of 20 videos have no some.*v3\.mp4.*--missing drop"
    ):
        Experiment.of(
            Recipe(
                videos=manifest, bank=store.path, features={"x": "some.feature"},
                heads={"ridge": {}},
            ),
            title="t",
        )  # fmt: skip
    run = vqbank(*options, "--missing", "drop", "--json", tmp_path / "run.json")
    assert run.exit_code == 0, run.exception
    assert "dropped 2 of 20 videos, which lack a feature: set/v3.mp4, set/v7.mp4" in run.output
    assert "2 of 20 videos lack a feature" in " ".join(run.output.split())
    (record,) = read_records(tmp_path / "run.json")
    assert record.videos == 18
    videos = [Video(f"set/v{row}.mp4", Path("x")) for row in range(20)]
    for split, tested, trained in zip(
        named_splits("videval5", videos), record.test_videos, record.train_videos, strict=True
    ):
        assert tested == len(set(split.test.tolist()) - {3, 7})
        assert trained == len(set(split.train.tolist()) - {3, 7})
    wrong = vqbank(*options, "--missing", "dorp")
    assert "Did you mean 'drop'?" in str(wrong.exception)
    # By a name of its own the manifest's splits are the same, whatever is missing.
    other = tmp_path / "other.csv"
    other.write_text("path,mos\n" + "".join(f"v{row}.mp4,{row % 7}\n" for row in range(20)))
    stated = read_videos(other)
    write_splits(tmp_path / "own.json", "own", stated, named_splits("random2", stated))
    for scheme in ("random4", "random4", str(tmp_path / "own.json")):
        renamed = Recipe(
            videos=other, bank=store.path, features={"x": "some.feature"}, missing="drop",
            heads={"ridge": {}}, protocol=Protocol(splits=scheme),
        )  # fmt: skip
        made = Experiment.of(renamed, title="t")
        assert made.rated.dropped == ["other/v3.mp4", "other/v7.mp4"]
        names = [video.path.name for video in made.rated.table.videos]
        for split, whole in zip(made.splits.rows, named_splits(scheme, stated), strict=True):
            expected = [stated[row].path.name for row in whole.test if row not in (3, 7)]
            assert [names[row] for row in split.test] == expected
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    recipe = Recipe(
        labels=labels, bank=store.path, features={"x": "x.feature"}, heads={"ridge": {}},
        missing="drop",
    )  # fmt: skip
    with pytest.raises(RecipeError, match="make a manifest by `vqbank labels import`"):
        Experiment.of(recipe, title="t")


def test_processes_fit_what_lies_in_a_bank(store, tmp_path, monkeypatch):
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    recipe = Recipe(
        labels=labels, bank=store.path, features={"x": "x.feature"}, heads={"ridge": {}},
        protocol=Protocol(splits="random4"),
    )  # fmt: skip
    made = Experiment.of(recipe, title="t")
    alone = untimed(evaluate(made))
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.WORTH_WORKERS_SECONDS", 0.0)

    assert untimed(evaluate(made, jobs=2)) == alone


def test_a_recipe_says_what_the_options_say(store, tmp_path):
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])
    (tmp_path / "recipe.yaml").write_text(
        "labels: labels.csv\nbank: bank\nfeatures: {x.feature: x.feature}\nheads: {ridge: }\n"
        "protocol: {splits: videval3}\n"
    )
    vqbank("evaluate", tmp_path / "recipe.yaml", "--json", tmp_path / "one.json")
    vqbank(
        "evaluate", "--bank", store.path, "--features", "x.feature", "--labels", labels, "--head",
        "ridge", "--splits", "videval3", "--json", tmp_path / "two.json",
    )  # fmt: skip

    (one,), (two,) = read_records(tmp_path / "one.json"), read_records(tmp_path / "two.json")
    assert isinstance(one, Record)
    one, two = (untimed(run.model_copy(update={"title": ""})) for run in (one, two))
    assert one == two
    table = vqbank("results", tmp_path / "one.json", "--format", "latex").output
    assert table.startswith("\\begin{tabular}")
    compared = vqbank("compare", tmp_path / "one.json", tmp_path / "two.json").output
    assert "+0.0000" in compared


def test_a_recipes_splits_lie_beside_it_and_a_table_names_their_scheme(store, tmp_path):
    rows = range(12)
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in rows])
    labels.write_text("scene,filename,score\n" + "".join(f"{r // 2},v{r}.mp4,{r}\n" for r in rows))
    vqbank("split", "make", labels, "--splits", "videval3", "-o", tmp_path / "splits.json")
    (tmp_path / "recipe.yaml").write_text(
        "labels: labels.csv\nbank: bank\nfeatures: {x.feature: x.feature}\nheads: {ridge: }\n"
        "protocol: {splits: splits.json}\n"
    )
    run = vqbank("evaluate", tmp_path / "recipe.yaml", "--json", tmp_path / "one.json")

    assert run.exit_code == 0, run.exception
    (record,) = read_records(tmp_path / "one.json")
    assert record.splits_name == "videval3"
    assert record.splits.startswith("The 3 splits videval3 of splits.json.")
    assert "Scenes stand on both sides in 3 of 3" in record.splits


def test_the_column_of_the_scores_can_be_named(store, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "filename,mos_sharp,mos_overall\n"
        + "".join(f"v{row}.mp4,{row},{(row * 5) % 12}\n" for row in range(12))
    )
    options = (
        "--bank", store.path, "--features", "x.feature", "--head", "ridge", "--splits", "random2",
        "--labels",
    )  # fmt: skip
    run = vqbank(
        "evaluate", *options, labels, "--score", "mos_sharp", "--json", tmp_path / "a.json"
    )
    assert run.exit_code == 0, run.exception
    recipe = Recipe(
        labels=labels, score="mos_overall", bank=store.path, features={"x": "x.feature"},
        heads={"ridge": {}},
    )  # fmt: skip

    assert Experiment.of(recipe, title="t").rated.mos.tolist()[:3] == [0, 5, 10]
    labels.write_text("id,path,mos\nset/clips/v1.mp4,v1.mp4,1\n")
    with pytest.raises(RecipeError, match="'mos_overall' is a column of a label file"):
        Experiment.of(recipe, title="t")


def test_a_wrong_name_of_splits_lists_all_and_a_score_that_is_missing_is_named(store, tmp_path):
    options = ("--bank", store.path, "--features", "x.feature", "--head", "ridge")
    labels = label_file(tmp_path, [f"v{row}.mp4" for row in range(12)])

    run = vqbank("evaluate", *options, "--labels", labels, "--splits", "vidval100")
    assert "Did you mean 'videval'" in str(run.exception)
    labels.write_text("filename,score\nv1.mp4,1\nv2.mp4,\nv3.mp4,3\n")
    run = vqbank("evaluate", *options, "--labels", labels)
    assert isinstance(run.exception, ManifestError)
    assert "1 of 3 videos have no mos" in str(run.exception)


def test_a_trial_by_scene_needs_scenes_also_where_that_is_the_default():
    made = replace(experiment("ridge"), protocol=Protocol())

    with pytest.raises(RecipeError, match=r"splits scene are by scene, and none of these 40"):
        made.splits  # noqa: B018


def test_names_in_tables_are_text_in_latex_and_markdown():
    from vqbank.pipelines.results.tables import _latex, _markdown

    name = "a|b<i>*c*\\input{x}\n%[d](e)`\x1b"
    assert _markdown(name) == r"a\|b&lt;i>\*c\*\\input{x}\\n%\[d\](e)\`\\x1b"
    assert "\n" not in _latex(name)
    assert "\x1b" not in _latex(name)
    assert r"\input" not in _latex(name)


def two_roles(*cells):
    """Heads on two features of one name, as two patches of one network have them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)).astype(np.float32)
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(40)]
    series = {role: list(rows[:, None] + noise) for role, noise in (("whole", 0), ("parts", 1))}
    table = FeatureTable.from_arrays(videos, series)
    names = {"memory.whole": "quality.stages", "memory.parts": "quality.stages"}
    for column in table._columns.values():
        object.__setattr__(column.spec, "name", names[column.spec.name])
    rated = RatedVideos(table, rows[:, 0] + 0.3 * rng.normal(size=40))
    return Experiment("trial", rated, list(cells), Protocol(splits="random4"))


def test_tables_name_the_roles_that_a_head_reads_where_it_does_not_read_all():
    roles = ("whole", "parts")
    both = Cell("both", make_head("ridge"), roles)
    one = Cell("one", make_head("ridge", roles=["parts"]), roles)
    record = evaluate(two_roles(both, one))

    wanted = "whole=quality.stages + parts=quality.stages", "quality.stages"
    lines = [line for line in to_markdown([record]).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(wanted)
    rows = list(csv.DictReader(io.StringIO(to_csv([record]))))
    assert [row["features"] for row in rows] == [
        "+".join(record.features.values()), record.features["parts"],
    ]  # fmt: skip
    assert "one reads parts alone." in record.method
    assert compare([record])[0].other == "one on quality.stages"


def test_runs_with_other_parameters_are_told_apart(record):
    def run(**parameters):
        cells = [Cell("ridge", make_head("ridge", **parameters), ("x",))]
        return evaluate(replace(experiment(splits="random6"), cells=cells))

    one, two = run(folds=3), run(folds=4)
    text = to_markdown([one, two, record])
    assert "| ridge (folds = 3) |" in text
    assert "| ridge (folds = 4) |" in text
    assert "| ridge (folds = 5) |" in text
    assert "| svr |" in text
    assert "(folds" not in to_markdown([one])
    assert "ridge (folds = 3)" in to_latex([one, two])
    rows = csv.DictReader(io.StringIO(to_csv([one, two])))
    assert [json.loads(row["parameters"])["folds"] for row in rows] == [3, 4]
