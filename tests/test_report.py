"""Result tables: what a reader must be told."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.results.provenance import seen_by_weights
from vqbank.pipelines.results.report import write_report
from vqbank.pipelines.results.tables import result_table
from vqbank.regressors import make_head
from vqbank.regressors.metrics import fit_mapping
from vqbank.regressors.significance import confidence_of_median
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video


@pytest.fixture
def experiment(tmp_path):
    """Makes one on a banked feature per role, whose weights were trained on these sets."""

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
        table = store.table(videos, {role: f"{role}.feature" for role in trained_on})
        rated = RatedVideos(table, generator.normal(size=len(videos)))
        cells = [Cell(name, make_head(name), table.roles) for name in ("ridge", "svr")]
        return Experiment("trial", rated, cells, Protocol(count=2))

    return make


def videos_of(*names):
    return [
        Video(f"{name}/{number}.mp4", Path(f"{number}.mp4"), scene=f"{number}")
        for name in names
        for number in range(20)
    ]


def ids_of(one):
    return [video.id for video in one.rated.table.videos]


def printed(record):
    page = StringIO()
    Console(file=page, width=160).print(result_table(record))
    return page.getvalue()


def written(record, folder):
    return write_report(record, folder).read_text()


def test_results_on_data_that_the_weights_have_seen_are_marked(experiment, tmp_path):
    one = experiment(videos_of("konvid_1k"), seen=("LSVQ", "KoNViD-1k"), clean=("Kinetics-400",))
    record = evaluate(one)

    table = printed(record)
    assert all(f"{head} *" in table for head in ("ridge", "svr"))
    assert "* The weights of a feature were trained on konvid_1k (seen.feature)." in table

    page = written(record, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seen_by_weights"] for row in rows} == {"konvid_1k (seen.feature)"}
    assert page.count("ridge *") == 1 + 2
    assert "trained on konvid_1k (seen.feature)" in page
    assert "LSVQ, KoNViD-1k" in page


def test_results_on_other_data_are_not(experiment, tmp_path):
    one = experiment(videos_of("KVQ"), seen=("LSVQ", "KoNViD-1k"))
    record = evaluate(one)
    assert "*" not in printed(record)
    assert "ridge *" not in written(record, tmp_path)
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
def test_names_of_data_sets_are_compared_without_case_and_hyphens(experiment, ours, theirs, same):
    one = experiment(videos_of(ours), role=(theirs,))
    assert bool(seen_by_weights(one.rated.table.specs, ids_of(one)[:3])) == same


def test_tables_show_the_interval_of_the_median_of_several_splits(experiment, tmp_path):
    one = replace(experiment(videos_of("set"), a=("LSVQ",)), protocol=Protocol(count=6))
    record = evaluate(one)
    medians = record.head("svr").per_split["srcc"]
    low, high = confidence_of_median(np.array(medians))

    assert low < high
    table, page = printed(record), written(record, tmp_path)
    assert f"{low:.4f} to {high:.4f}" in table
    assert f'<td class="number">{low:.4f} to {high:.4f}</td>' in page


def test_only_the_data_sets_of_the_rows_count(experiment):
    one = experiment(videos_of("LSVQ", "KVQ"), a=("LSVQ",), b=("LSVQ", "KVQ"))
    specs = one.rated.table.specs
    assert seen_by_weights(specs, ids_of(one)[:20]) == ["LSVQ (a.feature, b.feature)"]
    assert seen_by_weights(specs, ids_of(one)[20:]) == ["KVQ (b.feature)"]
    assert len(seen_by_weights(specs, ids_of(one))) == 2


def test_weights_of_unknown_training_are_named(experiment, tmp_path):
    one = experiment(videos_of("KVQ"), local=(), known=("LSVQ",), without=(), random=())
    record = evaluate(one)
    sentence = "What the weights of local.feature were trained on is not known."
    assert sentence in " ".join(printed(record).split())
    assert sentence in written(record, tmp_path)


@pytest.mark.parametrize(
    ("count", "said", "curve"),
    [
        (14, "PLCC and RMSE after no logistic.", "linear"),
        (40, "PLCC and RMSE after the 4-parameter logistic", "logistic"),
    ],
)
def test_page_and_picture_tell_of_the_fits_that_the_numbers_used(
    experiment, tmp_path, monkeypatch, count, said, curve
):
    one = experiment([replace(v, scene=v.id) for v in videos_of("a", "b")][:count], x=())
    record = evaluate(one)
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda panel, *xy, **how: drawn.append(xy) or plot(panel, *xy, **how)
    )

    page = written(record, tmp_path)

    fitted = [
        (split, head.predicted[split])
        for head in record.heads
        for split in range(len(record.tests))
        if head.mappings[split].kind != "none"
    ]
    kinds = {mapped.kind for head in record.heads for mapped in head.mappings} - {"none"}
    assert kinds == {curve}
    assert said in page
    assert ("4-parameter logistic" in page) == (curve == "logistic")
    assert len(drawn) == len(fitted)
    for (_, curve_of), (split, predicted) in zip(drawn, fitted, strict=True):
        mos = np.array([record.mos[row] for row in record.tests[split]])
        mapping = fit_mapping(mos, np.array(predicted))
        ends = np.array([min(predicted), max(predicted)])
        assert curve_of[[0, -1]] == pytest.approx(mapping(ends))
