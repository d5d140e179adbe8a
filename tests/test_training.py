"""The one training loop: what it trains and leaves alone, by which steps, and what it keeps."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from torch import nn
from torch.nn.functional import mse_loss

from vqbank.regressors import make_head
from vqbank.regressors.alignment import Alignment
from vqbank.regressors.batches import Input, Series
from vqbank.regressors.layers import Frozen, dropout, learnt, linear
from vqbank.regressors.losses import LOSSES
from vqbank.regressors.plan import Fold, Method, Plan
from vqbank.regressors.sequence import SequenceHead
from vqbank.regressors.training import train
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

RATE = 0.05


def table_of(series):
    count = len(next(iter(series.values())))
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(count)]
    return FeatureTable.from_arrays(videos, series)


def some(n=40, *, rows=1, width=3, seed=0):
    """Videos of one length, and targets that their rows hold linearly, between 0 and 1."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, rows, width)).astype(np.float32)
    targets = values.mean(axis=1) @ np.linspace(0.1, 0.3, width) + 0.02 * rng.normal(size=n)
    return values, (targets - targets.min()) / np.ptp(targets)


def series_of(values):
    return Series(
        table_of({"x": list(values)}),
        Alignment("exact"),
        average=False,
        budget_bytes=2**24,
        device=torch.device("cpu"),
    )


def plan(**given):
    usual = {
        "epochs": 4, "patience": 9, "batch_size": 40, "learning_rate": RATE, "weight_decay": 0.1,
        "decay_epochs": 9, "decay": 1.0, "standardise": False, "threads": 1,
    }  # fmt: skip
    return Plan(**{**usual, **given})


class Line(nn.Module):
    """One linear layer, and the mean over rows."""

    def __init__(self, width=3, *, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layer = linear(width, 1, generator=draw)

    def forward(self, batch):
        return self.layer(batch.rows)[..., 0].mean(dim=1)


def trained(network, values, targets, given, *, loss=mse_loss, fit=30, **more):
    """One network, trained for all epochs of a plan on the first rows."""
    held = np.arange(fit, len(values))
    fold = Fold(np.arange(fit), held, torch.tensor(targets).float(), seed=0, epochs=given.epochs)
    method = Method(lambda _: network(), loss, given, {}, **more)
    (one,) = train(series_of(values), [fold], method)
    return one.state


def by_torch(values, targets, optimizer, rates, *, clip=None, averaging=None, fit=30):
    """The same by PyTorch's optimiser, all rows in every step; what was learnt, and its average."""
    network = Line()
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    stepped = optimizer(network.parameters())
    x, y = torch.tensor(values[:fit]), torch.tensor(targets[:fit]).float()
    for rate in rates:
        stepped.param_groups[0]["lr"] = rate
        stepped.zero_grad()
        mse_loss(network.layer(x)[..., 0].mean(dim=1), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        stepped.step()
        for name, value in network.named_parameters():
            if averaging is not None:
                average[name] += (1 - averaging) * (value.detach() - average[name])
    return dict(network.named_parameters()) if averaging is None else average


# --- steps


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("averaging", [None, 0.8])
def test_steps_are_those_of_pytorchs_optimisers(optimizer, clip, averaging):
    values, targets = some()
    given = plan(optimizer=optimizer, clip_norm=clip, averaging=averaging)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimizer]

    state = trained(Line, values, targets, given)

    expected = by_torch(
        values, targets, lambda own: kind(own, weight_decay=0.1), [RATE] * 4, clip=clip,
        averaging=averaging,
    )  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.detach(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "factors"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "step", "decay": 0.5, "decay_epochs": 2}, [1, 1, 0.5, 0.5]),
        ({"schedule": "step", "decay": 0.5, "decay_epochs": 1, "warmup_epochs": 2},
         [0, 0.5, 0.25, 0.125]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
        ({"schedule": "cosine", "warmup_epochs": 2}, [0, 0.5, 1, 0.5]),
        # Of one step per epoch, half a one is none.
        ({"schedule": "cosine", "warmup_epochs": 0.5},
         [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
    ],
)  # fmt: skip
def test_the_learning_rate_goes_by_the_schedule_that_is_named(given, factors):
    values, targets = some()

    state = trained(Line, values, targets, plan(**given))

    expected = by_torch(
        values, targets, lambda own: torch.optim.AdamW(own, weight_decay=0.1),
        [RATE * factor for factor in factors],
    )  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.detach(), atol=2e-6, rtol=0)


