"""Heads of whole series: masks, stacks, streams, checkpoints, weights, what they learn."""

import weakref
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone

from vqbank.regressors import HEADS, batches, load_head, make_head
from vqbank.regressors.alignment import Alignment
from vqbank.regressors.batches import PaddedBatch, Series, Window
from vqbank.regressors.card import read_card
from vqbank.regressors.metrics import srcc
from vqbank.regressors.plan import Fold, Method, Plan
from vqbank.regressors.score_pooling import hysteresis
from vqbank.regressors.standardisation import scalings_of
from vqbank.regressors.training import train
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

QUICK = {
    "gru": {"reduction": 8, "width": 8, "epochs": 4, "patience": 4, "batch_size": 8},
    "mlp": {"width": 8, "epochs": 4, "patience": 4, "batch_size": 8},
    "cagi": {"width": 16, "epochs": 2, "patience": 2, "batch_size": 8, "align": "repeat"},
    "mhsa": {
        "blocks": 1,
        "bottleneck": 4,
        "heads": 2,
        "head_channels": 4,
        "width": 8,
        "epochs": 2,
        "patience": 2,
        "standardise": True,
    },
    "mapnet": {"hidden": 8, "epochs": 4, "patience": 4, "batch_size": 8, "standardise": True},
}
SEQUENCE = sorted(QUICK)
"""Heads of networks that take any features."""


def quick(name, **parameters):
    return make_head(name, **{**QUICK[name], **parameters})


