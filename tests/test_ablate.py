"""Ablations: parts of the features on identical splits, and one table."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.ablation import (
    ablate,
    held_out_of_training,
    learning_curve,
    with_fraction,
)
from vqbank.pipelines.experiments.columns import grouped, groups_of
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell, Fits
from vqbank.pipelines.experiments.fitting import Fitted
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.experiments.sets import sets_of
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.results.ablation import ablation_table, lines_of
from vqbank.pipelines.results.records import read_records
from vqbank.regressors import make_head
from vqbank.store.errors import RecipeError, UnknownNameError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

N = 80
WIDTHS = {"x": 3, "y": 2, "z": 4}


def experiment(splits="scene6", heads=("ridge",)):
    """Scores that are the mean of x, a little of y, and nothing of z."""
    rng = np.random.default_rng(0)
    series = {role: rng.normal(size=(N, 2, width)) for role, width in WIDTHS.items()}
    videos = [Video(f"set/{n}.mp4", Path("x"), scene=str(n // 2)) for n in range(N)]
    table = FeatureTable.from_arrays(videos, {role: list(own) for role, own in series.items()})
    means = {role: own.mean(axis=(1, 2)) for role, own in series.items()}
    mos = means["x"] + 0.5 * means["y"] + 0.05 * rng.normal(size=N)
    cells = [Cell(name, make_head(name), table.roles) for name in heads]
    return Experiment("t", RatedVideos(table, mos), cells, Protocol(splits=splits))


def numbers(rows):
    return {row.features: row.record.heads[0].per_split["srcc"] for row in rows}


def table_of(rows, form="csv"):
    lines = lines_of([(row.head, row.features, row.record) for row in rows])
    return ablation_table(lines).written(form)


def test_every_set_is_tried_once_and_has_the_first_of_its_names():
    assert sets_of(["x", "y"], ["alone", "without", "pairs"], [["y", "x"], ["y"]]) == {
        "all": ("x", "y"), "x alone": ("x",), "y alone": ("y",),
    }  # fmt: skip
    assert list(sets_of(["x", "y", "z"], ["without", "pairs"], [["z"]])) == [
        "all", "without x", "without y", "without z", "z",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="role of this run"):
        sets_of(["x", "y"], [], [["w"]])


def test_a_part_of_the_features_has_the_numbers_of_a_run_of_its_own():
    made = experiment(heads=("ridge",))
    rows = ablate(made, ways=["alone", "without"], own=[["x", "y"]])

    assert len(rows) == 7
    for row in rows:
        (cell,) = (c for c in made.cells if c.label == row.head)
        roles = tuple(row.record.features)
        table = made.rated.table.select(roles)
        own = replace(
            made, rated=replace(made.rated, table=table), cells=[replace(cell, roles=roles)]
        )
        alone = evaluate(own)
        assert row.record.splits_sha256 == alone.splits_sha256
        found, other = row.record.heads[0], alone.heads[0]
        assert found.per_split["srcc"] == other.per_split["srcc"]
        for one, same in zip(found.predicted, other.predicted, strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-9)  # memory lies otherwise


def test_a_run_that_was_stopped_goes_on_and_its_table_is_the_same_bytes(tmp_path, monkeypatch):
    made, ways = experiment("scene2"), ["alone", "without", "greedy"]
    whole = table_of(ablate(made, ways=ways))
    done = []

    def stop(told):
        if isinstance(told, Fitted):
            done.append(told)
            if len(done) == 2 * 9 + 1:  # in the first greedy step
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(made, ways=ways, keep=tmp_path, watch=stop)
    finished = {path.name for path in tmp_path.glob("*.json")}
    fits = []
    on_splits = Fits.on_splits
    monkeypatch.setattr(
        Fits, "on_splits", lambda self, *a, **o: fits.append(a[0]) or on_splits(self, *a, **o)
    )
    again = table_of(ablate(made, ways=ways, keep=tmp_path))

    assert again == whole
    cells = {path.name for path in tmp_path.glob("*.json")}
    assert finished < cells
    assert len(fits) == 2 * len(cells - finished)
    fits.clear()
    assert table_of(ablate(made, ways=ways, keep=tmp_path)) == whole
    assert fits == []


def test_the_greedy_way_takes_the_best_first_and_tests_no_test_row_while_choosing():
    made = experiment()
    rows = ablate(made, ways=["greedy"])
    inner = held_out_of_training(made.splits)

    assert [row.features for row in rows] == [
        "all", "greedy 1: x", "greedy 2: x + y", "greedy 3: x + y + z",
    ]  # fmt: skip
    for own, outer in zip(inner.rows, made.splits.rows, strict=True):
        assert set(own.train) | set(own.test) == set(outer.train)
        scenes = [{made.splits.videos[row].scene for row in s} for s in (own.train, own.test)]
        assert not scenes[0] & scenes[1]


def test_gains_are_paired_and_costs_are_of_the_features_that_are_read():
    rows = ablate(experiment(heads=("ridge", "gaussian")), ways=["alone"])
    lines = lines_of([(row.head, row.features, row.record) for row in rows])
    first = {line.head: line for line in lines if line.features == "all"}

    assert first["ridge"].compared is None
    assert first["gaussian"].compared.reference.startswith("ridge on ")
    for line in lines:
        if line.features != "all":
            own = np.array(line.record.heads[0].per_split["srcc"])
            gains = own - first[line.head].record.heads[0].per_split["srcc"]
            assert line.compared.paired.median_gain == np.median(gains)
    costs = {line.features: (line.numbers, line.row_bytes) for line in lines}
    assert costs == {
        "all": (9, 36), "x alone": (3, 12), "y alone": (2, 8), "z alone": (4, 16),
    }  # fmt: skip
    assert {line.features for line in lines if line.is_pareto} == {"all", "x alone", "y alone"}
    read = list(csv.DictReader(table_of(rows).splitlines()))
    assert read[0]["gain"] == ""
    assert all(float(row["gain"]) < 0 for row in read if row["features"] != "all")
    assert table_of(rows, "markdown").count("\n| ") == len(rows) + 1
    assert table_of(rows, "latex").count("\\\\\n") == len(rows) + 1


def test_columns_become_features_with_keys_and_values_of_their_own():
    made = experiment()
    rated = grouped(made.rated, {"z": [(0, 1), (1, 4)]})

    assert rated.table.roles == ("x", "y", "z[0:1]", "z[1:4]")
    whole, part = made.rated.table, rated.table
    for row in range(N):
        assert np.array_equal(part.series("z[1:4]", row), whole.series("z", row)[:, 1:])
    keys = {spec.key for spec in (*whole.specs.values(), *part.specs.values())}
    assert len(keys) == 5
    other = grouped(made.rated, {"z": [(0, 1), (0, 3)]}).table.specs["z[0:3]"]
    assert other.key not in keys
    assert groups_of("z=3", {"z": 4}) == ("z", [(0, 3), (3, 4)])
    assert groups_of("z=0:1,2:4", {"z": 4}) == ("z", [(0, 1), (2, 4)])
    for wrong in ("z=0:5", "w=2", "z=", "z=1:2:3", "z=0", "z=3:3"):
        with pytest.raises(RecipeError, match="--groups"):
            groups_of(wrong, {"z": 4})


def test_a_learning_curve_trains_on_growing_parts_and_tests_the_same():
    made = experiment()
    parts = [with_fraction(made.splits, fraction) for fraction in (0.25, 0.5, 1)]

    for small, half, whole in zip(*(part.rows for part in parts), strict=True):
        assert set(small.train) < set(half.train) < set(whole.train)
        assert len(half.train) == len(whole.train) / 2
        assert np.array_equal(small.test, whole.test)
        assert all({row ^ 1 for row in part.train} == set(part.train) for part in (small, half))
    rows = learning_curve(made, [0.25, 0.5])
    assert [row.features for row in rows] == [
        "0.25 of the training scenes", "0.5 of the training scenes", "all",
    ]  # fmt: skip
    medians = [row.record.heads[0].statistics["srcc"].median for row in rows]
    assert medians[0] < medians[-1]
    assert "0.25 of the scenes are trained on" in rows[0].record.splits


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two data sets in one bank, with a feature that predicts both."""
    folder = tmp_path_factory.mktemp("ablate")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        values = rng.normal(size=(60, 8)).astype(np.float32)
        mos = values[:, 0] + 0.2 * rng.normal(size=60)
        lines = [f"{name}{n:02}.mp4,{score:.4f}" for n, score in enumerate(mos)]
        (folder / f"{name}.csv").write_text("\n".join(["name,mos", *lines]) + "\n")
        savemat(folder / f"{name}.mat", {"feats_mat": values})
        run("import", "feats-mat", folder / f"{name}.mat", "--labels", folder / f"{name}.csv",
            "--bank", folder / "bank", "--name", "f")  # fmt: skip
    return folder


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def ran(bank, *options, labels="one.csv"):
    own = () if labels is None else ("--labels", bank / labels)
    return run(
        "ablate", *own, "--bank", bank / "bank", "--features", "f", "--head", "ridge",
        "--splits", "random6", "--jobs", 1, "--format", "csv", *options,
    )  # fmt: skip


