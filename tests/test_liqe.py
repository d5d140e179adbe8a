import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors.clip_towers import architecture
from vqbank.extractors.liqe import PROMPTS, Liqe, Patches, scores
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import InvalidFeatureError, WeightsError
from vqbank.store.schema import Feature, Fingerprint
from vqbank.store.text import has_text, read_text, write_text

CPU = torch.device("cpu")
TINY = Liqe(weights="random-tiny", outputs=("feature", "logits"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures(frames):
    """uint8 [3, 3, h, w]."""
    return torch.from_numpy(frames("liqe", 3, 90, 130)).permute(0, 3, 1, 2)


def rows(extractor, pictures):
    """Rows [n, d] by output, picture by picture."""
    compare = extractor.build(CPU)
    with torch.inference_mode():
        found = [compare(clip[None, None]) for clip in extractor.view(pictures)]
    return {name: torch.cat([each[name] for each in found])[:, 0] for name in found[0]}


# Prompts.


def test_the_prompts_are_the_official_ones_in_their_order():
    import open_clip

    assert len(PROMPTS) == len(set(PROMPTS)) == 495
    assert PROMPTS[3 * 99 + 7 * 11 + 2] == (
        "a photo of a still_life with noise artifacts, which is of good quality"
    )
    tokens = open_clip.SimpleTokenizer()(list(PROMPTS), 77).int().numpy()
    assert tokens.shape == (495, 77)
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    assert digest == "e55e68bc88bd5480b95f646a081c1a31330ee5995cf7404878527197832eddac"


# Patches.


def test_the_patches_of_common_sizes_are_those_of_the_specification():
    rows_of_hd = [0, 1, 3, 5, 7, 8, 10, 12, 14, 16, 17, 19, 21, 23, 25]
    columns_of_hd = [0, 43, 32, 21, 10, 53, 42, 31, 20, 9, 52, 41, 30, 19, 8]
    assert Patches().grid(1080, 1920) == (27, 54)
    np.testing.assert_array_equal(Patches().cells(1080, 1920).T, [rows_of_hd, columns_of_hd])
    for (height, width), step in (((720, 1280), 36), ((540, 960), 16)):
        cells = Patches().cells(height, width)
        numbers = cells @ [Patches().grid(height, width)[1], 1]
        np.testing.assert_array_equal(numbers, step * np.arange(15))


@pytest.mark.parametrize(("height", "width"), [(540, 960), (641, 360), (415, 447), (224, 672)])
def test_patches_are_cut_as_official_code_selects_them_from_all(frames, height, width):
    """`unfold` by `unfold` with every (count // 15)-th taken, at odd and portrait sizes too."""
    pictures = torch.from_numpy(frames("patches", 2, height, width)).permute(0, 3, 1, 2)
    every = pictures.unfold(2, 224, 32).unfold(3, 224, 32).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    assert every.shape[1] >= 15
    selected = every[:, torch.arange(15) * (every.shape[1] // 15)]
    ours = Patches()(pictures)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, selected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (240, 320), (255, 640)])
def test_fewer_than_fifteen_patches_are_all_the_first_one(frames, height, width):
    pictures = torch.from_numpy(frames("few", 1, height, width)).permute(0, 3, 1, 2)
    first = pictures[:, None, :, :224, :224].expand(-1, 15, -1, -1, -1)
    assert torch.equal(Patches()(pictures), first)


@pytest.mark.parametrize(("height", "width"), [(223, 640), (640, 223), (180, 320)])
def test_frames_smaller_than_a_patch_are_refused(height, width):
    with pytest.raises(
        InvalidFeatureError, match=rf"frames of {width} x {height} are too small for liqe.*224"
    ):
        Patches()(torch.zeros(1, 3, height, width, dtype=torch.uint8))


# Rows.


def test_rows_are_means_over_patches_of_what_the_towers_give(pictures):
    import open_clip

    network = TINY.load().eval()
    tokens = open_clip.SimpleTokenizer()([PROMPTS[0], PROMPTS[494]])
    with torch.inference_mode():
        text = network.encode_text(tokens)
        text = text / text.norm(dim=1, keepdim=True)
        pixels = normalise(TINY.view(pictures), CLIP_MEAN, CLIP_STD)
        found = [network.encode_image(patches) for patches in pixels]
        unit = torch.stack([each / each.norm(dim=1, keepdim=True) for each in found])
        logits = (network.logit_scale.exp() * unit @ text.T).mean(dim=1)
    ours = rows(TINY, pictures)
    torch.testing.assert_close(ours["feature"], unit.mean(dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours["logits"][:, [0, 494]], logits, rtol=0, atol=1e-5)
    assert ours["logits"].std(dim=1).min() > 0.01  # prompts differ


def test_the_banked_feature_and_text_hold_the_logits(pictures, tmp_path):
    """Read back from a bank: nothing is lost by keeping 512 numbers in place of 495."""
    direct = rows(TINY, pictures)
    store = FeatureStore.create(tmp_path / "bank")
    specs = TINY.specs(decoder="pyav")
    writer = store.writer(specs["feature"], provenance={})
    values = direct["feature"].numpy()
    feature = Feature(values, np.arange(3) / 25, np.arange(3))
    writer.add("video", feature, fingerprint=Fingerprint(0, ""), probe={})
    writer.commit()
    write_text(store, TINY.text_spec(), TINY.text(CPU), provenance={})
    assert has_text(store, TINY.text_spec())

    text = read_text(store, "liqe.text")
    assert text.prompts == PROMPTS
    np.testing.assert_allclose(np.linalg.norm(text.values, axis=1), 1, atol=1e-6)
    banked = store.read(specs["feature"], "video").values
    logits = text.scale * banked @ text.values.T
    np.testing.assert_allclose(logits, direct["logits"].numpy(), rtol=0, atol=1e-5)


def test_the_score_is_the_expected_quality_over_all_prompts(pictures):
    """Prompt by prompt, by the word that it names; not what follows from a softmax per patch."""
    found = rows(Liqe(weights="random-tiny", outputs=("logits", "score")), pictures)
    chances = torch.softmax(found["logits"].double(), dim=1)
    words = ("bad", "poor", "fair", "good", "perfect")
    value = [1 + words.index(prompt.split(" of ")[-1].split()[0]) for prompt in PROMPTS]
    expected = chances @ torch.tensor(value, dtype=torch.float64)
    assert found["score"].shape == (3, 1)
    torch.testing.assert_close(found["score"][:, 0].double(), expected, rtol=1e-6, atol=0)
    assert len(set(expected.tolist())) == 3


def test_a_picture_that_is_surely_of_one_quality_has_its_score():
    logits = torch.zeros(5, 495)
    for quality in range(5):
        logits[quality, 99 * quality + 42] = 100.0
    torch.testing.assert_close(scores(logits)[:, 0], torch.arange(1.0, 6.0))


def test_a_score_changes_neither_the_key_nor_the_bits_of_a_feature(pictures):
    alone = Liqe(weights="random-tiny", outputs=("feature",))
    beside = Liqe(weights="random-tiny", outputs=("feature", "score"))
    specs = beside.specs(decoder="pyav")
    assert specs["feature"] == alone.specs(decoder="pyav")["feature"]
    assert (specs["score"].shape, specs["score"].stored_dtype) == ((1,), "float32")
    assert torch.equal(rows(alone, pictures)["feature"], rows(beside, pictures)["feature"])


def test_only_the_feature_is_banked_where_nothing_is_said(pictures):
    usual = Liqe(weights="random-tiny")
    (spec,) = usual.specs(decoder="pyav").values()
    assert (spec.name, spec.shape, spec.stored_dtype) == ("liqe.feature", (512,), "float32")
    found = rows(usual, pictures)
    assert found.keys() == {"feature"}
    assert torch.equal(found["feature"], rows(TINY, pictures)["feature"])


def test_the_text_bank_has_the_key_of_what_changes_its_numbers():
    def key(**parameters):
        return Liqe(**{"weights": "random", **parameters}).text_spec().key

    assert key() == key(outputs=("logits",)) == key(stored_dtype="bfloat16")
    assert len({key(), key(weights="random-tiny"), key(compute_dtype="bfloat16")}) == 3


# Weight files.


class Small(Liqe):
    """Reads files of the tiny network."""

    view = TINY.view
    configuration = TINY.configuration


def write(path, layout):
    """The tiny network's weights as they are published."""
    state = TINY.load().state_dict()
    if layout == "pyiqa":
        state = {"params": {f"clip_model.{key}": value for key, value in state.items()}}
    if layout == "half":
        state = {key: value.half() for key, value in state.items()}
    torch.save(state, path)
    return Small(weights=str(path), outputs=("feature", "logits"))


def test_both_published_layouts_give_the_same_bits(pictures, tmp_path):
    expected = rows(TINY, pictures)
    for layout in ("official", "pyiqa"):
        found = rows(write(tmp_path / f"{layout}.pt", layout), pictures)
        for name, values in found.items():
            assert torch.equal(values, expected[name])


def test_half_precision_weights_are_computed_in_float32(pictures, tmp_path):
    extractor = write(tmp_path / "half.pt", "half")
    assert {value.dtype for value in extractor.load().state_dict().values()} == {torch.float32}
    found, expected = rows(extractor, pictures), rows(TINY, pictures)
    torch.testing.assert_close(found["feature"], expected["feature"], rtol=0, atol=1e-3)
    assert not torch.equal(found["feature"], expected["feature"])


def test_the_text_of_other_weights_is_not_remembered_for_these(tmp_path):
    extractor = write(tmp_path / "weights.pt", "official")
    first = extractor.text(CPU).values
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    state["ln_final.bias"] += 1
    torch.save(state, tmp_path / "weights.pt")
    assert not np.array_equal(extractor.text(CPU).values, first)


def test_a_training_checkpoint_is_refused_by_what_it_lacks(tmp_path):
    torch.save({"model_state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "wrapped.pt")
    with pytest.raises(WeightsError, match=r"no plain state dict.*liqe_mix\.pt"):
        Liqe(weights=str(tmp_path / "wrapped.pt")).build(CPU)


def test_weights_of_another_network_are_named_by_their_keys(tmp_path):
    for layout in ("official", "pyiqa"):
        extractor = write(tmp_path / f"{layout}.pt", layout)
        with pytest.raises(WeightsError, match=r"of another shape: .*\(\d+, \d+\) for"):
            Liqe(weights=extractor.weights).build(CPU)


# Size and cost.


def test_a_frame_costs_the_multiplications_of_the_specification():
    with torch.device("meta"):
        network = architecture(Liqe(weights="random").configuration).eval()
        patches = torch.empty(15, 3, 224, 224)
    assert sum(parameter.numel() for parameter in network.parameters()) == 151_277_313
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional.normalize(network.encode_image(patches))
    assert counter.get_total_flops() / 2 == pytest.approx(66.1e9, rel=0.01)