def test_schedules_go_step_by_step_within_an_epoch(monkeypatch):
    values, targets = some(46)
    rates = []
    rate = Plan.rate
    monkeypatch.setattr(Plan, "rate", lambda *given: rates.append(rate(*given)) or rates[-1])

    trained(Line, values, targets, plan(batch_size=10, schedule="cosine", warmup_epochs=1), fit=40)

    expected = [k / 4 for k in range(4)]
    expected += [(1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]
    np.testing.assert_allclose(rates, RATE * np.array(expected), atol=1e-9)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_batch_in_parts_takes_the_steps_of_the_whole(name):
    values, targets = some()

    whole = trained(Line, values, targets, plan(), loss=LOSSES[name])
    parts = trained(Line, values, targets, plan(forward_videos=7), loss=LOSSES[name])

    # Of a correlation the bias has no gradient but rounding, which Adam makes steps of.
    torch.testing.assert_close(whole["layer.weight"], parts["layer.weight"], atol=3e-5, rtol=0)


def test_a_part_of_a_batch_has_the_same_noise_each_time_and_no_other_part_has():
    values, targets = some()
    dropped = []

    class Noisy(Line):
        def forward(self, batch):
            rows = batch.rows
            if self.training:
                rows = dropout(rows, 0.5, batch.noise)
                dropped.append((rows == 0).numpy().tobytes())
            return self.layer(rows)[..., 0].mean(dim=1)

    trained(Noisy, values, targets, plan(forward_videos=10, epochs=2))

    first, second = dropped[:3], dropped[6:9]
    assert dropped == [*first, *first, *second, *second]
    assert len({*first, *second}) == 6


def test_mixed_precision_keeps_weights_and_losses_in_float32():
    values, targets = some(width=64)
    seen = []

    class Wide(Line):
        def __init__(self):
            super().__init__(64)

        def forward(self, batch):
            scores = super().forward(batch)
            seen.append(self.layer(batch.rows).dtype)
            return scores

    def loss(predicted, target):
        assert predicted.dtype == torch.float32
        return mse_loss(predicted, target)

    usual = trained(Wide, values, targets, plan(), loss=loss)
    mixed = trained(Wide, values, targets, plan(precision="bfloat16"), loss=loss)

    assert {torch.float32, torch.bfloat16} == set(seen)
    assert {value.dtype for value in mixed.values()} == {torch.float32}
    assert not torch.equal(usual["layer.weight"], mixed["layer.weight"])
    torch.testing.assert_close(usual["layer.weight"], mixed["layer.weight"], atol=0.1, rtol=0)


# --- what is learnt


@dataclass(kw_only=True, eq=False, repr=False)
class Mine(SequenceHead):
    """A head on what a network is."""

    name: ClassVar[str] = "mine"
    stackable: ClassVar[bool] = False
    network: ClassVar[type[nn.Module]]
    align: str = "exact"
    epochs: int = 3
    patience: int = 3
    batch_size: int = 8
    learning_rate: float = RATE
    weight_decay: float = 0.1
    standardise: bool = False

    def _network(self, inputs, generator):
        return self.network(inputs, generator)

    def _loss(self, predicted, target):
        return mse_loss(predicted, target)


class OnTower(nn.Module):
    """A layer behind a tower of a million weights that are not its own."""

    def __init__(self, inputs, generator):
        super().__init__()
        width = inputs["x"].width
        fixed = torch.Generator().manual_seed(5)
        tower = nn.Sequential(
            linear(width, 1000, generator=fixed),
            nn.BatchNorm1d(1000),
            linear(1000, 1000, generator=fixed),
        )
        self.tower = Frozen(tower)
        self.idle = nn.Parameter(torch.ones(3), requires_grad=False)
        self.layer = linear(1000, 1, generator=generator)

    def forward(self, batch):
        rows = self.tower(batch.rows.flatten(0, 1)).unflatten(0, batch.mask.shape)
        return self.layer(rows)[..., 0].mean(dim=1)


class Normalised(nn.Module):
    """Batch normalisation before a layer."""

    def __init__(self, inputs, generator):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs["x"].width)
        self.layer = linear(inputs["x"].width, 1, generator=generator)

    def forward(self, batch):
        return self.layer(self.norm(batch.rows.mean(dim=1)))[:, 0]


