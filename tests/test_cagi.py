"""A2INet's head: what the paper's equations say, one video at a time, and what any head owes."""

import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from vqbank.extractors import make_extractors
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.train import train
from vqbank.pipelines.recipe import read_recipe
from vqbank.regressors import load_head, make_head
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.cagi import Cagi, Wiring
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError, MissingFeatureError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

SS = {"quality": 1920, "semantic": 7680}
SM = {"quality": 1920, "motion": 512}
WIRINGS = get_args(Wiring)
SMALL = {"quality": 5, "semantic": 7}
QUICK = {"width": 16, "epochs": 2, "gate_reduction": 4}


def network(widths=SMALL, **parameters):
    head = Cagi(**{"width": 16, "gate_reduction": 4, **parameters})
    inputs = {role: Input((width,), torch.float32) for role, width in widths.items()}
    return head._network(inputs, torch.Generator().manual_seed(0)).eval()


def count(widths, **parameters):
    return sum(value.numel() for value in network(widths, **parameters).parameters())


def rows(length, widths=SMALL, *, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {role: torch.randn(1, length, width, generator=draw) for role, width in widths.items()}


def batch(values):
    length = next(iter(values.values())).shape[1]
    return PaddedBatch(values, torch.ones(1, length, dtype=torch.bool), torch.tensor(0))


def padded(videos, *, behind):
    """Videos of one batch, with something behind their rows that must not matter."""
    lengths = [len(video["quality"][0]) for video in videos]
    longest = max(lengths) + behind
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    values = {}
    for role in videos[0]:
        values[role] = torch.full((len(videos), longest, videos[0][role].shape[2]), 37.0)
        for place, video in enumerate(videos):
            values[role][place, : lengths[place]] = video[role][0]
    return PaddedBatch(values, mask, torch.tensor(0))


def table_of(series, *, frames=None, scenes=None):
    """A table whose rows are of stated frames, by role and video."""
    n = len(next(iter(series.values())))
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=None) for row in range(n)]
    table = FeatureTable.from_arrays(videos, series)
    for role, per_video in (frames or {}).items():
        source = table._columns[role].sources[0]
        source._frame_index = [np.asarray(own) for own in per_video]
    return table


def interacting(n, *, seed=0, width=4):
    """Quality is how two series move together, behind levels that say nothing.

    Each channel of one goes with one direction of the other; every video has its own levels.
    """
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(width, width)))[0]
    quality, semantic, mos = [], [], []
    for _ in range(n):
        together, length = rng.uniform(-1, 1), rng.integers(12, 25)
        one = rng.normal(size=(length, width))
        other = together * one + np.sqrt(1 - together**2) * rng.normal(size=(length, width))
        quality.append((one + 4 * rng.normal(size=width)).astype(np.float32))
        semantic.append(((other + 4 * rng.normal(size=width)) @ turn).astype(np.float32))
        mos.append(3 + together)
    return table_of({"quality": quality, "semantic": semantic}), np.array(mos)


# The network.


@pytest.mark.parametrize(
    ("widths", "expected"), [(SS, 35_553_761), (SM, 28_213_729)], ids=["S+S", "S+M"]
)
def test_the_papers_network_has_as_many_parameters_as_its_layers_have(widths, expected):
    d = 1024
    layers = [
        sum(width * d + d for width in widths.values()),  # both series to d
        4 * (d * d + d),  # scale and shift, both ways
        3 * (4 * d * d + 2 * d) + (2 * d * d + d),  # query, key, value; back to d
        2 * (d * 64 + 64 + 64 * d + d),  # gates
        2 * (3 * d * d + d),  # temporal convolutions
        2 * d * 128 + 128,
        3 * 32 * (128 + 32) + 2 * 3 * 32,  # the recurrent layer
        32 + 1,
    ]
    assert sum(layers) == expected
    assert count(widths, **{**Cagi.paper, "gate_reduction": 16}) == expected
    assert Cagi(**Cagi.paper).gate_reduction == 16


def reference_norm(values):
    return nn.InstanceNorm1d(values.shape[1])(values.T[None])[0].T