def ragged(n=48, *, seed=0, shapes=(("quality", 5), ("semantic", 3)), longest=12):
    """Videos of 1 to `longest` rows, the same number in every role, and a MOS of their means."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    lengths[:2] = 1, longest
    series = {
        role: [rng.normal(size=(t, d)).astype(np.float32) + rng.normal() for t in lengths]
        for role, d in shapes
    }
    mos = sum(np.array([own.mean() for own in one]) for one in series.values())
    return FeatureTable.from_arrays(videos(n), series), 50 + 10 * mos


def videos(n):
    return [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(n)]


@pytest.fixture(params=SEQUENCE)
def name(request):
    return request.param


# --- masks


def test_neither_order_nor_company_nor_padding_changes_a_score(name):
    table, mos = ragged()
    head = quick(name).fit(table, mos)
    expected = head.predict(table)
    scale = 1e-5 * np.ptp(mos)

    order = np.random.default_rng(1).permutation(len(table))
    np.testing.assert_allclose(head.predict(table.subset(order)), expected[order], atol=scale)
    alone = [head.predict(table.subset([row]))[0] for row in range(len(table))]
    np.testing.assert_allclose(alone, expected, atol=scale)
    longer, _ = ragged(2, seed=5, longest=2000)  # whoever stands beside it is padded to 2000 rows
    both = {role: [table.series(role, 0), longer.series(role, 1)] for role in table.roles}
    beside = head.predict(FeatureTable.from_arrays(videos(2), both))
    np.testing.assert_allclose(beside[0], expected[0], atol=scale)


def test_padding_changes_nothing_that_is_learnt(name):
    """Batches of videos of one length, and the same videos beside much longer ones."""
    table, mos = ragged(40, longest=6)
    head = quick(name)
    networks = []
    for more in (0, 50):
        series = head._series(table)
        rows = np.arange(20)
        series.hold(np.arange(40))
        (window,) = series.windows(rows, rng=np.random.default_rng(0))
        values, masks = window.padded([rows], [None])
        (mask,) = masks.values()
        module = head._network(series.inputs, torch.Generator().manual_seed(0)).train()
        batch = [
            {
                role: torch.nn.functional.pad(one[0], (0, 0, 0, more), value=7.0)
                for role, one in values.items()
            },
            torch.nn.functional.pad(mask[0], (0, more)),
        ]
        predicted = module(PaddedBatch(batch[0], batch[1], torch.tensor(3)))
        head._loss(predicted, torch.from_numpy(mos[rows]).float() / 100).backward()
        networks.append([p.grad for p in module.parameters()])

    for one, other in zip(*networks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- many at once


def test_trained_together_or_alone_is_the_same(name):
    table, mos = ragged()
    heads = [quick(name, seed=seed) for seed in (0, 1, 1)]
    rows = [np.arange(0, 40), np.arange(8, 48), np.arange(0, 48, 2)]
    alone = [clone(h).fit(table.subset(r), mos[r]) for h, r in zip(heads, rows, strict=True)]

    # Processes are started by the next test.
    with joblib.parallel_config("sequential"):
        together = HEADS[name].fit_many([clone(head) for head in heads], table, mos, rows)

    for one, other in zip(alone, together, strict=True):
        assert one.selection_ == other.selection_
        assert one.specs_ == other.specs_
        np.testing.assert_allclose(
            other.predict(table), one.predict(table), atol=1e-5 * np.ptp(mos)
        )


def test_runs_that_do_not_stack_are_a_process_each(monkeypatch, tmp_path):
    table, mos = ragged()
    monkeypatch.setattr("vqbank.regressors.mlp.STACKED_WEIGHTS", 0)
    heads = [quick("mlp", runs=2, activation="relu", seed=seed) for seed in (0, 5)]
    heads[0].checkpoint = tmp_path / "training"
    rows = [np.arange(0, 40), np.arange(8, 48)]
    alone = [
        quick("mlp", activation="relu", seed=head.seed + run).fit(table.subset(own), mos[own])
        for head, own in zip(heads, rows, strict=True)
        for run in range(2)
    ]
    tasks = []
    parallel = joblib.Parallel.__call__

    def kept(self, iterable):
        tasks.extend(iterable)
        return parallel(self, tasks)

    monkeypatch.setattr(joblib.Parallel, "__call__", kept)
    with joblib.parallel_config("sequential"):
        HEADS["mlp"].fit_many(heads, table, mos, rows)

    assert len(tasks) == 4
    states = [head.ensemble_.state["score.weight"][run] for head in heads for run in range(2)]
    for state, one in zip(states, alone, strict=True):
        assert torch.equal(state, one.ensemble_.state["score.weight"][0])
    assert not list(tmp_path.iterdir())


def test_a_head_that_does_not_stack_is_trained_in_processes():
    # Of more than 1 MB in each role, which joblib hands on by memory map.
    table, mos = ragged(shapes=(("quality", 1100), ("semantic", 1200)))
    assert min(table.nbytes(role) for role in table.roles) > 2**20
    rows = [np.arange(0, 40), np.arange(8, 48)]
    heads = [quick("cagi"), quick("cagi")]
    alone = [clone(h).fit(table.subset(r), mos[r]) for h, r in zip(heads, rows, strict=True)]
    told = []
    heads[0].watch = told.append
    heads[0].processes = 2

    together = HEADS["cagi"].fit_many(heads, table, mos, rows)

    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(
            other.predict(table), one.predict(table), atol=1e-5 * np.ptp(mos)
        )
    of_each = sorted((epoch.member, epoch.epoch) for epoch in told)
    assert of_each == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_one_process_is_this_one(monkeypatch):
    table, mos = ragged()
    head = quick("cagi", runs=2)
    head.processes = 1

    def refused(*_arguments, **_more):
        raise AssertionError("a process was started")

    monkeypatch.setattr(joblib, "Parallel", refused)
    head.fit(table, mos)

    assert len(head.record_["metrics"]["epoch"]) == 2


@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_statistics_copy_few_rows_at_a_time(at_once, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 4 * 5 * at_once)  # of rows of 5 values
    table, _ = ragged()
    halves = {
        role: [table.series(role, row).astype(np.float16) for row in range(48)]
        for role in table.roles
    }
    head = quick("gru")
    series = head._series(FeatureTable.from_arrays(table.videos, halves))
    longest = int(series.lengths(np.arange(40)).max())
    copies, to_float = [], torch.Tensor.float

    def tracked(rows):
        copy = to_float(rows)
        if rows.ndim == 3:
            assert rows.shape[0] * rows.shape[1] <= max(at_once * 5 / rows.shape[2], longest)
            assert not any(earlier() is not None for earlier in copies)
            copies.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(torch.Tensor, "float", tracked)
    (scaling,) = scalings_of(series, [np.arange(40)])

    assert copies
    for role in table.roles:
        rows = np.concatenate([halves[role][row] for row in range(40)]).astype(np.float64)
        assert np.allclose(scaling.mean[role], rows.mean(axis=0), atol=1e-5)
        assert np.allclose(scaling.deviation[role], rows.std(axis=0), atol=1e-5)


def test_heads_with_other_parameters_are_fitted_side_by_side():
    table, mos = ragged()
    heads = [quick("mlp", width=4), quick("mlp", width=8), quick("mlp", width=4, seed=1)]

    fitted = type(heads[0]).fit_many(heads, table, mos, [np.arange(48)] * 3)

    assert [head.ensemble_.state["hidden.weight"].shape[1] for head in fitted] == [4, 8, 4]
    with pytest.raises(HeadError, match="constant target"):
        type(heads[0]).fit_many(heads, table, np.ones(48), [np.arange(48)] * 3)


def test_any_head_fits_many():
    table, mos = ragged()
    rows = [np.arange(30), np.arange(10, 48)]

    ridges = HEADS["ridge"].fit_many([make_head("ridge"), make_head("ridge")], table, mos, rows)

    for head, own in zip(ridges, rows, strict=True):
        expected = make_head("ridge").fit(table.subset(own), mos[own])
        assert np.array_equal(head.predict(table), expected.predict(table))


def test_the_validation_part_of_a_split_chooses_the_epoch_and_is_not_trained_on(name):
    table, mos = ragged()
    validation = np.arange(3, 48, 5)
    head = quick(name).fit(table, mos, validation=validation)
    (fold,) = head._folds(table, mos, np.arange(48), validation)

    assert "on 9 of 48 training videos, the validation part of the split" in head.selection_
    assert head.record_["split"]["held_out_videos"] == [9]
    assert fold.held.tolist() == validation.tolist()
    assert fold.fit.tolist() == np.setdiff1d(np.arange(48), validation).tolist()


# --- ensembles


@pytest.mark.parametrize("combine", ["mean", "rank", "zscore"])
def test_an_ensemble_is_its_runs_combined(combine, tmp_path):
    table, mos = ragged(60)
    train = table.subset(range(50))
    ensemble = quick("mlp", runs=3, combine=combine).fit(train, mos[:50])
    alone = [quick("mlp", seed=seed).fit(train, mos[:50]) for seed in range(3)]

    raw = np.stack([(h.predict(table) - h.ensemble_.line[1]) / h.ensemble_.line[0] for h in alone])
    known = np.stack(
        [(h.predict(train) - h.ensemble_.line[1]) / h.ensemble_.line[0] for h in alone]
    )
    match combine:
        case "mean":
            expected = raw.mean(axis=0)
        case "zscore":
            centred = (raw - known.mean(axis=1)[:, None]) / known.std(axis=1)[:, None]
            expected = centred.mean(axis=0)
        case "rank":
            places = [
                (row[None] >= own[:, None]).mean(axis=0)
                for row, own in zip(raw, known, strict=True)
            ]
            expected = np.mean(places, axis=0)
    slope, intercept = ensemble.ensemble_.line
    got = (ensemble.predict(table) - intercept) / slope
    tolerance = 0.03 if combine == "rank" else 1e-4  # ours goes from place to place in a line
    # PLCC leaves the offset of a network free, and rounding moves it.
    got, expected = got - got.mean(), expected - expected.mean()
    np.testing.assert_allclose(got, expected, atol=tolerance * np.ptp(expected))
    assert "epoch" in ensemble.selection_
    assert len(ensemble.record_["metrics"]["epoch"]) == 3
    ensemble.save(tmp_path)
    loaded = load_head(tmp_path)
    assert loaded.predict(table).tobytes() == ensemble.predict(table).tobytes()
    assert loaded.record_ == ensemble.record_


# --- how weights move


class Weighted(torch.nn.Module):
    """A score per video: its first row times one weight per value."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))

    def forward(self, batch):
        """[b]."""
        return batch.values["x"][..., 0, :] @ self.weight