def read(text):
    return list(csv.DictReader(io.StringIO(text[text.index("features,") :])))


def test_the_command_tries_groups_sets_and_parameters(bank, tmp_path):
    rows = read(ran(bank, "--groups", "f=4", "--by", "alone", "--json", tmp_path / "r.jsonl"))
    assert [(row["features"], row["numbers"]) for row in rows] == [
        ("all", "8"), ("f[0:4] alone", "4"), ("f[4:8] alone", "4"),
    ]  # fmt: skip
    assert float(rows[1]["SRCC median"]) > 0.8 > 0.6 > float(rows[2]["SRCC median"])
    assert len(read_records(tmp_path / "r.jsonl")) == 3

    rows = read(ran(bank, "--vary", "ridge.folds=2,3"))
    assert [row["head"] for row in rows] == ["ridge", "ridge folds=2", "ridge folds=3"]
    assert rows[1]["gain"] != ""
    rows = read(ran(bank, "--curve", "0.2"))
    assert [row["features"] for row in rows] == ["0.2 of the training scenes", "all"]


def test_a_matrix_has_every_data_set_trained_on_and_tested(bank):
    files = [f"{name}={bank / name}.csv" for name in ("one", "two")]
    told = ran(bank, "--across", files[0], "--across", files[1], labels=None)
    rows = list(csv.DictReader(io.StringIO(told[told.index("trained on,") :])))

    assert [row["trained on"] for row in rows] == ["one", "two"]
    assert all(float(row[name]) > 0.8 for row in rows for name in ("one", "two"))
    assert len({row[name] for row in rows for name in ("one", "two")}) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "pears"), "pears.*pairs"),
        (("--format", "word"), "word"),
        (("--curve", "2"), "a fraction lies above 0"),
        (("--curve", "a"), "not of the form"),
        (("--vary", "ridge=2"), "HEAD.PARAMETER"),
        (("--vary", "svr.folds=2"), "svr"),
        (("--across", "one=x.csv"), "--across takes files of its own"),
        (("--only", "f,g"), "role of this run"),
        (("--json", "r.json"), "name a .jsonl"),
    ],
)
def test_what_cannot_be_ablated_is_refused(bank, options, message):
    with pytest.raises((RecipeError, UnknownNameError), match=message):
        ran(bank, *options)