def head_of(network, **given):
    kind = type("Own", (Mine,), {"network": network, "__module__": __name__})
    return kind(**given)


def test_what_is_frozen_is_neither_trained_nor_given_moments_nor_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    values, targets = some()
    made, checkpoints = [], []

    class Known(OnTower):
        def __init__(self, inputs, generator):
            super().__init__(inputs, generator)
            made.append(self)

    head = head_of(Known)
    head.checkpoint = tmp_path / "checkpoint"
    head.watch = lambda told: (
        checkpoints.append(load_file(head.checkpoint)) if told.epoch > 1 else None
    )

    head.fit(table_of({"x": list(values)}), targets)

    fresh = OnTower({"x": Input((3,), torch.float32)}, torch.Generator()).state_dict()
    frozen = [name for name in fresh if not name.startswith("layer.")]
    assert len(frozen) == 10  # two layers, a normalisation with its count, `idle`
    for network in made:
        assert all(torch.equal(network.state_dict()[name], fresh[name]) for name in frozen)
    kinds = {"now", "best", "first", "second", "count"}
    expected = {f"0.{kind}.layer.{name}" for kind in kinds for name in ("weight", "bias")}
    assert len(checkpoints) == 2
    assert all(kept.keys() == expected | {"0.generator"} for kept in checkpoints)
    assert set(head.ensemble_.state) == {"layer.weight", "layer.bias"}
    assert len(head.ensemble_.content()) < 10_000
    again = head._network(head._inputs(head.specs_), torch.Generator().manual_seed(1))
    assert set(learnt(again)) == {"layer.weight", "layer.bias"}
    again.train()
    assert not any(part.training for part in again.tower.modules())


def test_a_head_on_a_frozen_tower_predicts_the_same_after_loading(tmp_path):
    values, targets = some()
    table = table_of({"x": list(values)})
    head = head_of(OnTower).fit(table, targets)
    head.save(tmp_path)

    loaded = type(head).load(tmp_path)

    assert loaded.predict(table).tobytes() == head.predict(table).tobytes()


def test_running_statistics_are_those_of_pytorch_and_are_kept(tmp_path):
    values, targets = some(n=38)
    table = table_of({"x": list(values)})
    head = head_of(Normalised, batch_size=40, selection="fixed", epochs=5).fit(table, targets)

    mean, variance = torch.zeros(3), torch.ones(3)
    rows = torch.tensor(values).mean(dim=1)
    for _ in range(5):  # all videos in every batch
        mean = 0.9 * mean + 0.1 * rows.mean(dim=0)
        variance = 0.9 * variance + 0.1 * rows.var(dim=0)
    torch.testing.assert_close(head.ensemble_.state["norm.running_mean"][0], mean)
    torch.testing.assert_close(head.ensemble_.state["norm.running_var"][0], variance)
    head.save(tmp_path)
    loaded = type(head).load(tmp_path)
    assert loaded.predict(table).tobytes() == head.predict(table).tobytes()
    alone = [head.predict(table.subset([row]))[0] for row in range(5)]
    np.testing.assert_allclose(alone, head.predict(table)[:5], rtol=1e-5)


def test_running_statistics_take_a_batch_in_parts_once_for_each_part():
    values, targets = some(n=32)
    table = table_of({"x": list(values)})
    given = {"batch_size": 40, "selection": "fixed", "epochs": 1, "forward_videos": 16}
    head = head_of(Normalised, **given).fit(table, targets)

    draw = torch.Generator().manual_seed(0)
    head._network(head._inputs(head.specs_), draw)  # what the start takes of the generator
    shuffled = torch.tensor(values).mean(dim=1)[torch.randperm(32, generator=draw)]
    mean = torch.zeros(3)
    for part in shuffled.split(16):
        mean = 0.9 * mean + 0.1 * part.mean(dim=0)
    torch.testing.assert_close(head.ensemble_.state["norm.running_mean"][0], mean)