def adamw_by_hand(rows, targets, *, rates, weight_decay):
    """Loshchilov and Hutter's algorithm 2 on the mean squared error, one step per rate."""
    weight = np.array([1.0, -1.0, 0.5])
    first, second = np.zeros(3), np.zeros(3)
    for step, rate in enumerate(rates, 1):
        gradient = 2 * rows.T @ (rows @ weight - targets) / len(targets)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight = weight - rate * (moved + weight_decay * weight)
    return weight


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("decay", "decay_epochs", "factors"),
    [(1.0, 2, [1] * 7), (0.5, 2, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]), (0.1, 3, [1] * 3 + [0.1] * 3
     + [0.01])],
)  # fmt: skip
def test_weights_move_by_the_learning_rate_its_schedule_and_the_weight_decay(
    weight_decay, decay, decay_epochs, factors, tmp_path
):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)).astype(np.float32)
    targets = rows @ [0.3, 0.2, -0.1] + 0.1 * rng.normal(size=40)
    series = Series(
        FeatureTable.from_arrays(videos(40), {"x": list(rows[:, None])}),
        Alignment("exact"),
        average=False,
        budget_bytes=2**20,
        device=torch.device("cpu"),
    )
    plan = Plan(
        epochs=7, patience=7, batch_size=30, learning_rate=0.05, weight_decay=weight_decay,
        decay_epochs=decay_epochs, decay=decay, standardise=False, threads=1,
    )  # fmt: skip
    fold = Fold(np.arange(30), np.arange(30, 40), torch.tensor(targets).float(), seed=0)
    method = Method(lambda _: Weighted(), torch.nn.functional.mse_loss, plan, {})
    train(series, [fold], method, checkpoint=tmp_path / "end")

    expected = adamw_by_hand(
        rows[:30].astype(float), targets[:30], rates=0.05 * np.array(factors),
        weight_decay=weight_decay,
    )  # fmt: skip
    reached = load_file(tmp_path / "end")["0.now.weight"].numpy()
    np.testing.assert_allclose(reached, expected, atol=1e-5)


