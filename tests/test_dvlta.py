"""DVLTA-VQA's head: what it is made of, what each branch learns, what changes no score."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from vqbank.regressors import load_head, make_head
from vqbank.regressors.batches import PaddedBatch
from vqbank.regressors.cbam import Cbam
from vqbank.regressors.dvlta import DvltaNet, Sizes, pair_score
from vqbank.regressors.layers import learnt
from vqbank.regressors.metrics import srcc
from vqbank.regressors.tadaconv import TadaConv
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.text import TextBank, text_spec, write_text
from vqbank.testing import HeadContract

EMBEDDING, CHANNELS, SIDE = 16, 6, 20
PROMPTS = ("good", "bad")
SPECS = {
    "semantic": FeatureSpec("vificlip.feature", (EMBEDDING,), "float16", {}),
    "technical": FeatureSpec("fastvqa.map", (CHANNELS, 2, 2, 2), "float16", {}),
    "clip": FeatureSpec("frames.pixels", (3, SIDE, SIDE), "uint8", {}),
}
SMALL = {"stem": 8, "hidden": 8, "batch_size": 16}


def clips(rng, motion, frames):
    """Noise of one spread in every frame: what stands still, and what is drawn anew by motion."""
    still = rng.normal(size=(1, 3, SIDE, SIDE))
    moving = rng.normal(size=(frames, 3, SIDE, SIDE))
    mixed = np.sqrt(1 - motion) * still + np.sqrt(motion) * moving
    return np.clip(128 + 40 * mixed, 0, 255).astype(np.uint8)


def bank_at(folder, *, n=20, seed=0, ragged=True):
    """Features of n videos; what each branch can see of them [n], by role, none like another."""
    rng = np.random.default_rng(seed)
    store = FeatureStore.create(folder)
    seen = {role: rng.uniform(size=n) for role in SPECS}
    common, direction = np.random.default_rng(9).normal(size=(2, EMBEDDING))  # as CLIP's have
    for role, spec in SPECS.items():
        with store.writer(spec, provenance={}, durable=False) as writer:
            for video in range(n):
                most = {"semantic": 5, "technical": 3, "clip": 8}[role]
                rows = int(rng.integers(1, most + 1)) if ragged else most
                if role == "clip":
                    values = clips(rng, seen[role][video], rows)
                elif role == "semantic":
                    values = (
                        rng.normal(size=(rows, EMBEDDING)) + common + seen[role][video] * direction
                    )
                else:
                    values = rng.normal(size=(rows, *spec.shape))
                    values[:, 0] += 2 * seen[role][video]
                feature = Feature(
                    values.astype(spec.storage_dtype), np.arange(rows, dtype=float), np.arange(rows)
                )
                writer.add(
                    f"set/{video}.mp4", feature, fingerprint=Fingerprint(1, "0" * 64), probe={}
                )
    text = np.random.default_rng(5).normal(size=(2, EMBEDDING)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    spec = text_spec("vificlip.text", PROMPTS, EMBEDDING, {})
    write_text(store, spec, TextBank(PROMPTS, text, 100.0), provenance={})
    return store, seen


def table_of(store, roles=tuple(SPECS), n=20, scenes=None):
    videos = [
        Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row % (scenes or n)))
        for row in range(n)
    ]
    return store.table(videos, {role: SPECS[role].name for role in roles})


def of_paper(**given):
    """Of the paper's sizes, without memory for it."""
    shapes = {"semantic": (512,), "technical": (768, 16, 7, 7), "clip": (3, 112, 112)}
    with torch.device("meta"):
        return DvltaNet(
            shapes, torch.empty(2, 512), sizes=Sizes(), generator=torch.Generator(), **given
        )


def count(part):
    return sum(value.numel() for value in part.parameters())


# --- what it is made of


def test_every_part_has_as_many_parameters_as_the_paper_leaves_it():
    network = of_paper()
    branches = network.branches
    assert count(branches["semantic"]) == 132_352
    assert count(branches["clip"]) == 371_014
    assert [count(one) for one in branches["clip"].convolutions] == [84_080, 188_640]
    assert count(branches["technical"]) == 82_496
    assert count(network.text_adapter) == 131_712
    assert count(network) == 132_352 + 371_014 + 82_496 + 131_712
    assert count(of_paper(fusion="concat")) - count(network) == 1536 * 512
    assert count(of_paper(fusion="add")) == count(network)