def test_running_statistics_do_not_stack():
    values, targets = some()
    head = head_of(Normalised, runs=2)
    type(head).stackable = True
    with pytest.raises(HeadError, match="says `stackable = False`"):
        head.fit(table_of({"x": list(values)}), targets)


def test_training_goes_on_from_a_checkpoint_with_averages_and_statistics(tmp_path):
    values, targets = some()
    table = table_of({"x": list(values)})
    given = {
        "averaging": 0.9,
        "schedule": "cosine",
        "warmup_epochs": 1.5,
        "epochs": 6,
        "patience": 6,
    }
    whole = head_of(Normalised, **given).fit(table, targets)

    class Enough(Exception):
        pass

    def stop(told):
        if told.epoch == 4:
            raise Enough

    cut = clone(whole)
    cut.checkpoint = tmp_path / "checkpoint"
    cut.watch = stop
    with pytest.raises(Enough):
        cut.fit(table, targets)
    assert cut.checkpoint.exists()
    told = []
    cut.watch = told.append
    cut.fit(table, targets)

    assert told[0].epoch > 1
    assert cut.predict(table).tobytes() == whole.predict(table).tobytes()
    for name, value in whole.ensemble_.state.items():
        assert torch.equal(value, cut.ensemble_.state[name])


# --- what a network gets


def test_a_network_gets_rows_in_their_own_shape_and_dtype():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (2, 4, 5), dtype=np.uint8) for _ in range(20)]
    halves = [rng.normal(size=(2,)).astype(np.float16) for _ in range(20)]
    table = table_of({"pixels": pixels, "halves": halves})
    told, seen = [], []

    class Sees(nn.Module):
        def __init__(self, inputs, generator):
            super().__init__()
            told.append({role: (one.shape, one.dtype) for role, one in inputs.items()})
            self.layer = linear(21, 1, generator=generator)

        def forward(self, batch):
            seen.append({r: (v.shape[2:], v.dtype) for r, v in batch.values.items()})
            assert batch.rows.dtype == torch.float32
            return self.layer(batch.rows)[..., 0].mean(dim=1)

    head = head_of(Sees, align="repeat").fit(table, np.arange(20.0))

    expected = {"pixels": ((4, 5), torch.uint8), "halves": ((), torch.float16)}
    assert all(one == expected for one in told)
    assert all(one == expected for one in seen)
    assert np.isfinite(head.predict(table)).all()


def test_of_what_is_standardised_a_network_is_told_float32():
    values, targets = some()
    table = table_of({"x": list(values.astype(np.float16))})
    head = head_of(OnTower, standardise=True).fit(table, targets)
    assert head._inputs(head.specs_)["x"].dtype == torch.float32


def first_at_last(length, rng):
    """One drawn row in training, else the first two."""
    return np.arange(min(length, 2)) if rng is None else rng.integers(0, length, 1)


def test_a_head_chooses_the_rows_that_a_step_sees():
    values, targets = some(rows=6)
    seen = {True: [], False: []}

    class Watching(Line):
        def forward(self, batch):
            seen[self.training].append(batch.rows.detach().clone())
            return super().forward(batch)

    given = plan(epochs=30)
    state = trained(Watching, values, targets, given, choose={"x": first_at_last})
    again = trained(Watching, values, targets, given, choose={"x": first_at_last})

    assert {rows.shape[1] for rows in seen[True]} == {1}
    assert {rows.shape[1] for rows in seen[False]} == {2}
    flat = {row.tobytes() for row in values[:30].reshape(-1, 3)}
    drawn = {row.numpy().tobytes() for rows in seen[True] for row in rows.reshape(-1, 3)}
    assert drawn <= flat
    assert len(drawn) > 0.95 * len(flat)
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_rows_that_are_not_there_cannot_be_chosen():
    values, targets = some(rows=2)
    with pytest.raises(HeadError, match=r"of 2 rows a step cannot see \[2\]"):
        trained(Line, values, targets, plan(), choose={"x": lambda length, _: np.array([length])})