def test_a_head_gives_its_rates_to_training(name):
    table, mos = ragged()
    rates = {"learning_rate": 3e-3, "weight_decay": 0.25, "decay": 0.5, "decay_epochs": 3}
    plan = quick(name, **rates)._plan

    assert {rate: getattr(plan, rate) for rate in rates} == rates
    one, other = (quick(name, **{**rates, "decay_epochs": epochs}) for epochs in (1, 9))
    predicted = [head.set_params(patience=4, epochs=4).fit(table, mos) for head in (one, other)]
    assert not torch.equal(*(next(iter(head.ensemble_.state.values())) for head in predicted))


# --- memory and interruptions


def test_streaming_learns_as_well_and_predicts_the_same(name):
    table, mos = ragged(300, longest=9)
    unseen, unseen_mos = ragged(100, longest=9, seed=1)
    more = {"activation": "relu"} if name == "mlp" else {}  # else one row per video is held
    head = quick(name, epochs=6, patience=6, learning_rate=1e-2, **more)
    held = clone(head).fit(table, mos)
    budget = {"memory_gib": 20_000 / 2**30}  # of 48 kB; windows of 15 videos
    streamed = clone(head).set_params(**budget)
    assert not streamed._series(table).hold(np.arange(300))

    streamed.fit(table, mos)

    for one in (held, streamed):
        assert srcc(unseen_mos, one.predict(unseen)) > 0.95
    scores = streamed.predict(table)
    in_memory = streamed.set_params(memory_gib=1.0).predict(table)
    np.testing.assert_allclose(scores, in_memory, atol=1e-5 * np.ptp(mos))


def test_runs_that_are_streamed_are_trained_one_after_the_other():
    table, mos = ragged(300, longest=9)
    budget = {"memory_gib": 20_000 / 2**30, "epochs": 2}
    alone = [quick("gru", seed=seed, **budget).fit(table, mos) for seed in range(2)]

    both = quick("gru", runs=2, **budget).fit(table, mos)
    many = HEADS["gru"].fit_many(
        [quick("gru", seed=seed, **budget) for seed in range(2)], table, mos, [np.arange(300)] * 2
    )

    for run, (one, other) in enumerate(zip(alone, many, strict=True)):
        assert torch.equal(
            both.ensemble_.state["score.weight"][run], one.ensemble_.state["score.weight"][0]
        )
        assert torch.equal(
            other.ensemble_.state["score.weight"], one.ensemble_.state["score.weight"]
        )


def test_streamed_statistics_are_those_of_memory():
    table, mos = ragged(300, longest=9)
    options = {"epochs": 1, "memory_gib": 20_000 / 2**30}
    streamed, held = (quick("gru", **more).fit(table, mos) for more in (options, {"epochs": 1}))

    for one, other in zip(streamed.ensemble_.scalings, held.ensemble_.scalings, strict=True):
        for role in table.roles:
            torch.testing.assert_close(one.mean[role], other.mean[role])
            torch.testing.assert_close(one.deviation[role], other.deviation[role])


def test_a_budget_below_a_batch_is_refused():
    table, mos = ragged()
    with pytest.raises(HeadError, match="raise memory_gib, or lower batch_size"):
        quick("gru", memory_gib=1e-9).fit(table, mos)


def uneven():
    """Videos of which one third, one after the other, are twenty times as long as the others."""
    rng = np.random.default_rng(0)
    lengths = [2] * 40 + [40] * 20
    series = {"x": [rng.normal(size=(t, 4)).astype(np.float32) for t in lengths]}
    return FeatureTable.from_arrays(videos(60), series), np.array(
        [own.mean() for own in series["x"]]
    )


def test_windows_keep_their_share_where_long_videos_are_neighbours():
    table, _ = uneven()
    share = 2 * 40 * 4 * 4  # two of the long ones
    series = quick("gru", memory_gib=8 * share / 2**30)._series(table)
    rows = np.arange(60)
    assert not series.hold(rows)

    windows = list(series.windows(rows, rng=np.random.default_rng(0), at_least=2))

    sizes = [16 * series.lengths(window.rows).sum() for window in windows]
    assert max(sizes) <= share
    assert min(len(window.rows) for window in windows) >= 2
    assert sorted(np.concatenate([window.rows for window in windows])) == rows.tolist()
    with pytest.raises(HeadError, match=r"windows of at least 3 videos.*up to 0\.0 MiB"):
        list(series.windows(rows, rng=np.random.default_rng(0), at_least=3))