def reference(state, values, wiring):
    """One video through the layers of the paper, in PyTorch's own words; rows [t, d]."""

    def layer(name, inputs):
        return functional.linear(inputs, state[f"{name}.weight"], state[f"{name}.bias"])

    def guided(number, one, other):
        scale, shift = layer(f"cagi.guides.{number}.affine", other).chunk(2, dim=1)
        return scale * reference_norm(one) + shift

    quality, semantic = values["quality"][0], values["semantic"][0]
    if wiring.startswith("concat"):
        found = torch.cat([quality, semantic], dim=1)
        if wiring == "concat-mlp":
            found = layer("mlp", found).relu()
    else:
        quality, semantic = layer("cagi.quality", quality), layer("cagi.semantic", semantic)
        one, other = (quality, semantic) if wiring.endswith("q-to-s") else (semantic, quality)
        if wiring.startswith("adain"):
            deviation = (other.var(dim=0, correction=0) + 1e-5).sqrt()
            entered = deviation * reference_norm(one) + other.mean(dim=0)
        elif wiring.startswith("fgin"):
            entered = guided(0, one, other)
        else:
            entered = torch.cat(
                [
                    guided(0, quality, semantic) + reference_norm(quality),
                    guided(1, semantic, quality) + reference_norm(semantic),
                ],
                dim=1,
            )
        query, key, value = layer("cagi.attend", entered).chunk(3, dim=1)
        weights = torch.softmax(query @ key.T / entered.shape[1] ** 0.5, dim=1)
        found = layer("cagi.reduce", weights @ value + entered)
        if wiring != "without-catm":
            branches = []
            for number, pooled in enumerate([found.max(dim=0).values, found.std(dim=0)]):
                hidden = layer(f"catm.gates.{number}.0", pooled).relu()
                gate = layer(f"catm.gates.{number}.2", hidden).sigmoid()
                convolved = functional.conv1d(
                    found.T[None],
                    state[f"catm.convolutions.{number}.weight"],
                    state[f"catm.convolutions.{number}.bias"],
                    padding=1,
                )[0].T
                branches.append(convolved * gate)
            found = torch.cat(branches, dim=1)
    recurrent = nn.GRU(128, 32)
    recurrent.load_state_dict(
        {
            key.removeprefix("recurrent."): value
            for key, value in state.items()
            if "recurrent." in key
        }
    )
    return layer("score", recurrent(layer("reduce", found))[0])[:, 0]


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_is_what_the_paper_says_of_it(wiring):
    net = network(wiring=wiring)
    values = rows(23)
    with torch.no_grad():
        expected = reference(net.state_dict(), values, wiring)
        torch.testing.assert_close(net.rows(batch(values))[0], expected, atol=2e-6, rtol=0)
        # VSFA's pooling: the least of the last 12 rows, and the next 12 weighted by exp(-q).
        pooled = []
        for row in range(23):
            ahead = expected[row : row + 12]
            now = (ahead * (-ahead).exp()).sum() / (-ahead).exp().sum()
            pooled.append(0.5 * now + 0.5 * expected[max(0, row - 11) : row + 1].min())
        torch.testing.assert_close(net(batch(values))[0], torch.stack(pooled).mean())


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("norm_axis", ["time", "channel"])
def test_padding_order_and_company_change_no_score(wiring, norm_axis):
    net = network(wiring=wiring, norm_axis=norm_axis)
    videos = [rows(length, seed=length) for length in (9, 1, 30, 2, 13)]
    with torch.no_grad():
        alone = torch.cat([net(batch(video)) for video in videos])
        assert alone.unique().numel() == len(videos)
        for behind in (0, 17):
            together = net(padded(videos, behind=behind))
            turned = net(padded(videos[::-1], behind=behind)).flip(0)
            assert (together - alone).abs().max() < 1e-5
            assert (turned - alone).abs().max() < 1e-5


