"""What is seen of training: event files if asked for, and a command that can be interrupted."""

import csv
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fitting import Fitted, evaluated, watched
from vqbank.pipelines.experiments.train import train
from vqbank.pipelines.recipe import read_recipe
from vqbank.pipelines.runs.train import TrainPlan
from vqbank.regressors import load_head
from vqbank.regressors.checkpoint import Journal
from vqbank.regressors.member import Member
from vqbank.regressors.progress import Cost, Epoch, Step
from vqbank.store.bank import FeatureStore
from vqbank.store.documents import yaml_text
from vqbank.store.errors import RecipeError, VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint


@pytest.fixture
def recipe(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    writer = store.writer(FeatureSpec("some.rows", (4,), "float32", {"source": "a"}), provenance={})
    rng = np.random.default_rng(0)
    with (tmp_path / "set.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "id", "mos"])
        for row in range(30):
            score = rng.normal()
            values = (score + rng.normal(size=(3, 4))).astype(np.float32)
            writer.add(
                f"{row}.mp4",
                Feature(values, np.arange(3.0), np.arange(3)),
                fingerprint=Fingerprint(row + 1, f"{row:064x}"),
                probe={},
            )
            table.writerow([f"{row}.mp4", f"{row}.mp4", f"{score:.4f}"])
    writer.commit()
    (tmp_path / "run.yaml").write_text(
        yaml_text(
            {
                "videos": "set.csv",
                "bank": "bank",
                "features": {"x": "some.rows"},
                "heads": {"gru": {"epochs": 4, "reduction": 4, "width": 4, "runs": 2}},
            }
        )
    )
    return read_recipe(tmp_path / "run.yaml")


def curve(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(name)]


def test_tensorboard_gets_the_curves_of_every_run(recipe, tmp_path):
    train(
        Experiment.of(recipe, title="t"),
        tmp_path / "head",
        recipe=recipe,
        tensorboard=tmp_path / "logs",
    )

    record = load_head(tmp_path / "head").record_["metrics"]
    for run in range(2):
        srcc = curve(tmp_path / "logs" / f"run-{run + 1}", "held-out SRCC")
        assert [step for step, _ in srcc] == [1, 2, 3, 4]
        best = dict(srcc)[record["epoch"][run]]
        assert best == pytest.approx(record["held_out_srcc"][run], abs=1e-6)
        assert len(curve(tmp_path / "logs" / f"run-{run + 1}", "loss")) == 4


@pytest.mark.parametrize("stops", [False, True])
def test_the_head_of_an_experiment_stays_as_it_was_and_a_trained_one_tells_nobody(
    recipe, tmp_path, stops
):
    def watch(told):
        if stops:
            raise KeyboardInterrupt

    experiment = Experiment.of(recipe, title="t")
    (cell,) = experiment.cells
    before = dict(vars(cell.head))
    if stops:
        with pytest.raises(KeyboardInterrupt):
            train(experiment, tmp_path / "head", recipe=recipe, watch=watch)
    else:
        fitted = train(experiment, tmp_path / "head", recipe=recipe, watch=watch)
        assert fitted is not cell.head
        assert (fitted.watch, fitted.checkpoint) == (None, None)

    assert vars(cell.head) == before


@pytest.mark.parametrize(
    ("change", "tensorboard", "message"),
    [
        ({"heads": {"ridge": {}, "svr": {}}}, None, "one head is shipped, not ridge, svr"),
        ({"heads": {"ridge": {}}}, "logs", "--tensorboard shows epochs, and ridge has none"),
        ({"folder": "bank"}, None, "bank"),
    ],
)
def test_a_plan_of_training_refuses_before_videos_are_read(
    recipe, tmp_path, monkeypatch, change, tensorboard, message
):
    monkeypatch.setattr("vqbank.pipelines.runs.train.experiment_of", None)
    folder = tmp_path / change.pop("folder", "head")
    logs = None if tensorboard is None else tmp_path / tensorboard
    with pytest.raises(VqbankError, match=message):
        TrainPlan.of(recipe.model_copy(update=change), folder, title="t", tensorboard=logs)


def test_nothing_is_logged_unless_asked_for(recipe, tmp_path):
    before = {path.name for path in tmp_path.iterdir()}

    train(Experiment.of(recipe, title="t"), tmp_path / "head", recipe=recipe)

    assert {path.name for path in tmp_path.iterdir()} == before | {"head"}


def test_an_interrupted_command_goes_on_from_its_checkpoint(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    expected = Experiment.of(recipe, title="t")
    train(expected, tmp_path / "expected", recipe=recipe)
    seen = []
    with interrupted_after_an_epoch(monkeypatch), pytest.raises(KeyboardInterrupt):
        train(Experiment.of(recipe, title="t"), tmp_path / "head", recipe=recipe)
    assert (tmp_path / "head.checkpoint").exists()
    monkeypatch.setattr("vqbank.regressors.member.Member.judge", _counting(seen))
    train(Experiment.of(recipe, title="t"), tmp_path / "head", recipe=recipe)

    assert len(seen) == 2 * 3  # of two runs the epochs after the first
    assert not (tmp_path / "head.checkpoint").exists()
    one, other = (load_head(tmp_path / name) for name in ("expected", "head"))
    assert all(
        torch.equal(one.ensemble_.state[name], other.ensemble_.state[name])
        for name in one.ensemble_.state
    )


@contextmanager
def interrupted_after_an_epoch(monkeypatch):
    keep = Journal.keep

    def keep_and_die(self, *, now=False):
        keep(self, now=now)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vqbank.regressors.checkpoint.Journal.keep", keep_and_die)
        yield


@pytest.mark.parametrize("folder", ["new/folders/head", "."])
def test_a_head_goes_into_folders_that_are_not_there_and_into_the_one_one_is_in(
    recipe, folder, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    train(Experiment.of(recipe, title="t"), Path(folder), recipe=recipe)

    assert load_head(Path(folder)).name == "gru"
    assert not list(tmp_path.rglob("*.checkpoint*"))


def test_event_files_of_a_head_without_epochs_are_refused(recipe, tmp_path):
    ridge = recipe.model_copy(update={"heads": {"ridge": {}}})

    with pytest.raises(RecipeError, match="--tensorboard shows epochs, and ridge has none"):
        train(
            Experiment.of(ridge, title="t"), tmp_path / "head", recipe=ridge, tensorboard=tmp_path
        )
    assert not (tmp_path / "head").exists()


def _counting(seen):
    judge = Member.judge

    def judged(self, *arguments):
        seen.append(self.number)
        judge(self, *arguments)

    return judged


def test_an_interrupted_command_says_where_it_goes_on(recipe, tmp_path, monkeypatch, capsys):
    with interrupted_after_an_epoch(monkeypatch), pytest.raises(SystemExit) as ended:
        app(["train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "head")])
    assert ended.value.code == 130
    place = f"{tmp_path / 'head.checkpoint'} (remove head.checkpoint* to start anew)"
    assert f"stopped; the same command goes on from {place}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        app(["train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "head")])

    assert ended.value.code == 0
    assert f"going on from {place}" in capsys.readouterr().err
    assert load_head(tmp_path / "head").name == "gru"
    assert not list(tmp_path.glob("head.checkpoint*"))


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("vqbank.pipelines.experiments.fitting.LOG_SECONDS", 0.0)
    epoch = Epoch(0, 3, 9, 0.5, 0.25, 2, 0.5)

    def run(watch):
        watch(epoch)
        watch(Fitted("gru", 0))
        return "record"

    with watched("gru") as watch:
        watch(epoch)
    assert evaluated(run, total=2) == "record"

    text = "network 1, epoch 3 of 9, held-out SRCC 0.250, best 0.500"
    lines = [f"gru: {text}", f"evaluate: 0 of 2 fits; {text}", "evaluate: 1 of 2 fits"]
    assert capsys.readouterr().err.splitlines() == lines


def test_progress_takes_every_epoch(capsys):
    with watched("gru") as watch:
        for epoch in range(1, 4):
            watch(Epoch(0, epoch, 3, 0.5, float("nan"), 0, -float("inf")))

    assert capsys.readouterr().err == ""  # no terminal, no noise


def test_what_fits_will_cost_is_told_before_they_begin(capsys):
    def run(watch):
        watch(Cost("svr", 31_049, 3300.0, 10, 33_000 / 2))
        watch(Step("svr", 3, 31, "point 4 of 10"))
        return "record"

    assert evaluated(run, total=10) == "record"
    assert capsys.readouterr().err.splitlines() == [
        "svr: a fit on 31049 videos takes about 55 min, all 10 about 4.6 h"
    ]


def test_a_head_that_takes_long_is_trained_in_a_process_and_comes_to_the_same(
    recipe, tmp_path, monkeypatch, capsys
):
    svr = recipe.model_copy(update={"heads": {"svr": {}}})
    here = train(Experiment.of(svr, title="t"), tmp_path / "here", recipe=svr)
    monkeypatch.setattr("vqbank.pipelines.experiments.fits.LONG_OPERATIONS", 0.0)
    made = Experiment.of(svr, title="t")
    with watched("svr") as watch:
        there = train(made, tmp_path / "there", recipe=svr, watch=watch)

    assert "svr: a fit on 30 videos takes about 1 s" in capsys.readouterr().err
    assert there.selection_ == here.selection_
    assert there.predict(made.rated.table).tobytes() == here.predict(made.rated.table).tobytes()