def test_what_is_read_into_memory_is_read_in_small_parts(monkeypatch):
    table, _ = uneven()
    monkeypatch.setattr("vqbank.regressors.batches.READ_BYTES", 900)  # a long video is of 640 bytes
    read = []
    aligned = Series._aligned

    def kept(self, rows, values):
        read.append(sum(one.nbytes for one, _ in values.values()))
        return aligned(self, rows, values)

    monkeypatch.setattr(Series, "_aligned", kept)
    series = quick("gru")._series(table)
    assert series.hold(np.arange(60))

    assert max(read) <= 900
    (window,) = series.windows(np.arange(60), rng=np.random.default_rng(0))
    for row in range(60):
        np.testing.assert_array_equal(window.series("x", row), table.series("x", row))


def test_predicted_batches_of_all_members_share_the_budget(monkeypatch):
    table, mos = uneven()
    options = {"memory_gib": 60_000 / 2**30, "runs": 3, "batch_size": 2}
    expected = quick("gru", runs=3, batch_size=2).fit(table, mos).predict(table)
    sizes = []
    padded = Window.padded

    def kept(self, members, scalings, chosen):
        values, masks = padded(self, members, scalings, chosen)
        if not torch.is_grad_enabled():
            sizes.append((sum(one.nbytes for one in values.values()), masks["x"].shape[1]))
        return values, masks

    monkeypatch.setattr(Window, "padded", kept)
    head = quick("gru", **options)
    assert head._series(table).hold(np.arange(60))
    scores = head.fit(table, mos).predict(table)

    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.ptp(mos))
    assert max(size for size, count in sizes if count > 1) <= 60_000 / 8
    assert max(count for _, count in sizes) > 1


def test_rows_that_repeat_are_refused():
    table, mos = ragged()
    with pytest.raises(HeadError, match="rows repeat, 40 are given of 20 videos"):
        HEADS["mlp"].fit_many([quick("mlp")], table, mos, [np.repeat(np.arange(20), 2)])


def test_videos_that_are_not_fitted_may_have_no_grid():
    """A test video whose roles have no frame in common is refused when it is predicted."""
    table, mos = ragged()
    for role in table.roles:
        ((rows, _), *_) = table._columns[role].places
        frames = [np.arange(t) for t in table.lengths(role)]
        frames[47] = frames[47] + (100 if role == "semantic" else 0)
        rows._frame_index = frames
    head = quick("mlp", align="frame")

    HEADS["mlp"].fit_many([head], table, mos, [np.arange(40)])

    assert np.isfinite(head.predict(table.subset(range(47)))).all()
    with pytest.raises(
        HeadError, match=r"set/47\.mp4: quality and semantic have no frame in common"
    ):
        head.predict(table)


class Interrupted(Exception):
    pass


def test_an_interrupted_training_in_processes_goes_on_where_it_was(tmp_path):
    table, mos = ragged()
    expected = quick("cagi", runs=3).fit(table, mos).predict(table)
    head = quick("cagi", runs=3)
    head.checkpoint, head.processes = tmp_path / "training", 2
    told = []

    def stop(epoch):
        if epoch.member == 1:
            raise Interrupted

    head.watch = stop
    with joblib.parallel_config("sequential"):
        with pytest.raises(Interrupted):
            head.fit(table, mos)
        assert list(tmp_path.iterdir())
        head.watch = told.append
        head.fit(table, mos)

    assert [(epoch.member, epoch.epoch) for epoch in told] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert head.predict(table).tobytes() == expected.tobytes()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runs", [1, 2])
def test_an_interrupted_training_goes_on_and_comes_to_the_same(name, runs, tmp_path, monkeypatch):
    if runs > 1 and not HEADS[name].stackable:
        pytest.skip("runs are trained in processes, of which the test above is")
    more = {"runs": runs} if runs > 1 else {}
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    table, mos = ragged()
    expected = quick(name, **more).fit(table, mos).predict(table)
    stopped = quick(name, **more)
    stopped.checkpoint = tmp_path / "training"
    seen = []

    def stop(epoch):
        seen.append(epoch.epoch)
        if epoch.epoch == 2:
            raise Interrupted

    stopped.watch = stop
    with pytest.raises(Interrupted):
        stopped.fit(table, mos)
    assert stopped.checkpoint.exists()
    stopped.watch = lambda epoch: seen.append(epoch.epoch)
    stopped.fit(table, mos)

    assert seen[runs + 1] == 2  # the first epoch is not run again
    assert stopped.predict(table).tobytes() == expected.tobytes()
    assert not stopped.checkpoint.exists()


