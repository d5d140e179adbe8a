import numpy as np
import pytest
import torch
from PIL import Image

from vqbank.extractors import make_extractor
from vqbank.extractors.clip_towers import tokens_of
from vqbank.extractors.frame_sampling import FRAME_SAMPLINGS
from vqbank.extractors.networks.pe_core import PeCore, official_keys, our_keys
from vqbank.extractors.pe import LEVELS, Pe
from vqbank.extractors.sampling import MotionSampling, Uniform
from vqbank.extractors.views import normalise
from vqbank.store.errors import RecipeError, UnknownNameError, WeightsError

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
TINY = Pe(weights="random-tiny").sizes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))


@pytest.fixture(scope="module")
def clips(frames):
    """uint8 [2, 1, 3, 56, 56]."""
    pictures = torch.from_numpy(frames("pe", 2, 70, 90)).permute(0, 3, 1, 2)
    return Pe(weights="random-tiny").view(pictures)[:, None]


@pytest.fixture(scope="module")
def network():
    return Pe(weights="random-tiny").load().eval()


def rows(clips, *outputs, **parameters):
    extractor = Pe(weights="random-tiny", outputs=outputs, **parameters)
    with torch.inference_mode():
        return {name: values[:, 0] for name, values in extractor.build(CPU)(clips).items()}


def keys(**parameters):
    extractor = Pe(weights="random", outputs=("pooled", "feature", "tokens"), **parameters)
    return {name: spec.key for name, spec in extractor.specs(decoder="pyav").items()}


# Pixels and frames.


SIZES = [(90, 160), (161, 97), (40, 30), (56, 56), (1, 7)]


@pytest.mark.parametrize("size", SIZES)
def test_frames_are_resized_as_pillow_does_it(frames, size):
    """Of some portrait pictures new versions of Pillow round the columns first, old ones never."""
    height, width = size
    rounded_otherwise = 1 if height > width > 56 else 0
    picture = frames("squash", 1, height, width)[0]
    expected = np.asarray(Image.fromarray(picture).resize((56, 56), Image.Resampling.BILINEAR))
    found = Pe(weights="random-tiny").view(torch.from_numpy(picture).permute(2, 0, 1)[None])
    error = found[0].permute(1, 2, 0).int() - torch.from_numpy(expected.copy()).int()
    assert error.abs().max() <= rounded_otherwise


@pytest.mark.parametrize("size", [*SIZES, (57, 113), (112, 28), (9, 1), (200, 56)])
def test_pixels_are_those_of_the_view_that_the_key_names(frames, size):
    """Pe had a resize of its own, `PilSquash`: Pillow 11's in exact arithmetic, rows first."""
    extractor = Pe(weights="random-tiny")
    height, width = size
    pictures = torch.from_numpy(frames("squash", 2, height, width)).permute(0, 3, 1, 2)
    across, down = (torch.from_numpy(bilinear_weights(length, 56)) for length in (width, height))
    expected = torch.stack(
        [to_8_bits(down @ to_8_bits(one.double() @ across.T)) for one in pictures]
    )
    assert extractor.described_view() == {"kind": "PilSquash", "side": 56}
    assert torch.equal(extractor.view(pictures), expected.byte())


def to_8_bits(sums):
    return ((sums + 2**21) / 2**22).floor().clamp(0, 255)


def bilinear_weights(length, target):
    """[target, length]: how much of each old pixel is in each new one, 2^22 being all."""
    scale = length / target
    reach = max(scale, 1.0)
    weights = np.zeros((target, length))
    for place in range(target):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(length, int(centre + reach + 0.5))
        distance = (np.arange(first, last) - centre + 0.5) * (1 / reach)
        share = np.maximum(0.0, 1 - np.abs(distance))
        weights[place, first:last] = np.floor(share / sum(share.tolist()) * 2**22 + 0.5)
    return weights


def test_the_frames_are_chosen_by_the_rules_of_q_clip():
    assert Pe(weights="random").sampling == Uniform(8)
    chosen = {name: Pe(weights="random", frames=name) for name in FRAME_SAMPLINGS}
    for name, pe in chosen.items():
        assert pe.sampling == FRAME_SAMPLINGS[name](8)
        assert isinstance(pe.sampling, MotionSampling) == ("mse" in name or name == "mixed")
    assert len({pe.specs(decoder="pyav")["pooled"].key for pe in chosen.values()}) == len(chosen)


def test_an_unknown_choice_of_frames_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'uniforn'.*'uniform'"):
        make_extractor("pe", weights="random", frames="uniforn").specs(decoder="pyav")


# Keys.


def test_cut_and_rotation_are_in_the_keys_that_they_change():
    usual = keys()
    assert keys(cut=17) == {**usual, "tokens": keys(cut=17)["tokens"]}
    assert not set(keys(cut=17).values()) >= set(usual.values())
    assert not set(keys(rope="qclip").values()) & set(usual.values())


