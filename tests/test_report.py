"""Result tables: what a reader must be told."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from vqbank.pipelines.experiments.evaluate import Trial
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.results.provenance import seen_by_weights
from vqbank.pipelines.results.records import record_of
from vqbank.pipelines.results.report import result_table, write_report
from vqbank.regressors import make_head
from vqbank.regressors.metrics import fit_mapping
from vqbank.regressors.significance import confidence_of_median
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video


@pytest.fixture
def trial(tmp_path):
    """Makes a trial on one banked feature per role, whose weights were trained on these sets."""

    def make(videos, **trained_on):
        store = FeatureStore.create(tmp_path / "bank")
        generator = np.random.default_rng(5)
        for role, sets in trained_on.items():
            identity = {
                "weights": {"without": "none", "random": "random"}.get(role, f"sha of {role}")
            }
            spec = FeatureSpec(f"{role}.feature", (4,), "float32", identity, trained_on=sets)
            writer = store.writer(spec, provenance={}, durable=False)
            for video in videos:
                values = generator.normal(size=(3, 4)).astype(np.float32)
                feature = Feature(values, np.arange(3) / 5, np.arange(3))
                writer.add(video.id, feature, fingerprint=Fingerprint(0, ""), probe={})
            writer.commit()
        store.refresh()
        return Trial(
            title="trial",
            score_name="MOS",
            table=store.table(videos, {role: f"{role}.feature" for role in trained_on}),
            mos=generator.normal(size=len(videos)),
            heads={name: make_head(name) for name in ("ridge", "svr")},
            protocol=Protocol(count=2),
        )

    return make


def videos_of(*names):
    return [
        Video(f"{name}/{number}.mp4", Path(f"{number}.mp4"), scene=f"{number}")
        for name in names
        for number in range(20)
    ]


def printed(trial, results):
    page = StringIO()
    Console(file=page, width=160).print(result_table(record_of(trial, results)))
    return page.getvalue()


def written(trial, results, folder):
    return write_report(trial, results, record_of(trial, results), folder).read_text()


def test_results_on_data_that_the_weights_have_seen_are_marked(trial, tmp_path):
    one = trial(videos_of("konvid_1k"), seen=("LSVQ", "KoNViD-1k"), clean=("Kinetics-400",))
    results = list(one.run())

    table = printed(one, results)
    assert all(f"{head} *" in table for head in ("ridge", "svr"))
    assert "* The weights of a feature were trained on konvid_1k (seen.feature)." in table

    page = written(one, results, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seen_by_weights"] for row in rows} == {"konvid_1k (seen.feature)"}
    assert page.count("ridge *") == 1 + 2
    assert "trained on konvid_1k (seen.feature)" in page
    assert "LSVQ, KoNViD-1k" in page


def test_results_on_other_data_are_not(trial, tmp_path):
    one = trial(videos_of("KVQ"), seen=("LSVQ", "KoNViD-1k"))
    results = list(one.run())
    assert "*" not in printed(one, results)
    assert "ridge *" not in written(one, results, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        assert {row["seen_by_weights"] for row in csv.DictReader(file)} == {""}


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("LSVQ", "LSVQ", True),
        ("konvid_1k", "KoNViD-1k", True),
        ("live-vqc", "LIVE-VQC", True),
        ("LIVE", "LIVE-VQC", False),
        ("KVQ", "LSVQ", False),
    ],
)
def test_names_of_data_sets_are_compared_without_case_and_hyphens(trial, ours, theirs, same):
    one = trial(videos_of(ours), role=(theirs,))
    assert bool(seen_by_weights(one, np.arange(3))) == same


def test_tables_show_the_interval_of_the_median_of_several_splits(trial, tmp_path):
    one = replace(trial(videos_of("set"), a=("LSVQ",)), protocol=Protocol(count=6))
    results = list(one.run())
    medians = [result.metrics.srcc for result in results if result.head == "svr"]
    low, high = confidence_of_median(np.array(medians))

    assert low < high
    table, page = printed(one, results), written(one, results, tmp_path)
    assert f"{low:.4f} to {high:.4f}" in table
    assert f'<td class="number">{low:.4f} to {high:.4f}</td>' in page


def test_only_the_data_sets_of_the_rows_count(trial):
    one = trial(videos_of("LSVQ", "KVQ"), a=("LSVQ",), b=("LSVQ", "KVQ"))
    assert seen_by_weights(one, np.arange(20)) == ["LSVQ (a.feature, b.feature)"]
    assert seen_by_weights(one, np.arange(20, 40)) == ["KVQ (b.feature)"]
    assert len(seen_by_weights(one, np.arange(40))) == 2


def test_weights_of_unknown_training_are_named(trial, tmp_path):
    one = trial(videos_of("KVQ"), local=(), known=("LSVQ",), without=(), random=())
    results = list(one.run())
    sentence = "What the weights of local.feature were trained on is not known."
    assert sentence in " ".join(printed(one, results).split())
    assert sentence in written(one, results, tmp_path)


@pytest.mark.parametrize(
    ("count", "said", "curve"),
    [
        (14, "PLCC and RMSE after no logistic, see above.", "linear"),
        (40, "PLCC and RMSE after the 4-parameter logistic", "logistic"),
    ],
)
def test_page_and_picture_tell_of_the_fits_that_the_numbers_used(
    trial, tmp_path, monkeypatch, count, said, curve
):
    one = trial([replace(v, scene=v.id) for v in videos_of("a", "b")][:count], x=())
    results = list(one.run())
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda panel, *xy, **how: drawn.append(xy) or plot(panel, *xy, **how)
    )

    page = written(one, results, tmp_path)

    fitted = [
        result
        for head in one.heads
        for result in results
        if result.head == head and result.metrics.mapping != "none"
    ]
    assert {result.metrics.mapping for result in fitted} == {curve}
    assert said in page
    assert ("4-parameter logistic" in page) == (curve == "logistic")
    assert len(drawn) == len(fitted)
    for (_, curve_of), result in zip(drawn, fitted, strict=True):
        mapping = fit_mapping(result.mos, result.predicted)
        ends = np.array([result.predicted.min(), result.predicted.max()])
        assert curve_of[[0, -1]] == pytest.approx(mapping(ends))