def test_the_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    table, mos = ragged()
    head = quick("mlp")
    head.checkpoint = tmp_path / "training"
    head.watch = _stop_at_the_second
    with pytest.raises(Interrupted):
        head.fit(table, mos)
    head.watch = None

    with pytest.raises(
        HeadError, match="another training, with other scores, held-out rows or start;"
    ):
        head.fit(table, mos + np.arange(48))
    head.checkpoint.write_bytes(b"torn")
    with pytest.raises(HeadError, match="is no checkpoint, or damaged"):
        head.fit(table, mos)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gru", {"loss": "plcc"}),
        ("gru", {"pooling": "min"}),
        ("gru", {"align": "repeat"}),
        ("mlp", {"activation": "relu"}),
        ("mlp", {"dropout": 0.5}),
        ("mlp", {"slots": 3}),
        ("cagi", {"norm_axis": "channel"}),
        ("cagi", {"gate": "before-convolution"}),
    ],
)
def test_the_checkpoint_of_another_parameter_is_refused(name, change, tmp_path, monkeypatch):
    """Of which neither shapes nor rows nor scores tell."""
    table, mos = ragged()
    head = checkpointed(name, table, mos, tmp_path, monkeypatch)
    head.set_params(**change)

    with pytest.raises(HeadError, match=f"another training, with other {next(iter(change))};"):
        head.fit(table, mos)


def test_the_checkpoint_of_other_features_or_videos_is_refused(tmp_path, monkeypatch):
    table, mos = ragged()
    head = checkpointed("gru", table, mos, tmp_path, monkeypatch)
    series = {role: [table.series(role, row) for row in range(48)] for role in table.roles}
    renamed = dict(zip(("quality", "motion"), series.values(), strict=True))
    other = FeatureTable.from_arrays(table.videos, renamed)
    elsewhere = [Video(f"other/{video.id}", video.path, scene=video.id) for video in table.videos]

    moved = FeatureTable.from_arrays(elsewhere, series)
    for made, what in ((other, "features"), (moved, "videos")):
        with pytest.raises(HeadError, match=f"another training, with other {what};"):
            head.fit(made, mos)


def checkpointed(name, table, mos, folder, monkeypatch):
    """A head whose training was interrupted."""
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    head = quick(name)
    head.checkpoint = folder / "training"
    head.watch = _stop_at_the_second
    with pytest.raises(Interrupted):
        head.fit(table, mos)
    head.watch = None
    return head


def test_a_checkpoint_that_cannot_be_written_is_refused_before_training(tmp_path):
    table, mos = ragged()
    (tmp_path / "file").touch()
    head = quick("mlp")
    head.watch = lambda epoch: pytest.fail("was trained")
    head.checkpoint = tmp_path / "file" / "training"

    with pytest.raises(HeadError, match="file/training cannot be written"):
        head.fit(table, mos)


def _stop_at_the_second(epoch):
    if epoch.epoch == 2:
        raise Interrupted


def test_progress_tells_the_srcc_of_held_out_rows(name):
    table, mos = ragged()
    told = []
    head = quick(name)
    head.watch = told.append
    head.fit(table, mos)

    best = max(told, key=lambda epoch: epoch.srcc)
    assert [epoch.epoch for epoch in told] == list(range(1, len(told) + 1))
    assert head.record_["metrics"]["held_out_srcc"] == [best.srcc]
    assert all(one.best_srcc <= two.best_srcc for one, two in pairwise(told))
    assert str(best.epoch) in head.selection_


def test_runs_that_do_not_stack_are_told_apart(monkeypatch):
    table, mos = ragged()
    told = []
    monkeypatch.setattr("vqbank.regressors.parallel.STACK", 2)
    for budget in (1.0, 8_000 / 2**30):  # in two stacks, and streamed one by one
        head = quick("gru", runs=3, epochs=1, batch_size=2, memory_gib=budget)
        head.watch = told.append
        head.fit(table, mos)

    assert [epoch.member for epoch in told] == [0, 1, 2, 0, 1, 2]


def test_the_last_seed_has_runs_beyond_it():
    table, mos = ragged()

    head = quick("mlp", seed=2**31 - 1, runs=2, dropout=0.5, epochs=1).fit(table, mos)

    assert np.isfinite(head.predict(table)).all()


# --- devices


def test_a_head_of_another_device_is_loaded_for_the_processor(name, tmp_path):
    table, mos = ragged()
    head = quick(name).fit(table, mos)
    expected = head.predict(table)
    head.device = "cuda"
    head.save(tmp_path)

    assert "device" not in read_card(tmp_path)["parameters"]
    assert load_head(tmp_path).predict(table).tobytes() == expected.tobytes()


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(device):
    table, mos = ragged()
    with pytest.raises(HeadError, match=f"device '{device}' cannot be used here"):
        quick("mlp", device=device).fit(table, mos)


# --- RQ-VQA's mlp