@pytest.mark.parametrize("temporal", ["tadaconv", "c3d", "r(2+1)d"])
def test_frames_see_their_neighbours_and_zeros_beyond_the_ends(temporal):
    """A clip behind zeros, which are none of its frames, comes to what it comes to alone."""
    draw = torch.Generator().manual_seed(0)
    network = DvltaNet(
        {"clip": (3, SIDE, SIDE)},
        torch.eye(2, EMBEDDING),
        sizes=Sizes(stem=4),
        temporal=temporal,
        generator=draw,
    )
    pixels = torch.randint(0, 256, (3, 7, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] + [False] * 6])
    branch = network.branches["clip"]
    for part in branch.modules():  # as if it had learnt: nothing begins at 0 or 1
        for name, value in part.named_parameters(recurse=False):
            if name == "weight":
                value.data.add_(0.2 * torch.randn(value.shape, generator=draw))
    branch.train()
    branch(pixels, real)
    branch.eval()
    together = branch(pixels, real)
    for video, length in enumerate((7, 4, 1)):
        alone = branch(pixels[video : video + 1, :length], real[video : video + 1, :length])
        torch.testing.assert_close(together[video], alone[0], atol=1e-5, rtol=1e-4)
    assert (branch(pixels.flip(1), real)[0] - together[0]).abs().max() > 1e-4


def test_statistics_are_of_real_frames_alone():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 6, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    found = []
    for more in (0, 5):
        network = DvltaNet(
            {"clip": (3, SIDE, SIDE)},
            torch.eye(2, EMBEDDING),
            sizes=Sizes(stem=4),
            generator=torch.Generator().manual_seed(1),
        )
        filled = torch.cat([pixels, pixels.new_full((2, more, 3, SIDE, SIDE), 200)], dim=1)
        real = (torch.arange(6 + more) < 6).expand(2, -1)
        network.branches["clip"].train()(filled, real)
        found.append(learnt(network))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-4)


def test_a_route_begins_as_one_and_calibrates_what_it_has_learnt():
    draw = torch.Generator().manual_seed(0)
    layer = TadaConv(8, 4, stride=1, generator=draw).eval()
    values, real = torch.randn(2, 8, 3, 5, 5, generator=draw), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(layer.rf(values, real), torch.ones(2, 8, 3, 1, 1))
    layer.rf.b.weight.data.normal_(generator=draw)
    route = layer.rf(values, real)
    assert route.std(dim=2).min() > 0
    kernel = layer.conv.weight[:, :, 0]
    by_hand = [
        torch.nn.functional.conv2d(values[b : b + 1, :, t], kernel * route[b, :, t], padding=1)
        for b in range(2)
        for t in range(3)
    ]
    expected = torch.cat(by_hand).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(layer(values, real), expected, atol=1e-5, rtol=1e-4)


def test_attention_weighs_channels_and_places_of_one_feature():
    draw = torch.Generator().manual_seed(0)
    cbam = Cbam(8, reduction=4, kernel=(3, 3, 3), normalise=False, generator=draw)
    values, real = torch.randn(2, 8, 3, 5, 5, generator=draw), torch.ones(2, 3, dtype=torch.bool)
    assert cbam.channels(values, real).shape == (2, 8, 1, 1, 1)
    assert cbam.places(values, real).shape == (2, 1, 3, 5, 5)


def test_a_score_is_the_probability_of_the_positive_prompt():
    torch.testing.assert_close(
        pair_score(torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])),
        torch.tensor([0.8808, 0.5, 0.1192]),
        atol=1e-4,
        rtol=0,
    )


def batch_of(store, n=6, roles=tuple(SPECS)):
    table = table_of(store, roles, n)
    values = {
        role: torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(np.array(one)) for one in table.arrays(role)], batch_first=True
        )
        for role in roles
    }
    masks = {
        role: torch.arange(values[role].shape[1]) < torch.tensor(table.lengths(role))[:, None]
        for role in roles
    }
    return PaddedBatch(values, masks[roles[0]], torch.tensor(0), masks)


def network_of(roles=tuple(SPECS), seed=0, **given):
    text = torch.nn.functional.normalize(
        torch.randn(2, EMBEDDING, generator=torch.Generator().manual_seed(5)), dim=1
    )
    return DvltaNet(
        {role: SPECS[role].shape for role in roles},
        text,
        sizes=Sizes(stem=32, hidden=4),
        generator=torch.Generator().manual_seed(seed),
        **given,
    )


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return bank_at(tmp_path_factory.mktemp("dvlta") / "bank")


def test_features_are_fused_as_the_equations_say(bank):
    store, _ = bank
    batch = batch_of(store)
    network = network_of(temperature=0.5, clamp=True, text_adapted=0.3).eval()
    features, texts = network.features(batch), network.texts()
    mean = texts.mean(dim=0)
    fused = 0.0
    for feature in features.values():
        weight = (feature @ mean) / (feature.norm(dim=1) * mean.norm())
        fused = fused + weight.clamp(min=0)[:, None] * feature
    plus, minus = ((fused @ text) / (fused.norm(dim=1) * text.norm()) / 0.5 for text in texts)
    expected = plus.exp() / (plus.exp() + minus.exp())
    torch.testing.assert_close(network(batch), expected, atol=1e-5, rtol=1e-4)
    adapted = network.text_adapter(network.text)
    torch.testing.assert_close(texts, 0.3 * adapted + 0.7 * network.text)
    add, concat = (network_of(fusion=fusion).eval() for fusion in ("add", "concat"))
    found = add.features(batch)
    torch.testing.assert_close(add.fused(found, texts), sum(found.values()))
    laid = torch.cat(list(concat.features(batch).values()), dim=1)
    expected = laid @ concat.concat.weight.T
    torch.testing.assert_close(concat.fused(concat.features(batch), texts), expected)