# --- what is kept


def test_of_a_fixed_number_of_epochs_the_last_is_kept_and_all_rows_are_fitted():
    values, targets = some(n=30)
    table = table_of({"x": list(values)})
    network = lambda inputs, generator: Line()  # noqa: E731  # of the head's own signature
    head = head_of(staticmethod(network), selection="fixed", epochs=4, batch_size=40)

    head.fit(table, targets)

    expected = by_torch(
        values, targets, lambda own: torch.optim.AdamW(own, weight_decay=0.1), [RATE] * 4
    )
    for name, value in expected.items():
        torch.testing.assert_close(head.ensemble_.state[name][0], value.detach(), atol=2e-6, rtol=0)
    assert head.selection_ == "the last of 4 epochs on all 30 training videos"
    assert head.record_["metrics"] == {"epoch": [4], "held_out_srcc": [None]}
    assert head.held_out(table.videos) == []


@pytest.mark.parametrize("runs", [1, 2])
def test_a_refit_that_was_stopped_in_its_second_training_does_not_repeat_the_first(
    runs, tmp_path, monkeypatch
):
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    values, targets = some(n=30)
    table = table_of({"x": list(values)})
    told = []

    def fitted(*, stop=None, checkpoint=tmp_path / "it"):
        head = head_of(
            OnTower, selection="refit", epochs=6, patience=6, learning_rate=0.02, runs=runs
        )
        head.processes, head.checkpoint = 1, checkpoint
        told.clear()

        def watch(epoch):
            told.append(epoch)
            if len(told) == stop:
                raise KeyboardInterrupt

        head.watch = watch
        return head.fit(table, targets)

    whole = fitted(checkpoint=None)
    every = len(told)
    assert every > 6 * runs + 1
    with pytest.raises(KeyboardInterrupt):
        fitted(stop=every)
    (tmp_path / "it.yaml").write_text("not ours")
    again = fitted()

    assert 1 <= len(told) <= 2  # of the second training, and none of the first
    assert again.record_ == whole.record_
    for name, value in whole.ensemble_.state.items():
        assert torch.equal(value, again.ensemble_.state[name])
    assert [path.name for path in tmp_path.iterdir()] == ["it.yaml"]


def test_a_head_that_says_the_same_of_every_video_is_not_kept():
    values, targets = some(n=30)
    alike = table_of({"x": [values[0]] * 30})
    head = make_head("mlp", selection="fixed", epochs=2, width=4)
    with pytest.raises(HeadError, match="predictions stayed constant: all 30 training videos get"):
        head.fit(alike, targets)


def test_a_refit_trains_on_everything_for_the_epochs_that_held_out_rows_chose():
    values, targets = some(n=30)
    table = table_of({"x": list(values)})
    given = {"epochs": 9, "patience": 9, "learning_rate": 0.02, "runs": 2}
    chosen, refit = head_of(OnTower, **given), head_of(OnTower, selection="refit", **given)
    for head in (chosen, refit):
        head.processes = 1  # others do not know this file
        head.fit(table, targets)

    epochs = chosen.record_["metrics"]["epoch"]
    assert refit.record_["metrics"] == chosen.record_["metrics"]
    assert refit.selection_.endswith("; trained again for as many on all 30")
    for run, epoch in enumerate(epochs):
        alone = head_of(
            OnTower, selection="fixed", epochs=epoch, patience=9, learning_rate=0.02, seed=run
        ).fit(table, targets)
        for name, value in alone.ensemble_.state.items():
            assert torch.equal(value[0], refit.ensemble_.state[name][run])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "cosine", "decay": 0.5}, r"decay 0\.5 is of the schedule 'step'"),
        ({"warmup_epochs": 3.0}, "warmup_epochs 3 leave nothing of 3 epochs"),
        ({"averaging": 1.0}, "'averaging' cannot be 1.0"),
        ({"selection": "best"}, "'selection' cannot be 'best'"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given, message):
    values, targets = some()
    with pytest.raises(HeadError, match=message):
        head_of(OnTower, **given).fit(table_of({"x": list(values)}), targets)


# --- going on from another head