def test_the_affine_mlp_is_the_mean_over_its_slots():
    table, mos = ragged()
    head = quick("mlp", slots=8, align="repeat").fit(table, mos)
    assert head._average
    weight, bias = head.ensemble_.state["hidden.weight"][0], head.ensemble_.state["hidden.bias"][0]
    second, offset = (
        head.ensemble_.state["score.weight"][0, 0],
        head.ensemble_.state["score.bias"][0, 0],
    )
    scaling = head.ensemble_.scalings[0]
    expected = []
    for row in range(len(table)):
        slots = []
        for slot in range(8):
            parts = []
            for role in table.roles:
                own = torch.tensor(table.series(role, row))
                value = own[min(slot, len(own) - 1)]
                parts.append((value - scaling.mean[role]) / scaling.deviation[role])
            slots.append(second @ (weight @ torch.cat(parts) + bias) + offset)
        expected.append(
            head.ensemble_.line[0] * float(torch.stack(slots).mean()) + head.ensemble_.line[1]
        )

    np.testing.assert_allclose(head.predict(table), expected, atol=1e-4 * np.ptp(mos))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_mlp_with_an_activation_sees_every_row(activation):
    table, mos = ragged()
    head = quick("mlp", activation=activation).fit(table, mos)
    assert not head._average
    spread = FeatureTable.from_arrays(
        videos(1),
        {
            role: [np.float32([[3.0] * d, [-3.0] * d])]
            for role, d in [("quality", 5), ("semantic", 3)]
        },
    )
    mean = FeatureTable.from_arrays(
        videos(1),
        {role: [np.zeros((1, d), np.float32)] for role, d in [("quality", 5), ("semantic", 3)]},
    )
    assert abs(head.predict(spread)[0] - head.predict(mean)[0]) > 1e-3 * np.ptp(mos)


def test_rqvqa_weights_load_in_the_official_order(tmp_path):
    widths = {"spatial": 4, "motion": 2, "qalign": 5}
    rng = np.random.default_rng(0)
    state = {
        "module.quality.0.weight": torch.from_numpy(rng.normal(size=(128, 11))).float(),
        "module.quality.0.bias": torch.from_numpy(rng.normal(size=128)).float(),
        "module.quality.1.weight": torch.from_numpy(rng.normal(size=(1, 128))).float(),
        "module.quality.1.bias": torch.zeros(1),
        "module.swin.norm.weight": torch.ones(3),
    }
    torch.save(state, tmp_path / "v0.pth")
    series = {role: [rng.normal(size=(9, d)).astype(np.float32)] for role, d in widths.items()}
    table = FeatureTable.from_arrays(videos(1), series)
    head = HEADS["mlp"].published(tmp_path / "v0.pth", table)

    flat = np.concatenate([own[0][:8] for own in series.values()], axis=1)
    hidden = (
        flat @ state["module.quality.0.weight"].numpy().T + state["module.quality.0.bias"].numpy()
    )
    expected = (hidden @ state["module.quality.1.weight"].numpy().T).mean()
    assert head.predict(table)[0] == pytest.approx(expected, abs=1e-4)
    head.save(tmp_path / "head")
    assert load_head(tmp_path / "head").predict(table)[0] == head.predict(table)[0]

    own = {"standardise": True, "runs": 10, "combine": "rank"}  # of heads that are fitted
    again = HEADS["mlp"].published(tmp_path / "v0.pth", table, **own)
    assert again.predict(table)[0] == head.predict(table)[0]
    with pytest.raises(HeadError, match="was fitted with combine 'mean'; fit it again"):
        head.set_params(combine="zscore").predict(table)

    with pytest.raises(HeadError, match=r"hidden\.weight has shape"):
        HEADS["mlp"].published(tmp_path / "v0.pth", table.select(["spatial"]))
    for text in ("no weights", ""):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(HeadError, match="is no checkpoint of mlp's paper"):
            HEADS["mlp"].published(tmp_path / "text.pth", table)


# --- VSFA's gru


def test_vsfa_published_weights_load(shared_data):
    table = FeatureTable.from_arrays(videos(1), {"semantic": [np.zeros((1, 4096), np.float16)]})
    head = HEADS["gru"].published(shared_data / "data" / "weights" / "VSFA.pt", table)

    assert {name: tuple(value.shape[1:]) for name, value in head.ensemble_.state.items()} == {
        "reduce.weight": (128, 4096),
        "reduce.bias": (128,),
        "recurrent.weight_ih_l0": (96, 128),
        "recurrent.weight_hh_l0": (96, 32),
        "recurrent.bias_ih_l0": (96,),
        "recurrent.bias_hh_l0": (96,),
        "score.weight": (1, 32),
        "score.bias": (1,),
    }


# --- files