def test_all_that_is_learnt_gets_a_gradient_and_the_text_gets_none(bank):
    store, _ = bank
    for given in ({}, {"fusion": "concat"}, {"temporal": "c3d"}, {"temporal": "r(2+1)d"}):
        network = network_of(**given).train()
        for aggregation in network.branches["clip"].aggregations:
            torch.nn.init.ones_(aggregation.avgpool_bn.weight)
        for part in network.modules():
            if isinstance(part, TadaConv):
                part.rf.b.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        network(batch_of(store)).square().sum().backward()
        for name, value in network.named_parameters():
            assert value.grad is not None, name
            assert value.grad.abs().max() > 0, name
        assert "text" not in dict(network.named_parameters())


def test_bytes_stay_bytes_until_the_network_has_them(bank, monkeypatch):
    store, _ = bank
    seen = []
    forward = DvltaNet.forward
    monkeypatch.setattr(
        DvltaNet,
        "forward",
        lambda network, batch: (
            seen.append({role: one.dtype for role, one in batch.values.items()}),
            forward(network, batch),
        )[1],
    )
    made = make_head("dvlta", **SMALL, epochs=1, selection="fixed")
    made.fit(table_of(store), np.arange(20.0))
    assert all(
        one == {"semantic": torch.float16, "technical": torch.float16, "clip": torch.uint8}
        for one in seen
    )


# --- what it learns


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning") / "bank"
    return bank_at(folder, n=200, seed=1, ragged=False)


def held_out_srcc(store, mos, **given):
    """Of the last 50 videos, of a head that is trained on the others."""
    table = table_of(store, n=200)
    head = make_head("dvlta", **{**SMALL, "learning_rate": 5e-3, **given})
    head.fit(table.subset(range(150)), mos[:150])
    return srcc(mos[150:], head.predict(table.subset(range(150, 200))))


@pytest.mark.parametrize("role", SPECS)
def test_what_one_branch_alone_sees_is_learnt_with_it_and_not_without(large, role):
    store, seen = large
    others = [one for one in SPECS if one != role]
    assert held_out_srcc(store, seen[role], epochs=12) > 0.6
    assert held_out_srcc(store, seen[role], epochs=4, roles=others) < 0.35


@pytest.mark.parametrize(
    "given",
    [{"fusion": "concat", "temporal": "c3d"}, {"fusion": "add", "temporal": "r(2+1)d"}],
    ids=["concat-c3d", "add-factorised"],
)
def test_other_fusions_and_convolutions_learn_motion_too(large, given):
    store, seen = large
    assert held_out_srcc(store, seen["clip"], epochs=8, roles=["semantic", "clip"], **given) > 0.6


# --- what it holds as every head


FOLDER = {}


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    """Of the banks of the contract."""
    FOLDER["of banks"] = tmp_path_factory.mktemp("contract")


@cache
def small_bank(n, seed):
    return bank_at(FOLDER["of banks"] / f"{n}-{seed}", n=n, seed=seed)


class TestContract(HeadContract):
    """Small, on rows of other numbers in every role; some clips are of one frame."""

    @pytest.fixture
    def head(self):
        return make_head("dvlta", **{**SMALL, "stem": 2}, epochs=2)

    def table_of(self, n, *, seed=0, scenes=None):
        store, seen = small_bank(n, seed)
        return table_of(store, n=n, scenes=scenes), 50 + 10 * sum(seen.values())


@pytest.mark.parametrize("temporal", ["tadaconv", "c3d", "r(2+1)d"])
def test_company_and_order_change_no_score_of_a_fitted_head(temporal):
    store, seen = small_bank(30, 3)
    table, mos = table_of(store, n=30), seen["clip"]
    made = make_head("dvlta", **SMALL, temporal=temporal, epochs=2, averaging=0.5)
    predicted = made.fit(table, mos).predict(table)
    order = np.random.default_rng(0).permutation(30)
    close = 1e-5 * np.ptp(mos)
    np.testing.assert_allclose(made.predict(table.subset(order)), predicted[order], atol=close)
    alone = [made.predict(table.subset([row]))[0] for row in range(30)]
    np.testing.assert_allclose(alone, predicted, atol=close)