def small_head(**given):
    return head_of(OnTower, epochs=2, learning_rate=0.01, **given)


def other_kind(head, **given):
    """A head of the same class; each call of `head_of` makes one of its own."""
    return type(head)(**{**head.get_params(), **given})


@pytest.mark.parametrize("standardise", [True, False])
def test_training_goes_on_where_another_head_ended(tmp_path, standardise):
    (large, of_large), (values, targets) = some(40, seed=1), some(30, seed=2)
    first = small_head(standardise=standardise).fit(table_of({"x": list(large)}), of_large)
    first.save(tmp_path / "large", {"trained_on": {"videos": 40}})
    table = table_of({"x": list(values)})
    still = {"start": str(tmp_path / "large"), "selection": "fixed", "epochs": 1}

    kept = other_kind(first, learning_rate=1e-12, **still).fit(table, targets)
    moved = other_kind(first, **still).fit(table, targets)

    for name, value in first.ensemble_.state.items():
        torch.testing.assert_close(kept.ensemble_.state[name], value, atol=1e-8, rtol=0)
        assert not torch.equal(moved.ensemble_.state[name], value)
    one, other = first.ensemble_.scalings[0], moved.ensemble_.scalings[0]
    assert (one is None) == (not standardise)
    if standardise:
        assert torch.equal(one.mean["x"], other.mean["x"])
    moved.save(tmp_path / "small")
    told = type(first).load(tmp_path / "small").record_["started_from"]
    assert told["trained_on"] == {"videos": 40}
    assert told["selection"] == first.selection_
    third = other_kind(first, **{**still, "start": str(tmp_path / "small")}).fit(table, targets)
    chain = third.record_["started_from"]["record"]["started_from"]
    assert chain["trained_on"] == {"videos": 40}


def test_a_head_that_was_started_from_another_loads_where_that_one_is_gone(tmp_path):
    values, targets = some(30)
    table = table_of({"x": list(values)})
    first = small_head().fit(table, targets)
    first.save(tmp_path / "a")
    second = other_kind(first, start=str(tmp_path / "a")).fit(table, targets)
    second.save(tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "away")

    loaded = type(first).load(tmp_path / "b")

    assert loaded.start is None
    assert loaded.predict(table).tobytes() == second.predict(table).tobytes()


def test_one_network_starts_all_runs_and_several_start_as_many(tmp_path):
    values, targets = some(30)
    table = table_of({"x": list(values)})
    first = small_head().fit(table, targets)
    first.save(tmp_path / "one")
    two = other_kind(first, start=str(tmp_path / "one"), runs=2)
    two.processes = 1
    two.fit(table, targets).save(tmp_path / "two")

    assert two.ensemble_.state["layer.weight"].shape[0] == 2
    with pytest.raises(HeadError, match="has 2 networks; take runs = 2"):
        other_kind(first, start=str(tmp_path / "two"), runs=3).fit(table, targets)


def test_a_start_of_other_features_or_standardisation_is_refused(tmp_path):
    values, targets = some(30)
    first = small_head().fit(table_of({"x": list(values)}), targets)
    first.save(tmp_path)
    with pytest.raises(HeadError, match=r"fitted on x = .*; training cannot go on from it on y"):
        other_kind(first, start=str(tmp_path)).fit(table_of({"y": list(values)}), targets)
    with pytest.raises(HeadError, match="has standardise = False, which its networks learnt by"):
        other_kind(first, start=str(tmp_path), standardise=True).fit(
            table_of({"x": list(values)}), targets
        )
    with pytest.raises(HeadError, match="holds no head"):
        other_kind(first, start=str(tmp_path / "nowhere")).fit(
            table_of({"x": list(values)}), targets
        )