def test_tensors_of_another_shape_are_refused(name, tmp_path):
    table, mos = ragged()
    head = quick(name).fit(table, mos)
    head.save(tmp_path)
    (path,) = tmp_path.glob("model-*.safetensors")
    tensors = load_file(path)
    for change in (
        "line",
        f"scaling.{table.roles[0]}.mean",
        min(k for k in tensors if "network" in k),
    ):
        other = {key: value for key, value in tensors.items() if key != change}
        save_file(other, tmp_path / "other")
        with pytest.raises(HeadError, match="damaged"):
            clone(head).__class__.load(tmp_path)._restore((tmp_path / "other").read_bytes(), path)


# --- bad input


def test_a_value_that_is_not_finite_is_named(name):
    table, mos = ragged()
    series = {role: [table.series(role, row).copy() for row in range(48)] for role in table.roles}
    series["semantic"][7][-1, 1] = np.nan
    bad = FeatureTable.from_arrays(table.videos, series)
    last = len(series["semantic"][7]) - 1
    message = rf"semantic of set/7\.mp4 is not finite in row {last}"

    with pytest.raises(HeadError, match=message):
        quick(name).fit(bad, mos)
    with pytest.raises(HeadError, match=message):
        quick(name).fit(table, mos).predict(bad)


def test_videos_of_one_row_and_of_two_thousand_are_learnt_from(name):
    rng = np.random.default_rng(0)
    lengths = [1] * 24 + [2000, 1999]
    mos = rng.normal(size=26)
    series = {
        role: [
            rng.normal(size=(t, 3)).astype(np.float32) + m
            for t, m in zip(lengths, mos, strict=True)
        ]
        for role in ("quality", "semantic")
    }
    table = FeatureTable.from_arrays(videos(26), series)

    assert np.isfinite(quick(name, epochs=1).fit(table, mos).predict(table)).all()


def test_training_rows_that_share_one_score_are_refused(name):
    table, _ = ragged(20)
    mos = np.full(20, 3.0)
    mos[5] = 4.0

    with pytest.raises(HeadError, match="rows share one MOS"):
        quick(name).fit(table, mos)


def test_training_that_diverges_is_refused():
    table, mos = ragged()
    with pytest.raises(HeadError, match=r"diverged in epoch 1; lower the learning rate"):
        quick("mlp", learning_rate=1e38).fit(table, mos)


# --- what they learn


def moments(n, rng):
    """Series of noise with a hidden channel, whose hysteresis-pooled course is the quality.

    The mean of the channel is the same for all videos: what is bad is bad for a moment.
    """
    course = rng.normal(size=(n, 60)).astype(np.float32) * 0.2
    for row in range(n):
        depth, begin = rng.uniform(0, 4), rng.integers(0, 45)
        course[row, begin : begin + 15] -= depth
        course[row] -= course[row].mean()
    mask = torch.ones(n, 60, dtype=torch.bool)
    quality = hysteresis(torch.from_numpy(course), mask).mean(dim=1).numpy()
    mixing = np.linalg.qr(np.random.default_rng(9).normal(size=(6, 6)))[0]
    hidden = np.concatenate([course[..., None], rng.normal(size=(n, 60, 5))], axis=2)
    return (hidden @ mixing).astype(np.float32), quality.astype(np.float64)


def test_gru_finds_bad_moments_that_the_mean_hides():
    series, quality = moments(260, np.random.default_rng(0))
    table = FeatureTable.from_arrays(videos(260), {"x": list(series)})
    train, test = np.arange(200), np.arange(200, 260)
    found = {}
    for name, parameters in {
        "gru": {"learning_rate": 5e-3, "reduction": 16, "width": 16, "epochs": 25},
        "mlp": {},
    }.items():
        head = make_head(name, **parameters).fit(table.subset(train), quality[train])
        found[name] = srcc(quality[test], head.predict(table.subset(test)))

    assert found["gru"] > found["mlp"] + 0.05
    assert found["gru"] > 0.8


@pytest.mark.parametrize("name", SEQUENCE)
def test_of_noise_nothing_is_learnt_that_a_test_would_show(name):
    """Mean test SRCC of eight heads; by chance it is within 3 / sqrt(8 x 39)."""
    table, _ = ragged(120, longest=4)
    found = []
    for seed in range(8):
        noise = np.random.default_rng(seed).normal(size=120)
        order = np.random.default_rng(100 + seed).permutation(120)
        train, test = order[:80], order[80:]
        head = quick(name, epochs=8, patience=8, learning_rate=5e-3).fit(
            table.subset(train), noise[train]
        )
        found.append(srcc(noise[test], head.predict(table.subset(test))))

    assert abs(np.mean(found)) < 3 / np.sqrt(8 * 39)
