import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors.loading import random_weights
from vqbank.extractors.networks.mplug_owl2 import IMAGE, TEXT, MplugOwl2
from vqbank.extractors.networks.sizes import MplugOwl2Sizes
from vqbank.extractors.qalign import (
    LEVEL_IDS,
    PREFIX_IDS,
    SCORE_SUFFIX_IDS,
    SUFFIX_IDS,
    PaddedHalves,
    QAlign,
    hidden_states,
    level_logits,
    load_network,
    read_prefix,
    scores,
)
from vqbank.store.errors import InvalidFeatureError, RecipeError, WeightsError

CPU = torch.device("cpu")
SMALL = MplugOwl2Sizes(
    image_side=56,
    vision_width=64,
    vision_inner=128,
    vision_layers=2,
    vision_heads=4,
    queries=9,
    abstractor_inner=128,
    abstractor_layers=2,
    abstractor_heads=4,
    width=128,
    inner=192,
    layers=3,
    heads=4,
)


class Small(QAlign):
    configuration = SMALL


class Shallow(QAlign):
    configuration = replace(SMALL, vision_layers=1, abstractor_layers=1, layers=1)


@pytest.fixture(scope="module")
def network():
    with random_weights():
        return MplugOwl2(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clips():
    """uint8 [b, 1, 2, 3, h, w]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 1, 2, 3, 56, 56), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def pictures(clips):
    return clips.flatten(0, 2) / 64 - 2


def write_shards(folder, state, *, suffix="safetensors", count=2):
    """A folder as on the hub, without config.json."""
    names = sorted(state)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = [f"{stem}-{i + 1:05}-of-{count:05}.{suffix}" for i in range(count)]
    for i, shard in enumerate(shards):
        content = {name: state[name].contiguous() for name in names[i::count]}
        if suffix == "safetensors":
            safetensors.torch.save_file(content, folder / shard)
        else:
            torch.save(content, folder / shard)
    index = {name: shards[i % count] for i, name in enumerate(names)}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def load(path, dtype=torch.float32, configuration=SMALL):
    return load_network(path, *QAlign.files, configuration=configuration, device=CPU, dtype=dtype)


# Size.


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_one_align_has_its_8_198_billion_parameters():
    with torch.device("meta"):
        whole = MplugOwl2(MplugOwl2Sizes())
    assert len(whole.state_dict()) == 862
    assert parameters(whole) == 8_197_859_328
    assert parameters(whole.model["layers"]) == 7_550_271_488
    assert parameters(whole.model["embed_tokens"]) + parameters(whole.lm_head) == 262_144_000
    assert parameters(whole.model["vision_model"]) == 303_966_208
    assert parameters(whole.model["visual_abstractor"]) == 81_473_536


def test_half_a_frame_costs_991_giga_multiply_adds():
    with torch.device("meta"):
        whole = MplugOwl2(MplugOwl2Sizes())
        half = torch.empty(1, 3, 448, 448)
    with FlopCounterMode(display=False) as counter:
        whole.lm_head(hidden_states(whole, half))
    counted = {part: sum(flops.values()) for part, flops in counter.get_flop_counts().items()}
    measured = {
        "Global": 990.8,
        "_VisionTower": 361.8,
        "_Abstractor": 19.0,
        "_DecoderLayer": 598.0,
        "Linear": 12.1,  # the head
    }
    for part, giga in measured.items():
        assert counted[part] / 2e9 == pytest.approx(giga, rel=0.01)


# The prompt.


def test_the_prompt_is_the_official_one(golden):
    ids = golden("qalign_tiny").expected["prompt_ids"]
    at = int(np.flatnonzero(ids < 0)[0])
    assert tuple(ids[:at]) == PREFIX_IDS
    assert tuple(ids[at + 1 :]) == SUFFIX_IDS


def test_a_frame_has_92_positions():
    offers = {output.name: output for output in QAlign(weights="random").offers}
    assert offers["hidden"].shape == (92, 4096)
    assert offers["feature"].shape == (4096,)


def test_a_prefix_that_was_read_before_gives_the_same_states(network, pictures):
    past = read_prefix(network)
    assert past.hidden.shape == (1, 15, 128)
    again = hidden_states(network, pictures, past)
    at_once = hidden_states(network, pictures)
    assert again.shape == at_once.shape == (6, 15 + 10 + 12, 128)
    torch.testing.assert_close(again, at_once, rtol=0, atol=1e-5 * at_once.abs().max().item())


def test_a_prefix_that_was_read_before_is_not_computed_again(network, pictures):
    past = read_prefix(network)
    counts = []
    for given in (None, past):
        with FlopCounterMode(display=False) as counter:
            hidden_states(network, pictures, given)
        counts.append(sum(counter.get_flop_counts()["_DecoderLayer"].values()))
    assert counts[1] / counts[0] == pytest.approx(22 / 37, rel=0.02)


def test_the_prefix_never_sees_the_picture_and_all_that_follows_does(network, pictures):
    hidden = hidden_states(network, pictures)
    assert torch.equal(hidden[0, :15], hidden[1, :15])
    changed = (hidden[0] - hidden[1]).abs().amax(dim=1)
    assert (changed[15:] > 1e-4).all()


def test_a_position_sees_nothing_behind_it(network):
    embeddings = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(2))
    segments = [(TEXT, 2), (IMAGE, 3), (TEXT, 1)]
    before = network.decode(embeddings, segments).hidden
    embeddings[:, 4] += 1
    after = network.decode(embeddings, segments).hidden
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(dim=2).all()


def test_text_and_picture_have_weights_of_their_own(network):
    embeddings = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(2))
    text = network.decode(embeddings, [(TEXT, 4)]).hidden
    mixed = network.decode(embeddings, [(TEXT, 2), (IMAGE, 2)]).hidden
    torch.testing.assert_close(text[:, :2], mixed[:, :2])
    assert not torch.allclose(text[:, 2:], mixed[:, 2:], atol=1e-2)


# Rows.


def test_a_feature_is_the_mean_over_halves_and_positions(network, pictures, clips):
    extractor = Small(weights="random", compute_dtype="float32", outputs=("feature", "hidden"))
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)
    assert rows["hidden"].shape == (3, 1, 37, 128)
    torch.testing.assert_close(rows["feature"], rows["hidden"].mean(dim=2))
    past = read_prefix(network)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).reshape(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).reshape(3, 1, 1)
    halves = hidden_states(network, (clips[1, 0] / 255 - mean) / std, past)
    torch.testing.assert_close(rows["hidden"][1, 0], halves.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_score_is_the_expected_level_of_the_whole_frame(network, pictures):
    frames = torch.cat([pictures.unflatten(0, (3, 2)), pictures[:3, None]], dim=1)
    clips = ((frames + 2) * 64).round().to(torch.uint8)[:, None]
    extractor = Small(weights="random", compute_dtype="float32", outputs=("score",))
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)["score"]
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).reshape(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).reshape(3, 1, 1)
    whole = (clips[:, 0, 2] / 255 - mean) / std
    last = hidden_states(network, whole, None, SCORE_SUFFIX_IDS)[:, -1]
    chances = torch.softmax(network.lm_head(last)[:, list(LEVEL_IDS)].double(), dim=1)
    expected = chances @ torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)
    torch.testing.assert_close(rows[:, 0, 0].double(), expected, rtol=1e-4, atol=1e-5)
    assert len(set(rows.flatten().tolist())) == 3


def test_what_is_surely_named_excellent_scores_5_and_bad_1():
    torch.testing.assert_close(scores(100 * torch.eye(5))[:, 0], torch.arange(5.0, 0.0, -1.0))


def test_levels_are_read_where_the_language_model_goes_on(network, pictures):
    hidden = hidden_states(network, pictures)
    every = network.lm_head(hidden[:, -1])
    assert torch.equal(level_logits(network, hidden), every[:, list(LEVEL_IDS)])


def test_a_score_changes_neither_the_key_nor_the_bits_of_a_feature(clips, frames):
    alone = Small(weights="random", outputs=("feature", "hidden"))
    beside = Small(weights="random", outputs=("feature", "hidden", "score"))
    specs = beside.specs(decoder="pyav")
    assert {name: specs[name] for name in alone.outputs} == alone.specs(decoder="pyav")
    assert specs["score"] == replace(alone, outputs=("score",)).specs(decoder="pyav")["score"]
    assert (specs["score"].shape, specs["score"].stored_dtype) == ((1,), "float32")
    with_frame = torch.cat([clips, clips[:, :, :1]], dim=2)
    with torch.inference_mode():
        expected, rows = alone.build(CPU)(clips), beside.build(CPU)(with_frame)
    for name, values in expected.items():
        assert torch.equal(rows[name], values)
    picture = torch.from_numpy(frames("halves", 1, 90, 130)).permute(0, 3, 1, 2)
    assert alone.view(picture).shape[1] == 2
    assert torch.equal(beside.view(picture)[:, :2], alone.view(picture))


def test_half_precision_is_near_and_is_in_the_key(clips):
    rows, keys = {}, set()
    for dtype in ("float32", "float16", "bfloat16"):
        extractor = Small(weights="random", compute_dtype=dtype)
        with torch.inference_mode():
            rows[dtype] = extractor.build(CPU)(clips)["feature"]
        keys.add(extractor.specs(decoder="pyav")["feature"].key)
    largest = rows["float32"].abs().max()
    assert (rows["float16"] - rows["float32"]).abs().max() < 3e-3 * largest
    assert (rows["bfloat16"] - rows["float32"]).abs().max() < 3e-2 * largest
    assert len(keys) == 3


def test_weights_are_kept_in_half_precision_unless_told(tmp_path, network):
    write_shards(tmp_path, network.state_dict())
    assert QAlign().compute_dtype == "float16"
    assert {value.dtype for value in load(tmp_path, torch.float16).state_dict().values()} == {
        torch.float16
    }


def test_tiny_rows_are_as_wide_as_those_of_one_align():
    shapes = [output.shape for output in QAlign(weights="random-tiny").offers]
    assert shapes == [output.shape for output in QAlign(weights="random").offers]


@pytest.mark.parametrize(("quantised", "likeness"), [("int8", 0.999), ("int4", 0.9)])
def test_quantised_layers_are_near_and_a_frame_is_still_alone(quantised, likeness, clips):
    pytest.importorskip("bitsandbytes")
    clips = clips[:2]
    plain, extractor = (
        Shallow(weights="random", outputs=("hidden",), quantised=kind) for kind in (None, quantised)
    )
    assert (
        plain.specs(decoder="pyav")["hidden"].key != extractor.specs(decoder="pyav")["hidden"].key
    )
    function = extractor.build(CPU)
    with torch.inference_mode():
        expected = plain.build(CPU)(clips)["hidden"]
        rows = function(clips)["hidden"]
        assert torch.equal(function(clips[1:2])["hidden"], rows[1:2])
    assert torch.cosine_similarity(rows, expected, dim=-1).min() > likeness
    assert not torch.equal(rows, expected)


def test_int8_in_another_precision_than_float16_is_refused():
    with pytest.raises(RecipeError, match="int8 computes in float16, not in float32"):
        QAlign(quantised="int8", compute_dtype="float32")


# Weights.


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_two_shards_loads(suffix, network, tmp_path):
    write_shards(tmp_path, network.state_dict(), suffix=suffix)
    (tmp_path / "config.json").write_text(json.dumps({"rms_norm_eps": 1e-5}))
    loaded = load(tmp_path).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(loaded[key], value)


def test_a_folder_is_played_by_its_path(network, tmp_path, clips):
    write_shards(tmp_path, network.state_dict())
    extractor = Small(weights=str(tmp_path), compute_dtype="float32")
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)["feature"]
        expected = replace(extractor, weights="random").build(CPU)(clips)["feature"]
    assert torch.equal(rows, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the largest memory")
def test_loading_does_not_need_twice_the_memory(tmp_path):
    """100 MB of float32 in eight shards become 50 MB of float16."""
    configuration = replace(SMALL, vocabulary=8, width=512, inner=1024, layers=8)
    with random_weights():
        state = MplugOwl2(configuration).state_dict()
    write_shards(tmp_path, state, count=8)
    whole = sum(value.nbytes for value in state.values()) / 2**20
    del state

    def megabytes(entry):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))

    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not to be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory is that of now
    before = megabytes("VmRSS")
    loaded = load(tmp_path, torch.float16, configuration)
    growth = megabytes("VmHWM") - before
    assert parameters(loaded) * 2 / 2**20 > whole / 2 - 1
    assert whole / 2 - 5 < growth < whole / 2 + whole / 4


def test_a_truncated_shard_is_refused(network, tmp_path):
    write_shards(tmp_path, network.state_dict())
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"model-00002-of-00002.safetensors is damaged"):
        load(tmp_path)


def test_a_missing_shard_is_refused(network, tmp_path):
    write_shards(tmp_path, network.state_dict())
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"not there: model-00001-of-00002.safetensors"):
        load(tmp_path)


def test_weights_of_another_model_are_refused(network, tmp_path):
    state = network.state_dict()
    del state["model.visual_abstractor.vit_eos"]
    state["lm_head.bias"] = torch.zeros(3)
    write_shards(tmp_path, state)
    with pytest.raises(WeightsError, match=r"missing: model.*vit_eos; unexpected: lm_head.bias"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_another_model_is_refused_before_it_is_read(
    suffix, index, network, tmp_path, monkeypatch
):
    """Its 16 GB are hashed for the key only once its names are right."""
    state = network.state_dict()
    state["lm_head.bias"] = state.pop("model.visual_abstractor.vit_eos")
    write_shards(tmp_path, state, suffix=suffix)
    if not index:
        next(tmp_path.glob("*.index.json")).unlink()
    monkeypatch.setattr("vqbank.extractors.weights.sha256_of", unread)
    if suffix == "bin" and not index:  # which nobody can tell without reading
        with pytest.raises(ReadError):
            Small(weights=str(tmp_path)).specs(decoder="pyav")
        return
    for path in [tmp_path, *tmp_path.glob("*.index.json")]:
        with pytest.raises(WeightsError, match=r"vit_eos; unexpected: lm_head.bias"):
            Small(weights=str(path)).specs(decoder="pyav")


class ReadError(Exception):
    pass


def unread(path):
    raise ReadError(path)


@pytest.mark.parametrize("content", ['{"rms_norm_eps": 1e-06}', "{}"])
def test_another_rms_norm_eps_than_the_folders_is_refused(content, network, tmp_path):
    """The official class has 1e-6 where config.json says nothing."""
    write_shards(tmp_path, network.state_dict())
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="rms_norm_eps 1e-06, not 1e-05; set rms_norm_eps"):
        load(tmp_path)
    load(tmp_path, configuration=replace(SMALL, rms_norm_eps=1e-6))


def test_a_damaged_configuration_is_refused(network, tmp_path):
    write_shards(tmp_path, network.state_dict())
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(WeightsError, match=r"config.json is not the configuration of a model"):
        load(tmp_path)


def test_the_rms_norm_eps_is_in_the_key():
    one, other = QAlign(weights="random"), QAlign(weights="random", rms_norm_eps=1e-6)
    assert other.configuration.rms_norm_eps == 1e-6
    assert one.specs(decoder="pyav")["feature"].key != other.specs(decoder="pyav")["feature"].key


# Halves.


def with_pillow(picture):
    """What the official preprocessing does to one half [h, w, 3] before it becomes floats."""
    half = Image.fromarray(picture)
    side = max(half.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(half, ((side - half.width) // 2, (side - half.height) // 2))
    return np.asarray(square.resize((448, 448), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (360, 640),  # wide
        (361, 641),  # odd
        (641, 361),  # portrait, whose halves are still wide
        (1000, 200),  # whose halves are high
        (901, 448),  # a half of 450 and one of 451 rows
        (896, 448),  # squares that are not resized
        (90, 448),  # padded and not resized
        (91, 130),  # enlarged
        (2, 3),
    ],
)
def test_halves_are_pillows_to_the_last_bit(height, width, frames):
    drawn = frames(f"halves/{height}x{width}", 2, height, width)
    ours = PaddedHalves()(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    assert ours.shape == (2, 2, 3, 448, 448)
    assert ours.dtype == torch.uint8
    for frame, halves in zip(drawn, ours, strict=True):
        upper, lower = frame[: height // 2], frame[height // 2 :]
        for part, half in ((upper, halves[0]), (lower, halves[1])):
            np.testing.assert_array_equal(half.permute(1, 2, 0).numpy(), with_pillow(part))


def test_a_whole_frame_is_pillows_to_the_last_bit(frames):
    (drawn,) = frames("whole", 1, 361, 641)
    ours = PaddedHalves(frame=True)(torch.from_numpy(drawn).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(ours[0, 2].permute(1, 2, 0).numpy(), with_pillow(drawn))


def test_a_frame_of_one_row_is_refused():
    with pytest.raises(InvalidFeatureError, match="frames of 40 x 1 have no halves"):
        PaddedHalves()(torch.zeros(1, 3, 1, 40, dtype=torch.uint8))