def test_prompts_are_in_the_key_of_the_text_alone():
    other = Pe(weights="random", prompts=("a b", "c"))
    assert keys(prompts=("a b", "c")) == keys()
    assert other.text_spec().key != Pe(weights="random").text_spec().key
    assert Pe(weights="random", prompts=()).text_spec() is None
    assert Pe(weights="random", rope="qclip").text_spec() == Pe(weights="random").text_spec()


@pytest.mark.parametrize("parameters", [{"cut": 24}, {"cut": -1}, {"rope": "eva"}])
def test_what_the_network_does_not_have_is_refused(parameters):
    with pytest.raises(RecipeError, match="pe: parameter"):
        make_extractor("pe", **parameters)


# Weights.


def test_metas_keys_become_ours_and_back(network):
    state = network.state_dict()
    official = official_keys(state)
    assert official["visual.class_embedding"].shape == (TINY.width,)
    assert official["visual.attn_pool.attn.in_proj_weight"].shape == (3 * TINY.width, TINY.width)
    assert official["visual.transformer.resblocks.23.attn.in_proj_bias"].shape == (3 * TINY.width,)
    for prefix in ("", "module."):
        ours = our_keys({f"{prefix}{key}": value for key, value in official.items()})
        assert ours.keys() == state.keys()
        assert all(torch.equal(ours[key], state[key]) for key in state)


def test_the_keys_are_those_of_meta_and_no_others(golden):
    shapes = golden("pe_core_l14").recipe["state_dict"]
    with torch.device("meta"):
        ours = our_keys({key: torch.empty(shape) for key, shape in shapes.items()})
    official = official_keys(ours)
    assert {key: list(value.shape) for key, value in official.items()} == shapes


def test_open_clips_file_of_the_same_weights_is_read_too(network):
    converted = {}
    for key, value in network.state_dict().items():
        if key == "proj":
            converted["visual.trunk.head.weight"] = value.T
            converted["visual.trunk.head.bias"] = torch.zeros(TINY.embedding)
        else:
            converted[f"visual.{key}" if key.startswith("trunk.") else key] = value
    ours = our_keys(converted)
    assert ours.keys() == network.state_dict().keys()
    assert torch.equal(ours["proj"], network.proj)


def test_weights_of_another_network_are_refused_by_their_keys(tmp_path):
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"missing: .* more; unexpected: text\.features\.0\.w"):
        Pe(weights=str(tmp_path / "vgg.pth")).build(CPU)


def test_weights_that_are_not_at_hand_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"Meta \(Apache-2.0\).*--weights pe=PATH"):
        Pe().specs(decoder="pyav")


# Numbers.


def test_outputs_do_not_depend_on_what_else_is_wanted(clips):
    together = rows(clips, "pooled", "feature", "tokens")
    for name, values in together.items():
        assert torch.equal(rows(clips, name)[name], values)


def test_the_state_is_that_after_the_block_of_the_cut(clips, network):
    pictures = normalise(clips[:, 0], HALF, HALF)
    with torch.inference_mode():
        states = list(network.states(pictures, 23))
        trunk = network.trunk
        found = trunk.forward_intermediates(
            pictures,
            indices=[5],
            return_prefix_tokens=True,
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        pooled = trunk(pictures)
    others, first = found[0]
    assert torch.equal(states[5], torch.cat([first, others], dim=1))
    assert torch.equal(rows(clips, "tokens", cut=5)["tokens"], states[5])
    assert torch.equal(rows(clips, "tokens", cut=18)["tokens"], states[18])
    assert torch.equal(rows(clips, "pooled")["pooled"], pooled)


def test_q_clips_rotations_are_shifted_by_one_token(clips, network):
    right = network.rotation("official")
    still = right[0]
    wrong = PeCore(TINY, "qclip").rotation("qclip")
    assert torch.equal(wrong[:-1], right[1:])
    assert torch.equal(wrong[-1], still)
    half = len(still) // 2
    assert torch.equal(still, torch.cat([torch.zeros(half), torch.ones(half)]))
    features = [rows(clips, "feature", rope=rope)["feature"] for rope in ("official", "qclip")]
    assert (features[0] - features[1]).abs().max() > 1e-3 * features[0].abs().max()


# Text.


def test_the_text_bank_has_the_prompts_at_unit_length(network):
    pe = Pe(weights="random-tiny")
    text = pe.text(CPU)
    assert text.prompts == LEVELS == tuple(pe.text_spec().identity["prompts"])
    assert text.values.shape == (5, TINY.embedding)
    np.testing.assert_allclose(np.linalg.norm(text.values, axis=1), 1, atol=1e-6)
    assert text.scale == pytest.approx(network.logit_scale.exp().item())
    with torch.inference_mode():
        one = network.text(tokens_of(LEVELS[2:3], 32))[0]
    np.testing.assert_allclose(text.values[2], (one / one.norm()).numpy(), atol=1e-5)


def test_levels_differ_in_one_token_and_a_long_prompt_keeps_its_end():
    tokens = tokens_of(LEVELS, 32)
    assert tokens.shape == (5, 32)
    assert ((tokens != tokens[0]).any(dim=0)).nonzero().flatten().tolist() == [7]
    assert tokens_of((" ".join(["excellent"] * 40),), 32)[0, [0, -1]].tolist() == [49406, 49407]