def test_streams_processes_and_parts_of_batches_are_trained_on():
    store, seen = small_bank(60, 0)
    table, mos = table_of(store, n=60), seen["clip"]
    streamed = make_head("dvlta", stem=2, epochs=2, batch_size=2, memory_gib=2.6e-4)
    assert not streamed._series(table).fits(np.arange(60))
    assert np.isfinite(streamed.fit(table, mos).predict(table)).all()
    several = make_head("dvlta", stem=2, epochs=1, runs=2)
    several.processes = 2
    apart = clone(several)
    apart.processes = 1
    found = several.fit(table, mos).predict(table)
    np.testing.assert_allclose(apart.fit(table, mos).predict(table), found, atol=1e-5)
    parts = make_head("dvlta", stem=2, epochs=2, batch_size=16, forward_videos=8)
    assert np.isfinite(parts.fit(table, mos).predict(table)).all()


@pytest.mark.parametrize("temporal", ["tadaconv", "r(2+1)d"])
def test_mixed_precision_stays_near(temporal):
    store, seen = small_bank(30, 3)
    table, mos = table_of(store, n=30), seen["clip"]
    given = {**SMALL, "stem": 2, "epochs": 1, "selection": "fixed", "temporal": temporal}
    exact, rough = (
        make_head("dvlta", **given, precision=precision).fit(table, mos).predict(table)
        for precision in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.1 * np.ptp(mos))


def test_a_packed_head_has_its_text_with_it(tmp_path):
    store, seen = bank_at(tmp_path / "bank", n=12)
    table = table_of(store, n=12)
    fitted = make_head("dvlta", **{**SMALL, "stem": 2}, epochs=1).fit(table, seen["clip"])
    fitted.save(tmp_path / "head")
    fitted.pack(tmp_path / "head", table)
    expected = fitted.predict(table)
    (store.path / "text").rename(tmp_path / "away")
    bare = table_of(FeatureStore(store.path), n=12)
    assert load_head(tmp_path / "head").predict(bare).tobytes() == expected.tobytes()


def test_averaged_weights_are_what_the_paper_form_keeps():
    made = make_head("dvlta", preset="paper")
    assert (made.averaging, made.selection, made.epochs, made.batch_size) == (
        0.99,
        "fixed",
        20,
        16,
    )
    assert (made.learning_rate, made.adapted, made.loss) == (1e-3, 0.4, "1-plcc")


def test_of_the_start_nothing_is_left_in_averaged_weights_after_the_steps_of_a_small_set():
    """LIVE-VQC's, the smallest of the paper: 468 of 585 videos are fitted."""
    made = make_head("dvlta", preset="paper")
    steps = 468 // made.batch_size * made.epochs
    assert made.averaging**steps < 0.01


def test_what_the_head_does_not_take_is_refused(bank):
    store, seen = bank
    videos, mos = table_of(store).videos, seen["clip"]
    unknown = store.table(videos, {"other": "fastvqa.map"})
    with pytest.raises(HeadError, match=r"no branch for the role 'other'; name features semantic"):
        make_head("dvlta").fit(unknown, mos)
    no_pixels = store.table(videos, {"clip": "fastvqa.map"})
    with pytest.raises(HeadError, match=r"rows of clip have shape \[6, 2, 2, 2\]; .* \[3, height"):
        make_head("dvlta").fit(no_pixels, mos)
    with pytest.raises(HeadError, match="a positive and a negative one; got 1"):
        make_head("dvlta", prompts=["good"])
    with pytest.raises(HeadError, match="cannot be standardised"):
        make_head("dvlta", standardise=True)
    alone = text_spec("alone.text", PROMPTS[:1], EMBEDDING, {})
    write_text(store, alone, TextBank(PROMPTS[:1], np.eye(1, EMBEDDING), 1.0), provenance={})
    with pytest.raises(HeadError, match=r"alone\.text has 'good' alone; bank a positive and"):
        make_head("dvlta", text_bank="alone.text").fit(table_of(store), mos)
    others = make_head("dvlta", prompts=["good", "fine"])
    with pytest.raises(HeadError, match=r"text has no prompt 'fine'; it has 'good', 'bad'"):
        others.fit(table_of(store), mos)
    with pytest.raises(HeadError, match="compared with a text of 16"):
        DvltaNet({"semantic": (8,)}, torch.eye(2, 16), sizes=Sizes(), generator=torch.Generator())


def test_prompts_are_chosen_by_name_and_in_order(bank):
    store, _ = bank
    table = table_of(store)
    usual, same, turned = (
        make_head("dvlta", prompts=prompts)._network(
            (one := make_head("dvlta"))._inputs(table.specs, one._beside(table)),
            torch.Generator(),
        )
        for prompts in (None, ["good", "bad"], ["bad", "good"])
    )
    assert torch.equal(usual.text, same.text)
    assert torch.equal(usual.text, turned.text.flip(0))