def test_no_more_videos_than_were_said_are_in_a_network_at_a_time():
    values, targets = some()
    table = table_of({"x": list(values)})
    seen = []

    class Counting(OnTower):
        def forward(self, batch):
            seen.append(len(batch.mask))
            return super().forward(batch)

    head = head_of(Counting, forward_videos=3, batch_size=10).fit(table, targets)
    usual = head_of(Counting, batch_size=10).fit(table, targets)
    of_usual = seen[len(seen) // 2 :]
    assert max(of_usual) > 10
    scores = head.predict(table)

    np.testing.assert_allclose(scores, usual.predict(table), atol=2e-4)
    seen.clear()
    head.predict(table)
    assert max(seen) == 3


# --- what came out wrong once


def test_a_start_under_roles_in_another_order_is_refused(tmp_path):
    values, targets = some(30)
    series = {"a": list(values), "b": list(values[::-1])}
    first = make_head("gru", epochs=1, roles=["a", "b"], align="repeat")
    first.fit(table_of(series), targets).save(tmp_path)
    turned = make_head("gru", epochs=1, roles=["b", "a"], align="repeat", start=str(tmp_path))
    with pytest.raises(HeadError, match=r"was fitted on a = .*, b = .*; .* on b = "):
        turned.fit(table_of(series), targets)


@pytest.mark.parametrize("selection", ["fixed", "refit", "held-out"])
def test_a_training_that_diverged_is_no_head(selection):
    values, targets = some(30)
    head = make_head("gru", epochs=2, learning_rate=1e30, selection=selection, batch_size=40)
    with pytest.raises(HeadError, match=r"training diverged|predictions stayed constant"):
        head.fit(table_of({"x": list(values)}), targets)


def test_parts_of_a_batch_draw_rows_of_their_own():
    values, targets = some(rows=9)
    drawn = []

    def one_of(length, rng):
        rows = np.array([0]) if rng is None else rng.integers(0, length, 1)
        if rng is not None:
            drawn.append(int(rows[0]))
        return rows

    trained(Line, values, targets, plan(epochs=1, forward_videos=5), choose={"x": one_of})

    assert drawn[:30] == drawn[30:]  # once for scores, once for gradients
    assert len({tuple(drawn[start : start + 5]) for start in range(0, 30, 5)}) == 6


def test_a_normalisation_without_momentum_is_refused():
    class Cumulative(Normalised):
        def __init__(self, inputs, generator):
            super().__init__(inputs, generator)
            self.norm.momentum = None

    values, targets = some()
    with pytest.raises(HeadError, match="norm: give a normalisation a momentum"):
        head_of(Cumulative).fit(table_of({"x": list(values)}), targets)


def test_buffers_that_training_never_changes_are_no_statistics():
    class WithTable(Line):
        def __init__(self, inputs, generator):
            super().__init__()
            self.register_buffer("table", torch.ones(4))

    values, targets = some()
    head = head_of(WithTable, runs=2)
    type(head).stackable = True
    head.fit(table_of({"x": list(values)}), targets)
    assert set(head.ensemble_.state) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize("name", ["gru", "mlp", "cagi"])
def test_every_network_trains_and_predicts_in_mixed_precision(name):
    values, targets = some(30, rows=4)
    table = table_of({"quality": list(values), "semantic": list(values)})
    usual, mixed = (
        make_head(name, epochs=2, align="repeat", precision=one).fit(table, targets).predict(table)
        for one in ("float32", "bfloat16")
    )
    assert not np.array_equal(usual, mixed)
    assert np.isfinite(mixed).all()


def test_weights_that_a_head_did_not_learn_have_to_be_those_of_its_training(tmp_path):
    values, targets = some()
    table = table_of({"x": list(values)})
    other = {"seed": 5}

    class Changing(OnTower):
        def __init__(self, inputs, generator):
            super().__init__(inputs, generator)
            with torch.no_grad():
                self.idle.fill_(other["seed"])

    head = head_of(Changing).fit(table, targets)
    head.save(tmp_path)
    loaded = type(head).load(tmp_path)
    loaded.predict(table)
    other["seed"] = 6
    with pytest.raises(HeadError, match="its frozen weights are not those that it was trained"):
        loaded.predict(table)


def test_roles_that_name_none_are_refused():
    with pytest.raises(HeadError, match="roles names none; leave it out for all"):
        make_head("gru", roles=[])


def test_a_head_of_before_that_is_told_widths_is_refused_where_it_is_defined():
    with pytest.raises(HeadError, match=r"Old._network takes `widths`.*inputs\[role\].width"):

        class Old(Mine):
            def _network(self, widths, generator):
                return Line()