@pytest.mark.parametrize(
    "option",
    [
        {"norm_axis": "channel"},
        {"shared_guides": True},
        {"gate_reduction": 2},
        {"shared_gates": True},
        {"kernel": 5},
        {"shared_convolutions": True},
        {"gate": "before-convolution"},
        {"bias": False},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_what_the_paper_leaves_open_is_an_option_that_changes_the_network(option):
    usual, other = network(), network(**option)
    values = padded([rows(9), rows(1)], behind=3)
    with torch.no_grad():
        if usual.state_dict().keys() == other.state_dict().keys() and "bias" not in option:
            shared = {
                key: value
                for key, value in usual.state_dict().items()
                if value.shape == other.state_dict()[key].shape
            }
            other.load_state_dict(shared, strict=False)
        assert other(values).isfinite().all()
        assert not torch.equal(usual(values), other(values))


def test_shared_layers_are_one():
    d = 16
    two_fewer = {
        "shared_guides": 2 * (d * d + d),
        "shared_gates": d * 4 + 4 + 4 * d + d,
        "shared_convolutions": 3 * d * d + d,
    }
    for option, saved in two_fewer.items():
        assert count(SMALL) - count(SMALL, **{option: True}) == saved


def test_the_order_of_roles_does_not_matter_where_they_have_names():
    values = rows(9)
    net = network()
    turned = network(dict(reversed(SMALL.items())))
    turned.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(batch(values)), turned(batch(dict(reversed(values.items())))))


def test_every_parameter_learns_from_one_row_and_from_2000():
    for length in (1, 2000):
        net = network()
        net(padded([rows(length), rows(3)], behind=0)).square().sum().backward()
        for name, value in net.named_parameters():
            assert value.grad is not None, name
            assert value.grad.isfinite().all(), name


def test_dropout_is_of_training_alone():
    net = network(wiring="concat-mlp")
    values = batch(rows(9))
    with torch.no_grad():
        said = [net(values._replace(noise=torch.tensor(noise))) for noise in (1, 2)]
        assert torch.equal(*said)
        net.train()
        said = [net(values._replace(noise=torch.tensor(noise))) for noise in (1, 2, 2)]
        assert not torch.equal(said[0], said[1])
        assert torch.equal(said[1], said[2])


# The head.


def test_cagi_learns_an_interaction_that_concatenation_does_not():
    table, mos = interacting(160)
    train, test = range(100), range(100, 160)
    found = {}
    for wiring in ("full", "concat"):
        head = make_head(
            "cagi", wiring=wiring, width=32, epochs=12, patience=12, learning_rate=2e-3
        )
        head.fit(table.subset(train), mos[:100])
        predicted = head.predict(table.subset(test))
        found[wiring] = spearmanr(predicted, mos[100:]).statistic
    assert found["full"] > 0.7
    assert found["full"] > found["concat"] + 0.3


def test_a_fitted_head_takes_short_and_long_videos_and_a_saved_one_says_the_same(tmp_path):
    table, mos = interacting(20)
    fitted = make_head("cagi", **QUICK).fit(table, mos)
    rng = np.random.default_rng(0)
    lengths = (1, 2000, 12)
    other = table_of(
        {
            role: [rng.normal(size=(length, 4)).astype(np.float32) for length in lengths]
            for role in table.roles
        }
    )
    said = fitted.predict(other)
    assert np.isfinite(said).all()
    for row in range(3):
        np.testing.assert_allclose(fitted.predict(other.subset([row])), said[row], atol=1e-5)
    fitted.save(tmp_path)
    assert load_head(tmp_path).predict(other).tobytes() == said.tobytes()


def test_the_longer_series_is_sub_sampled_by_frame():
    """Every frame of one, every second of the other: as if only these had been banked."""
    table, mos = interacting(20)
    quality = [table.series("quality", row) for row in range(20)]
    half = [table.series("semantic", row)[::2] for row in range(20)]
    frames = {
        "quality": [np.arange(len(own)) for own in quality],
        "semantic": [np.arange(len(own))[::2] for own in quality],
    }
    ragged = table_of({"quality": quality, "semantic": half}, frames=frames)
    same = table_of(
        {"quality": [own[::2] for own in quality], "semantic": half},
        frames=dict.fromkeys(frames, frames["semantic"]),
    )
    turned = ragged.select(["semantic", "quality"])
    fitted = [make_head("cagi", **QUICK).fit(one, mos) for one in (ragged, same, turned)]
    said = [head.predict(one) for head, one in zip(fitted, (ragged, same, turned), strict=True)]
    assert said[0].tobytes() == said[1].tobytes()
    # Another order of roles draws other numbers, but of as many rows.
    assert np.isfinite(said[2]).all()


def test_series_without_a_common_frame_are_refused_by_video():
    table, mos = interacting(20)
    lengths = table.lengths("quality")
    frames = {
        "quality": [np.arange(length) for length in lengths],
        "semantic": [
            np.arange(length) + (1000 if row == 7 else 0) for row, length in enumerate(lengths)
        ],
    }
    series = {role: [table.series(role, row) for row in range(20)] for role in table.roles}
    with pytest.raises(HeadError, match=r"set/7\.mp4: .* no frame in common"):
        make_head("cagi", **QUICK).fit(table_of(series, frames=frames), mos)


@pytest.mark.parametrize("roles", [["quality"], ["semantic"], ["semantic", "motion"], None])
def test_other_roles_than_the_wiring_takes_are_refused(roles):
    table, mos = interacting(20)
    series = {role: [table.series(role, row) for row in range(20)] for role in table.roles}
    table = table_of({**series, "motion": series["semantic"]})
    with pytest.raises(HeadError, match="takes two roles, 'quality' and another"):
        make_head("cagi", roles=roles, **QUICK).fit(table, mos)
    make_head("cagi", roles=roles, wiring="concat", **QUICK).fit(table, mos)


def test_a_card_of_roles_that_the_wiring_does_not_take_is_refused(tmp_path):
    series = {role: [np.zeros((3, width), np.float32)] * 12 for role, width in SMALL.items()}
    series["quality"] = [np.full((3, 5), row, np.float32) for row in range(12)]
    Cagi(**QUICK).fit(table_of(series), np.arange(12.0)).save(tmp_path)
    card = (tmp_path / "card.yaml").read_text()
    (tmp_path / "card.yaml").write_text(re.sub(r"^(  )quality:", r"\1other:", card, flags=re.M))

    with pytest.raises(HeadError, match="takes two roles, 'quality' and another"):
        load_head(tmp_path)


def test_a_role_that_is_not_there_is_refused():
    with pytest.raises(MissingFeatureError, match="role 'motion'"):
        make_head("cagi", roles=["quality", "motion"], **QUICK).fit(*interacting(20))


def test_a_role_that_is_named_twice_is_refused():
    with pytest.raises(HeadError, match="roles names one twice: quality, quality"):
        make_head("cagi", roles=["quality", "quality"], wiring="concat")


def test_chosen_roles_are_all_that_a_fitted_head_asks_for(tmp_path):
    table, mos = interacting(20)
    series = {role: [table.series(role, row) for row in range(20)] for role in table.roles}
    wide = table_of({**series, "motion": series["semantic"]})
    head = make_head("cagi", roles=["quality", "semantic"], **QUICK)
    said = head.fit(wide, mos).predict(wide)
    assert list(head.specs_) == ["quality", "semantic"]
    assert head.predict(wide.select(["quality", "semantic"])).tobytes() == said.tobytes()
    head.save(tmp_path)
    assert load_head(tmp_path).predict(wide).tobytes() == said.tobytes()
    plain = make_head("cagi", **QUICK).fit(table, mos)
    assert plain.predict(table).tobytes() == said.tobytes()


# The tables of the paper.


@pytest.fixture(params=[4, 5, 6, 7])
def shipped(request, tmp_path):
    path = tmp_path / "table.yaml"
    source = files("vqbank.pipelines").joinpath(f"recipes/a2inet-table{request.param}.yaml")
    path.write_text(source.read_text())
    return request.param, read_recipe(path)


def test_the_tables_of_the_paper_are_recipes(shipped):
    number, recipe = shipped
    heads = [make_head(name, **own) for name, own in map(recipe.head, recipe.heads)]
    networks = [head for head in heads if head.name == "cagi"]
    wirings = {
        4: 6 * ["concat"],
        5: 4 * ["concat", "concat-mlp", "without-catm"],
        6: 2 * ["adain-s-to-q", "adain-q-to-s", "fgin-s-to-q", "fgin-q-to-s", "full"],
        7: 2 * ["concat", "without-catm", "full"],
    }
    assert [head.wiring for head in networks] == wirings[number]
    assert {head.width for head in networks} == {1024}
    chosen = [tuple(head.roles) for head in networks]
    if number == 4:
        assert len(set(chosen)) == 6
    else:
        partners = [["semantic"], ["vit"], ["motion"], ["video-swin"]] if number == 5 else [
            ["semantic"], ["motion"]
        ]  # fmt: skip
        each = len(chosen) // len(partners)
        for place, partner in enumerate(partners):
            assert set(chosen[each * place : each * (place + 1)]) == {("quality", *partner)}
    assert [head.name for head in heads if head.name != "cagi"] == ["gru"] * (number == 7)
    assert {role for head in heads for role in head.roles} == recipe.features.keys()


def test_their_features_are_those_that_extractors_bank(shipped):
    _, recipe = shipped
    made = make_extractors(recipe.extractors, weights={"all": "random"})
    offered = {
        f"{entry}.{output}": spec.shape
        for entry, extractor in zip(recipe.extractors, made, strict=True)
        for output, spec in extractor.specs(decoder="pyav").items()
    }
    known = {
        "quality": (1920,), "semantic": (7680,), "motion": (512,), "last": (4096,),
        "vit": (768,), "video-swin": (768,),
    }  # fmt: skip
    widths = {role: offered[feature] for role, feature in recipe.features.items()}
    assert widths == {role: known[role] for role in widths}


def test_variants_of_a_recipe_are_tried_side_by_side_and_one_is_shipped(tmp_path):
    """From a bank on disk, in which one series has every frame and the other every second."""
    table, mos = interacting(24)
    store = FeatureStore.create(tmp_path / "bank")
    for role, step in (("quality", 1), ("semantic", 2), ("motion", 2)):
        spec = FeatureSpec(f"made.{role}", (4,), "float16", {"source": "test"})
        writer = store.writer(spec, provenance={})
        for row in range(24):
            values = table.series("quality" if role == "quality" else "semantic", row)[::step]
            frames = step * np.arange(len(values))
            feature = Feature(values.astype(np.float16), frames / 30, frames)
            writer.add(f"{row}.mp4", feature, fingerprint=Fingerprint(1, f"{row:064d}"), probe={})
        writer.commit()
    lines = [f"{row}.mp4,{score},{row}.mp4" for row, score in enumerate(mos)]
    (tmp_path / "set.csv").write_text("\n".join(["path,mos,id", *lines]))
    quick = "width: 8, gate_reduction: 2, epochs: 2"
    (tmp_path / "run.yaml").write_text(
        f"""
        videos: set.csv
        bank: bank
        features: {{quality: made.quality, semantic: made.semantic, motion: made.motion}}
        heads:
          all: {{head: cagi, roles: [quality, semantic], {quick}}}
          side by side: {{head: cagi, wiring: concat, {quick}}}
        protocol: {{splits: random2}}
        """
    )
    recipe = read_recipe(tmp_path / "run.yaml")
    record = evaluate(Experiment.of(recipe, title="test"))
    assert [head.name for head in record.heads] == ["all", "side by side"]
    for head in record.heads:
        assert all("by SRCC on 4 of 19 training videos" in rule for rule in head.selection)
        assert head.held_out == [4, 4]
    only = recipe.model_copy(update={"heads": {"all": recipe.heads["all"]}})
    made = Experiment.of(only, title="test")
    fitted = train(made, tmp_path / "head", recipe=only)
    loaded = load_head(tmp_path / "head")
    assert list(loaded.specs_) == ["quality", "semantic"]
    assert loaded.predict(made.rated.table).tobytes() == fitted.predict(made.rated.table).tobytes()
