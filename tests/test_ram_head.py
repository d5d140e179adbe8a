"""The head `ram`: on banked states and fragments, with a tail and levels beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors.clip import Clip
from vqbank.extractors.residual import tokens
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.regressors import load_head, make_head
from vqbank.regressors.card import read_card
from vqbank.regressors.drawing import drawn
from vqbank.regressors.member import Seen
from vqbank.regressors.metrics import srcc
from vqbank.regressors.ram import TESTED, clips_of
from vqbank.regressors.ram_network import (
    AestheticBranch,
    Modulation,
    TechnicalBranch,
    TechnicalSizes,
)
from vqbank.regressors.tail import ImageTail, TextTail, image_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable
from vqbank.store.tail import Tail, Tower, write_tail
from vqbank.store.text import TextBank, text_spec, write_text
from vqbank.testing import HeadContract

WIDTH, EMBEDDING, FRAMES, SIDE = 16, 8, 4, 28
LEVELS = ("excellent", "mediocre", "terrible")
CLIPS = 7
FEATURES = {
    "aesthetic": FeatureSpec("clip.tokens", (5, WIDTH), "float16", {"cut": 1}),
    "fragments": FeatureSpec("residual.fragments", (FRAMES, 3, SIDE, SIDE), "uint8", {}),
    "residuals": FeatureSpec("residual.residuals", (FRAMES, 3, SIDE, SIDE), "int16", {}),
}
QUICK = {
    "clip_frames": FRAMES, "part": 2, "attentions": 2, "width": WIDTH, "epochs": 2,
    "learning_rate": 1e-3,
}  # fmt: skip


def weights(module, seed):
    draw = torch.Generator().manual_seed(seed)
    return {n: (0.2 * torch.randn(v.shape, generator=draw)).numpy() for n, v in module.items()}


def tail_of(seed=0, *, whole=True):
    """Three blocks of an image tower behind block 1, the two before it, and a text tower."""
    sizes = {"width": WIDTH, "heads": 2, "hidden": 64, "activation": "quick_gelu"}
    image = {**sizes, "cut": 1, "layers": 4, "embedding": EMBEDDING}
    text = {**sizes, "layers": 1, "context": 4, "vocabulary": 9, "embedding": EMBEDDING}
    with torch.device("meta"):
        behind, words = ImageTail(**image).state_dict(), TextTail(**text).state_dict()
        every = ImageTail(**{**image, "cut": -1, "layers": 2}).state_dict()
        before = {name: value for name, value in every.items() if name.startswith("blocks.")}
        before |= {
            "conv1.weight": torch.empty(WIDTH, 3, 4, 4),
            "class_embedding": torch.empty(WIDTH),
            "positional_embedding": torch.empty(50, WIDTH),
            "ln_pre.weight": torch.empty(WIDTH),
            "ln_pre.bias": torch.empty(WIDTH),
        }
    towers = {"image": Tower(image, weights(behind, seed)), "text": Tower(text, weights(words, 1))}
    if whole:
        towers["early"] = Tower({"cut": 1}, weights(before, seed + 1))
    return Tail(towers, {})


def bank_at(folder, *, n=24, whole=True, clips=CLIPS, frames=None, residuals=None):
    """Rows of n videos, and what stands beside them; the MOS is how dark fragments are."""
    store = FeatureStore.create(folder)
    rng = np.random.default_rng(3)
    mos = rng.uniform(0, 1, n)
    rows = {
        "aesthetic": [rng.normal(size=(rng.integers(1, 4), 5, WIDTH)) for _ in range(n)],
        "fragments": [
            rng.integers(0, 60 + int(190 * one), (clips, FRAMES, 3, SIDE, SIDE)) for one in mos
        ],
        "residuals": [rng.integers(-9, 9, (clips, FRAMES, 3, SIDE, SIDE)) for _ in range(n)],
    }
    for role, spec in FEATURES.items():
        with store.writer(spec, provenance={}, durable=False) as writer:
            for number, values in enumerate(rows[role]):
                t = len(values)
                feature = Feature(
                    values.astype(spec.storage_dtype), np.arange(float(t)), np.arange(t)
                )
                printed = Fingerprint(1, "0" * 64)
                writer.add(f"set/{number}.mp4", feature, fingerprint=printed, probe={})
    write_tail(store, FEATURES["aesthetic"], tail_of(whole=whole))
    levels = np.linalg.qr(rng.normal(size=(EMBEDDING, 3)))[0].T.astype(np.float32)
    write_text(
        store,
        text_spec("ram-prompts.text", LEVELS, EMBEDDING, {}),
        TextBank(LEVELS, levels, 1.0),
        provenance={},
    )
    return store, mos


def table_of(store, n=24):
    names = [f"set/{number}.mp4" for number in range(n)]
    videos = [Video(name, Path(name), scene=name) for name in names]
    return store.table(videos, {role: spec.name for role, spec in FEATURES.items()})


@pytest.fixture(scope="module")
def banked(tmp_path_factory):
    return bank_at(tmp_path_factory.mktemp("ram") / "bank")


@pytest.fixture(scope="module")
def fitted(banked):
    store, mos = banked
    return make_head("ram", **QUICK).fit(table_of(store), mos)


class TestContract(HeadContract):
    """On features of frames and embeddings of fragments, which need no bank."""

    def table_of(self, n, *, seed=0, scenes=None):
        rng = np.random.default_rng([seed, n])
        mos = rng.uniform(20, 80, n)
        scene = [str(row % scenes) if scenes else None for row in range(n)]
        videos = [Video(f"set/{row}.mp4", Path("x"), None, scene[row]) for row in range(n)]
        shift = (mos - 50)[:, None] / 30
        clip = (5, 4, 3, 8)
        rows = {
            "aesthetic": [(rng.normal(0, 0.3, (2, 64)) + one).astype(np.float32) for one in shift],
            "fragments": [rng.normal(size=clip).astype(np.float16) for _ in shift],
            "residuals": [rng.normal(size=clip).astype(np.float16) for _ in shift],
        }
        return FeatureTable.from_arrays(videos, rows), mos

    @pytest.fixture
    def head(self):
        return make_head("ram", **{**QUICK, "prompts": None, "from_clip": False, "epochs": 3})


# --- what a step sees


def test_a_step_sees_one_clip_from_a_random_start_and_a_prediction_three_even_ones():
    rng = np.random.default_rng(0)
    assert clips_of(CLIPS, None).tolist() == [0, 1, 2]
    assert {tuple(clips_of(CLIPS, rng).tolist()) for _ in range(99)} == {(3,), (4,), (5,), (6,)}
    with pytest.raises(HeadError, match=r"of the 3 clips .* train_clips: 4"):
        clips_of(TESTED, rng)


def test_clips_that_are_predicted_are_bytes_and_the_first_three(banked, fitted):
    table = table_of(banked[0])
    series, rows = fitted._series(table), np.arange(4)
    (window,) = series.windows(rows, rng=np.random.default_rng(0))
    values, masks = window.padded([rows], [None], [Seen(fitted._row_choice)])
    for role in ("fragments", "residuals"):
        expected = np.stack([clips[:TESTED] for clips in table.arrays(role)[:4]])
        assert values[role].numpy().dtype == expected.dtype
        np.testing.assert_array_equal(values[role][0], expected)
    assert masks["aesthetic"].sum(dim=2)[0].tolist() == table.lengths("aesthetic")[:4].tolist()


# --- what it stands on


def test_it_starts_from_clip_and_holds_what_it_learnt_alone(banked, fitted, tmp_path):
    store, _ = banked
    table = table_of(store)
    inputs = fitted._inputs(table.specs, fitted._beside(table))
    begun = fitted._begun(inputs, torch.Generator().manual_seed(0)).network.technical
    drawn = fitted._network(inputs, torch.Generator().manual_seed(0)).network.technical
    early, image = (tail_of().towers[name].tensors for name in ("early", "image"))

    for stream in ("fragments", "residuals"):
        own = begun.embeddings[stream]
        np.testing.assert_array_equal(own.conv1.weight.detach(), early["conv1.weight"])
        np.testing.assert_array_equal(own.class_embedding.detach(), early["class_embedding"])
        np.testing.assert_array_equal(own.ln_pre.bias.detach(), early["ln_pre.bias"])
    layer = begun.tim.ccct[0]
    np.testing.assert_array_equal(
        layer.block.mlp.c_fc.weight.detach(), early["blocks.0.mlp.c_fc.weight"]
    )
    assert torch.equal(layer.message_fc.weight, drawn.tim.ccct[0].message_fc.weight)
    np.testing.assert_array_equal(begun.proj.detach(), image["proj"])
    assert set(fitted.record_["companions"]["aesthetic"]) == {"tail/image", "text/ram-prompts.text"}
    kept = fitted.ensemble_.state
    assert not any("tail" in name or "levels" in name for name in kept)
    assert any(name.startswith("network.aesthetic.modulations.3.") for name in kept)


def test_later_message_layers_start_from_later_blocks(banked):
    table = table_of(banked[0])
    head = make_head("ram", **{**QUICK, "layers": 5})
    inputs = head._inputs(table.specs, head._beside(table))
    layers = head._begun(inputs, torch.Generator().manual_seed(0)).network.technical.tim.ccct
    image = tail_of().towers["image"].tensors
    np.testing.assert_array_equal(
        layers[2].block.attn.in_proj_weight.detach(), image["blocks.2.attn.in_proj_weight"]
    )
    assert layers[4].block.ln_1.weight.unique().tolist() == [1.0]  # there are four blocks


def test_a_saved_head_says_the_same_and_takes_no_tower_along_that_it_started_from(
    banked, fitted, tmp_path
):
    table = table_of(banked[0])
    fitted.save(tmp_path / "head")
    fitted.pack(tmp_path / "head", table)
    loaded = load_head(tmp_path / "head")
    assert np.array_equal(loaded.predict(table), fitted.predict(table))
    arrays = {role: table.arrays(role) for role in table.roles}
    assert read_card(tmp_path / "head")["name"] == "ram"
    with pytest.raises(HeadError, match="aesthetic"):
        make_head("ram", **QUICK).fit(FeatureTable.from_arrays(table.videos, arrays), banked[1])


def test_a_tail_that_is_not_whole_is_named(tmp_path):
    store, mos = bank_at(tmp_path / "bank", n=12, whole=False)
    with pytest.raises(HeadError, match="has no tower 'early'"):
        make_head("ram", **QUICK).fit(table_of(store, 12), mos)
    head = make_head("ram", **QUICK, from_clip=False).fit(table_of(store, 12), mos)
    assert np.isfinite(head.predict(table_of(store, 12))).all()
    write_tail(store, FEATURES["aesthetic"], tail_of())  # what is missing is added
    assert make_head("ram", **QUICK).fit(table_of(store, 12), mos).record_["companions"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"anchor": 3}, "has 3 levels of width 8; features have 8, and the anchor is level 3"),
        ({"prompts": "other.text"}, "other.text"),
        ({"clip_frames": 8}, "clips of 4 frames are banked; lower clip_frames"),
        ({"width": 32}, "cannot start from this CLIP: class_embedding"),
        ({"roles": ["aesthetic", "fragments"]}, "takes the roles aesthetic, fragments, residuals"),
    ],
)
def test_what_does_not_fit_is_named(banked, given, message):
    store, mos = banked
    with pytest.raises(HeadError, match=message):
        make_head("ram", **{**QUICK, **given}).fit(table_of(store), mos)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip_frames": 6, "part": 4}, "not whole pairs and parts of 4"),
        ({"standardise": True}, "not standardised"),
        ({"usage": "sum"}, "usage"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_read(given, message):
    with pytest.raises(HeadError, match=message):
        make_head("ram", **{**QUICK, **given})


def test_features_of_frames_whose_residual_no_attention_could_see_are_refused():
    """Of a frame that is one token: it answers the same, whatever asks."""
    table, mos = of_residuals(n=12)
    frames = {
        role: [clips.mean(axis=2) for clips in table.arrays(role)]
        for role in ("fragments", "residuals")
    }
    seen = FeatureTable.from_arrays(
        table.videos, {"aesthetic": table.arrays("aesthetic"), **frames}
    )
    given = {**QUICK, "prompts": None, "from_clip": False}
    with pytest.raises(HeadError, match="usage 'cross' asks the tokens of a frame"):
        make_head("ram", **given).fit(seen, mos)
    head = make_head("ram", **given, usage="residual-concat").fit(seen, mos)
    turned = {**frames, "residuals": frames["residuals"][::-1]}
    other = FeatureTable.from_arrays(
        table.videos, {"aesthetic": table.arrays("aesthetic"), **turned}
    )
    assert (head.predict(other) != head.predict(seen)).all()


def test_roles_that_a_wiring_does_not_look_at_are_not_read(banked):
    store, mos = banked
    table = table_of(store)
    assert list(make_head("ram", **QUICK, technical=False).fit(table, mos).specs_) == ["aesthetic"]
    none = make_head("ram", **QUICK, usage="none").fit(table, mos)
    assert list(none.specs_) == ["aesthetic", "fragments"]
    direct = make_head("ram", **QUICK, usage="direct").fit(table, mos)
    assert list(direct.specs_) == ["aesthetic", "fragments", "residuals"]


def test_batches_of_parts_learn_what_whole_batches_learn(banked):
    store, mos = banked
    table = table_of(store)
    whole = make_head("ram", **QUICK).fit(table, mos).predict(table)
    assert np.isfinite(whole).all()
    parts = make_head("ram", **QUICK, forward_videos=1).fit(table, mos).predict(table)
    assert np.isfinite(parts).all()  # another draw of clips: parts have draws of their own


# --- cached and uncached


def test_adapters_on_banked_states_learn_what_they_learn_in_the_whole_tower():
    """Scores and gradients, as parts of the largest."""
    clip = Clip(weights="random-tiny", cut=8, outputs=("tokens",), resize_mode="squash")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 80), dtype=np.uint8)
    views = clip.view(torch.from_numpy(pictures))
    with torch.inference_mode():
        rows = clip.build(torch.device("cpu"))(views[:, None])["tokens"][:, 0]
    sizes = clip.tail("tokens").towers["image"]
    tail = image_tail(sizes, Path("x"))
    width = tail.proj.shape[0]
    draw = torch.Generator().manual_seed(0)
    modulations = {n: drawn(lambda: Modulation(width), draw) for n in range(8, 12)}
    branch = AestheticBranch(tail, modulations)
    line = torch.randn(tail.proj.shape[1], generator=draw)
    uncut = clip.load().visual.eval().requires_grad_(False)

    def whole():
        pixels = normalise(views, CLIP_MEAN, CLIP_STD)
        state = uncut._embeds(pixels)
        for number, block in enumerate(uncut.transformer.resblocks):
            state = block(state)
            if number in modulations:
                state = modulations[number](state)
        return uncut.ln_post(state)[:, 0] @ uncut.proj

    found = []
    for features in (branch(rows.clone()), whole()):
        scores = features @ line
        learnt = [value for one in modulations.values() for value in one.parameters()]
        gradients = torch.autograd.grad(scores.square().sum(), learnt)
        found.append([scores, *gradients])
    for cached, uncached in zip(*found, strict=True):
        assert (cached - uncached).abs().max() <= 1e-4 * uncached.abs().max()
    assert all(one.abs().max() > 0 for one in found[0])


def test_banked_embeddings_of_fragments_say_what_pixels_say():
    """Scores and gradients, where the embedding of pixels is that of the bank."""
    draw = torch.Generator().manual_seed(0)
    sizes = TechnicalSizes(
        width=WIDTH, heads=2, embedding=EMBEDDING, layers=2, part=2, usage="cross", mutual=True,
        messages=True, skip=False,
    )  # fmt: skip
    of_pixels = drawn(lambda: TechnicalBranch((FRAMES, 3, SIDE, SIDE), sizes), draw)
    of_tokens = drawn(lambda: TechnicalBranch((FRAMES, 49, WIDTH), sizes), draw)
    own = of_pixels.state_dict()
    of_tokens.load_state_dict({k: v for k, v in own.items() if "conv1" not in k})
    pixels = {
        role: torch.randn(2, FRAMES, 3, SIDE, SIDE, generator=draw)
        for role in ("fragments", "residuals")
    }
    banked = {
        role: torch.stack([tokens(clip, own[f"embeddings.{role}.conv1.weight"]) for clip in clips])
        for role, clips in pixels.items()
    }
    line = torch.randn(EMBEDDING, generator=draw)
    found = []
    for branch, clips in ((of_pixels, pixels), (of_tokens, banked)):
        scores = branch(clips) @ line
        scores.square().sum().backward()
        gradients = {name: value.grad for name, value in branch.named_parameters()}
        found.append((scores, {k: v for k, v in gradients.items() if "conv1" not in k}))
    (scores, gradients), (cached, of_cached) = found
    assert (cached - scores).abs().max() <= 1e-4 * scores.abs().max()
    assert gradients.keys() == of_cached.keys()
    for name, value in gradients.items():
        assert (of_cached[name] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-7


# --- learning


def of_residuals(n=110):
    """Quality that only the residual holds: how far its tokens lie along one direction."""
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 1, n)
    direction = np.random.default_rng(1).normal(size=WIDTH)
    videos = [Video(f"{row}", Path("x"), scene=f"{row}") for row in range(n)]
    clip = (5, FRAMES, 6, WIDTH)
    noise = lambda: rng.normal(0, 0.5, clip)  # noqa: E731
    rows = {
        "aesthetic": [rng.normal(size=(2, 16)).astype(np.float32) for _ in mos],
        "fragments": [noise().astype(np.float16) for _ in mos],
        "residuals": [(noise() + 6 * (one - 0.5) * direction).astype(np.float16) for one in mos],
    }
    return FeatureTable.from_arrays(videos, rows), mos


def test_quality_that_only_the_residual_holds_is_learnt_with_cross_attention_and_not_without():
    """The lowest and the highest fifth (figure 5) are looked at apart, too."""
    table, mos = of_residuals()
    fit, test = np.arange(70), np.arange(70, 110)
    given = {**QUICK, "prompts": None, "from_clip": False, "epochs": 20, "selection": "fixed",
             "learning_rate": 5e-3, "weight_decay": 0.0}  # fmt: skip
    predicted = {}
    for usage in ("cross", "none"):
        head = make_head("ram", **given, usage=usage).fit(table.subset(fit), mos[fit])
        predicted[usage] = head.predict(table.subset(test))
    assert srcc(mos[test], predicted["cross"]) > 0.8
    assert abs(srcc(mos[test], predicted["none"])) < 0.5
    low, high = np.quantile(mos[test], [0.2, 0.8])
    extreme = (mos[test] <= low) | (mos[test] >= high)
    assert np.corrcoef(mos[test][extreme], predicted["cross"][extreme])[0, 1] > 0.8
