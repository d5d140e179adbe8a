import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vqbank.extractors import make_extractor
from vqbank.extractors.fragments import Fragments, RedrawnFragments
from vqbank.extractors.loading import random_weights
from vqbank.extractors.networks.sizes import VideoSwinSizes
from vqbank.extractors.networks.video_swin import FastVqaNetwork
from vqbank.extractors.sampling import RandomSegments, Timeline
from vqbank.extractors.views import View
from vqbank.store.errors import RecipeError, WeightsError

CPU = torch.device("cpu")
MODELS = ["fast-b", "faster", "fast-m"]
OUTPUTS = ("feature", "map", "temporal", "spatial", "score")
TINY = VideoSwinSizes(patch=(2, 16, 16), width=16, depths=(2, 2), heads=(2, 4))
QUARTERS = RandomSegments(segments=4, joined=1, length=32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))


def timeline(count, *, height=540, width=960, video_id="v"):
    return Timeline(np.arange(count) / 25, count, 25.0, video_id, height, width)


def tiny(**parameters):
    return make_extractor("fastvqa", **{"weights": "random-tiny", **parameters})


@pytest.fixture(scope="module")
def video(frames):
    """uint8 [n, 3, h, w]."""
    return torch.from_numpy(frames("fastvqa", 6, 250, 270)).permute(0, 3, 1, 2).contiguous()


def clips_of(extractor, video):
    """The clips [t, f, ...] of a video whose frames repeat after those given."""
    line = timeline(300, height=video.shape[-2], width=video.shape[-1])
    frames = extractor.sampling.clips(line).frames % len(video)
    viewed = [extractor.view.of_clip(line, clip)(video) for clip in range(len(frames))]
    return torch.stack([viewed[clip][frames[clip]] for clip in range(len(frames))])


def network_of(architecture):
    generator = torch.Generator().manual_seed(0)
    with random_weights():
        network = FastVqaNetwork(architecture).eval().requires_grad_(False)
    for key, parameter in network.named_parameters():
        if "table" in key:  # large enough to matter
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


# The network.


def test_with_equal_tables_it_is_torchvisions_video_swin():
    """R g + F (1 - g) is R where F is R, whatever the gate."""
    ours = network_of(TINY)
    renamed = {}
    for key, value in ours.fragments_backbone.state_dict().items():
        if key.endswith("relative_position_bias_table"):
            twin = key.replace("relative", "fragment")
            if twin in ours.fragments_backbone.state_dict():
                ours.fragments_backbone.get_parameter(twin).copy_(value)
        key = re.sub(r"layers\.(\d)\.blocks\.", lambda m: f"features.{2 * int(m[1])}.", key)
        key = re.sub(r"layers\.(\d)\.down\w+\.", lambda m: f"features.{2 * int(m[1]) + 1}.", key)
        key = key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        renamed[key] = value
    ours.prepare()
    theirs = SwinTransformer3d([2, 16, 16], 16, [2, 2], [2, 4], [8, 7, 7]).eval()
    theirs.head = torch.nn.Identity()
    theirs.avgpool = torch.nn.Identity()
    theirs.load_state_dict({k: v for k, v in renamed.items() if "fragment" not in k})
    clips = torch.randn((2, 3, 32, 224, 224), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = ours(clips)
        expected = theirs(clips)
    torch.testing.assert_close(maps.flatten(1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [0, 1])
def test_the_bias_of_two_tokens_is_gated_by_their_distance_in_fragments(block):
    network = network_of(TINY)
    network.prepare()
    attention = network.fragments_backbone.layers[0].blocks[block].attn
    relative, fragment = (
        attention.get_parameter(f"{kind}_position_bias_table") for kind in ("relative", "fragment")
    )
    tokens, window, shift = (16, 14, 14), (8, 7, 7), (4, 3, 3) if block else (0, 0, 0)
    random = np.random.default_rng(0)
    gates = set()
    for _ in range(400):
        numbers = random.integers(2, size=3)  # there are two windows along each axis
        slots = [random.integers(size) for size in (window, window)]
        rolled = [numbers * window + slot for slot in slots]
        places = [(place + shift) % tokens for place in rolled]
        index = 0
        for axis, size in enumerate(window):
            index = index * (2 * size - 1) + slots[0][axis] - slots[1][axis] + size - 1
        cells = [7 * place[1:] // tokens[1:] for place in places]
        gate = int(np.abs(cells[0] - cells[1]).sum())
        # Tokens that the shift brought from the other side see only each other.
        apart = any((rolled[0] + shift >= tokens) != (rolled[1] + shift >= tokens))
        expected = relative[index] * gate + fragment[index] * (1 - gate) - 100 * apart
        one, other = (np.ravel_multi_index(tuple(slot), window) for slot in slots)
        time = numbers[0] % len(attention.bias)
        found = attention.bias[time, 2 * numbers[1] + numbers[2], :, one, other]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        gates.add(gate)
    assert max(gates) > 2  # not a switch


def test_its_size_and_its_work_are_the_published_ones():
    with torch.device("meta"):
        network = FastVqaNetwork(VideoSwinSizes()).eval().requires_grad_(False)
        network.prepare()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            maps = network(torch.empty(1, 3, 32, 224, 224))
    count = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in network.named_children()
    }
    assert count == {"fragments_backbone": 28_078_620, "vqa_head": 49_281}
    assert len(network.state_dict()) == 197
    assert maps.shape == (1, 768, 16, 7, 7)
    assert counter.get_total_flops() / 2e9 == pytest.approx(88.06, rel=0.01)


def test_the_mobile_model_has_small_windows_and_no_fragment_tables():
    architecture = make_extractor("fastvqa", model="fast-m", weights="random").architecture
    assert architecture.window == (2, 2, 2)
    with torch.device("meta"):
        network = FastVqaNetwork(architecture)
        network.prepare()
        maps = network(torch.empty(1, 3, 16, 128, 128))
    assert maps.shape == (1, 768, 8, 4, 4)
    assert not any("fragment_position" in key for key in network.state_dict())
    attentions = [stage.blocks[1].attn for stage in network.fragments_backbone.layers]
    assert {attention.shift for attention in attentions} == {(0, 0, 0)}
    table = attentions[0].relative_position_bias_table
    assert table.shape == (7**3, 3)  # for windows of (4, 4, 4)


def test_in_a_window_smaller_than_its_table_a_bias_is_found_by_relative_position():
    architecture = VideoSwinSizes(
        size=(16, 128, 128), grid=4, patch=(2, 16, 16), width=16, depths=(2,), heads=(2,),
        tables=(4, 4, 4), gated=False,
    )  # fmt: skip
    network = network_of(architecture)
    network.prepare()
    attention = network.fragments_backbone.layers[0].blocks[0].attn
    table = attention.relative_position_bias_table.unflatten(0, (7, 7, 7))
    for one, other in np.ndindex(8, 8):
        t, h, w = np.subtract(np.unravel_index(one, (2, 2, 2)), np.unravel_index(other, (2, 2, 2)))
        found = attention.bias[0, 0, :, one, other]
        assert torch.equal(found, table[t + 3, h + 3, w + 3])


# Rows.


@pytest.mark.parametrize("model", MODELS)
def test_a_row_does_not_depend_on_its_batch(model, video):
    extractor = tiny(model=model, outputs=OUTPUTS)
    clip_fn = extractor.build(CPU)
    clips = torch.cat([clips_of(extractor, video), clips_of(extractor, video.flip(0))])[-3:]
    with torch.inference_mode():
        together = clip_fn(clips)
        backwards = clip_fn(clips.flip(0))
        alone = [clip_fn(clip[None]) for clip in clips]
    for name in OUTPUTS:
        expected = torch.cat([rows[name] for rows in alone])
        scale = expected.abs().max()
        assert (together[name] - expected).abs().max() <= 1e-5 * scale
        assert (backwards[name].flip(0) - expected).abs().max() <= 1e-5 * scale
        assert expected.std(dim=0).max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_rows_have_the_shapes_and_poolings_that_are_offered(model, video):
    extractor = tiny(model=model, outputs=OUTPUTS)
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips_of(extractor, video))
    specs = extractor.specs(decoder="pyav")
    assert rows.keys() == specs.keys() == set(OUTPUTS)
    count = 1 if model == "faster" else 4
    for name, spec in specs.items():
        assert rows[name].shape == (count, 1, *spec.shape)
    maps = rows["map"]
    torch.testing.assert_close(rows["temporal"], maps.mean(dim=(4, 5)))
    torch.testing.assert_close(rows["spatial"], maps.mean(dim=3))
    torch.testing.assert_close(rows["feature"], maps.mean(dim=(3, 4, 5)))


def test_the_published_shapes():
    shapes = {
        model: {
            output.name: output.shape
            for output in make_extractor("fastvqa", model=model, weights="random").offers
        }
        for model in MODELS
    }
    pooled = {"feature": (768,), "temporal": (768, 16), "spatial": (768, 7, 7), "score": (1,)}
    assert shapes["fast-b"] == shapes["faster"] == {"map": (768, 16, 7, 7), **pooled}
    assert shapes["fast-m"]["map"] == (768, 8, 4, 4)
    (usual,) = make_extractor("fastvqa", weights="random").wanted
    assert usual.name == "feature"


def test_the_score_is_the_heads_mean(video):
    extractor = tiny(outputs=("map", "score"))
    network = extractor.load()
    with torch.inference_mode():
        rows = extractor.rows(network, clips_of(extractor, video))
        maps = rows["map"][:, 0].flatten(2).transpose(1, 2)  # [b, places, c]
        head = network.vqa_head
        hidden = maps @ head.fc_hid.weight.flatten(1).T + head.fc_hid.bias
        scores = torch.nn.functional.gelu(hidden) @ head.fc_last.weight.flatten(1).T
    expected = scores.mean(dim=1) + head.fc_last.bias
    torch.testing.assert_close(rows["score"][:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "draws"), [("faster", 4), ("fast-m", 2)])
def test_offsets_change_after_every_eight_frames_where_they_do(model, draws, video):
    extractor = tiny(model=model)
    clip_fn = extractor.build(CPU)
    clips = clips_of(extractor, video)[:1]
    assert clips.shape[:3] == (1, 8 * draws, draws)
    others = torch.zeros_like(clips)
    for slot in range(8 * draws):
        others[:, slot, slot // 8] = clips[:, slot, slot // 8]
    with torch.inference_mode():
        assert torch.equal(clip_fn(clips)["feature"], clip_fn(others)["feature"])


# Frames.


@pytest.mark.parametrize("count", [1, 2, 3, 20, 64, 100, 240, 263, 264, 300, 1199])
@pytest.mark.parametrize("model", MODELS)
def test_frames_are_those_of_the_official_rule(model, count):
    sampling = tiny(model=model).sampling
    clips = sampling.clips(timeline(count))
    length = {"fast-b": 32, "faster": 4, "fast-m": 16}[model]
    segments = 8 if model == "faster" else 4
    runs = clips.frames.reshape(segments, length)
    assert len(clips.frames) == (1 if model == "faster" else 4)
    share = count // segments
    for segment, run in enumerate(runs):
        start = segment * share
        latest = start + max(0, share - 2 * length - 1)
        entered = [s for s in range(start, latest + 1) if s % count == run[0]]
        assert entered
        assert run.tolist() == [(entered[0] + 2 * k) % count for k in range(length)]
    assert clips.rows.tolist() == clips.frames[:, :1].tolist()


def test_a_clip_wraps_around_the_end_of_the_video():
    frames = QUARTERS.clips(timeline(240)).frames
    assert frames[3, 29:].tolist() == [238, 0, 2]
    assert QUARTERS.clips(timeline(1)).frames.tolist() == [[0] * 32] * 4
    assert QUARTERS.clips(timeline(20)).frames[0, 8:12].tolist() == [16, 18, 0, 2]


def test_starts_are_drawn_below_the_bound_and_all_of_them():
    lengths = {264: 2, 280: 6, 263: 1, 20: 1}
    for count, starts in lengths.items():
        assert max(1, QUARTERS.bound(count)) == starts
        seen = {
            int(QUARTERS.clips(timeline(count, video_id=f"v{number}")).frames[1, 0])
            for number in range(60)
        }
        assert seen == {count // 4 + late for late in range(starts)}


def test_starts_are_repeatable_and_depend_on_video_stream_and_seed():
    def frames(video_id="v", **parameters):
        line = timeline(3000, video_id=video_id)
        return tiny(**parameters).sampling.clips(line).frames.tolist()

    assert frames() == frames() == frames(weights="random")
    others = [frames("w"), frames(seed=1), frames(stream="mine")]
    assert all(frames() != other for other in others)


# Fragments.


def test_fragments_are_squares_from_every_cell(video):
    pictures = torch.randint(0, 256, (2, 3, 300, 430), dtype=torch.uint8)
    view = Fragments()
    line = timeline(9, height=300, width=430)
    offsets = view.offsets(line, 2)
    mosaics = view.of_clip(line, 2)(pictures)
    assert mosaics.shape == (2, 3, 224, 224)
    for i, j in np.ndindex(7, 7):
        top, left = 42 * i + offsets[i, j, 0], 61 * j + offsets[i, j, 1]
        expected = pictures[:, :, top : top + 32, left : left + 32]
        found = mosaics[:, :, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
        assert torch.equal(found, expected)


def test_offsets_stay_below_the_last_place_and_reach_all_others():
    view = Fragments(grid=4, side=8)
    lines = [timeline(9, height=44, width=60, video_id=f"v{number}") for number in range(40)]
    assert view.bounds(44, 60) == (3, 7)
    offsets = np.stack([view.offsets(line, 0) for line in lines])
    assert set(offsets[..., 0].flat) == set(range(3))
    assert set(offsets[..., 1].flat) == set(range(7))
    assert not view.offsets(timeline(9, height=32, width=32), 0).any()


def test_offsets_are_repeatable_and_depend_on_video_clip_stream_and_seed_alone():
    line = timeline(100)
    base = Fragments().offsets(line, 3)
    assert base.shape == (7, 7, 2)
    assert np.array_equal(base, Fragments().offsets(timeline(999), 3))
    assert np.array_equal(base, Fragments(small_videos="corrected").offsets(line, 3))
    others = [
        Fragments().offsets(line, 2),
        Fragments(seed=1).offsets(line, 3),
        Fragments(stream="mine").offsets(line, 3),
        Fragments().offsets(timeline(100, video_id="w"), 3),
    ]
    assert not any(np.array_equal(base, other) for other in others)


def test_extractors_of_one_stream_share_offsets_whatever_their_weights():
    line = timeline(300)
    ours = tiny(seed=5).view
    assert np.array_equal(ours.offsets(line, 1), Fragments(seed=5).offsets(line, 1))
    faster = make_extractor("fastvqa", model="faster", weights="random", seed=5).view
    assert isinstance(faster, RedrawnFragments)
    redrawn = faster.offsets(line, 0)
    assert redrawn.shape == (4, 7, 7, 2)
    for clip in range(4):
        assert np.array_equal(redrawn[clip], ours.offsets(line, clip))


def test_offsets_do_not_depend_on_the_chunk_a_frame_comes_in(video):
    view: View = Fragments().of_clip(timeline(6, height=250, width=270), 1)
    together = view(video)
    assert torch.equal(together, torch.cat([view(frame[None]) for frame in video]))
    assert torch.equal(together.flip(0), view(video.flip(0)))
    channels_last = video.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(together, view(channels_last))


@pytest.mark.parametrize(("height", "width"), [(200, 300), (180, 320), (151, 99), (20, 300)])
@pytest.mark.parametrize("rule", ["official", "corrected"])
def test_small_frames_are_enlarged_to_the_same_bits_on_any_number_of_threads(
    frames, height, width, rule
):
    pictures = torch.from_numpy(frames("small", 3, height, width)).permute(0, 3, 1, 2)
    view = Fragments(small_videos=rule).of_clip(timeline(3, height=height, width=width), 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = view(pictures)
        torch.set_num_threads(2)
        two = view(pictures.contiguous())
    finally:
        torch.set_num_threads(before)
    assert one.shape == (3, 3, 224, 224)
    assert torch.equal(one, two)
    assert torch.equal(one[1:2], view(pictures[1:2]))


def enlarged(pictures, side=224):
    """By torch; 8-bit pictures in, truncated ones out."""
    ratio = min(size / side for size in pictures.shape[-2:])
    scaled = torch.nn.functional.interpolate(
        pictures / 255, scale_factor=1 / ratio, mode="bilinear"
    )
    return (scaled * 255).byte()


def test_the_official_rule_for_small_videos_sees_the_upper_left_alone(frames):
    pictures = torch.from_numpy(frames("small", 2, 180, 320)).permute(0, 3, 1, 2).contiguous()
    view = Fragments()
    offsets = view.offsets(timeline(2, height=180, width=320), 0)
    assert not offsets[..., 0].any()  # 180 / 7 is no more than a fragment
    mosaics = view.cut(pictures, offsets).int()
    large = enlarged(pictures).int()
    assert large.shape[-2:] == (224, 398)
    for i, j in np.ndindex(7, 7):
        top, left = min(25 * i, 148), min(45 * j, 288) + offsets[i, j, 1]
        expected = large[:, :, top : top + 32, left : left + 32]
        found = mosaics[:, :, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
        difference = (found - expected).abs()
        assert difference.max() <= 1  # torch itself differs by a level from 1 thread to 2
        assert (difference > 0).float().mean() < 0.01


def test_the_corrected_rule_lays_the_grid_of_the_enlarged_frame(frames):
    pictures = torch.from_numpy(frames("small", 2, 180, 320)).permute(0, 3, 1, 2).contiguous()
    line = timeline(2, height=180, width=320)
    view = Fragments(small_videos="corrected")
    assert view.bounds(180, 320) == Fragments().bounds(224, 398) == (0, 24)
    offsets = view.offsets(line, 0)
    difference = view.cut(pictures, offsets).int() - Fragments().cut(enlarged(pictures), offsets)
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3


def test_large_frames_are_cut_alike_by_both_rules(video):
    line = timeline(6, height=250, width=270)
    rules = [Fragments(small_videos=rule).of_clip(line, 0) for rule in ("official", "corrected")]
    assert torch.equal(*[rule(video) for rule in rules])


# Side arrays.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [1, 20, 400])
def test_a_row_is_banked_with_its_frames_and_offsets(model, count):
    extractor = tiny(model=model)
    line = timeline(count, height=2160, width=3840)
    clips = extractor.sampling.clips(line)
    side = extractor.side(line, clips)
    (output,) = extractor.wanted
    assert side.keys() == {spec.name for spec in output.side}
    for spec in output.side:
        array = side[spec.name]
        assert array.shape == (*clips.rows.shape, *spec.shape)
        assert np.array_equal(array.astype(spec.dtype), array)
    assert np.array_equal(side["frames"][:, 0], clips.frames)
    for clip, offsets in enumerate(side["offsets"][:, 0]):
        assert np.array_equal(offsets, extractor.view.offsets(line, clip))


# Weights and keys.


def test_weights_of_another_model_are_refused_by_their_keys(tmp_path):
    mobile = make_extractor("fastvqa", model="fast-m", weights="random")
    path = tmp_path / "mobile.pth"
    with torch.device("meta"):
        keys = FastVqaNetwork(mobile.architecture).state_dict()
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, path)
    with pytest.raises(WeightsError, match=r"missing: .*fragment_position_bias_table"):
        make_extractor("fastvqa", weights=str(path), model="fast-b").build(CPU)
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"unexpected: module\.conv1\.weight"):
        make_extractor("fastvqa", weights=str(path), model="fast-b").build(CPU)
    torch.save({"model": {}}, path)
    with pytest.raises(WeightsError, match="no entry 'state_dict'"):
        make_extractor("fastvqa", weights=str(path), model="fast-b").build(CPU)


def test_a_local_file_has_to_be_said_to_be_of_a_model(tmp_path):
    with pytest.raises(
        RecipeError, match=r"mine\.pth' do not say .* model: fast-b, faster, fast-m"
    ):
        make_extractor("fastvqa", weights=str(tmp_path / "mine.pth"))


def test_a_published_file_says_which_model_it_is():
    for model in MODELS:
        assert make_extractor("fastvqa", weights=model).architecture == (
            make_extractor("fastvqa", weights="random", model=model).architecture
        )
    make_extractor("fastvqa", weights="faster", model="faster")
    with pytest.raises(RecipeError, match="weights 'fast-b' are not those of model 'faster'"):
        make_extractor("fastvqa", model="faster")


def test_whatever_changes_numbers_is_in_the_key():
    def key(**parameters):
        (spec,) = tiny(**parameters).specs(decoder="pyav").values()
        return spec.key

    changes = [
        {},
        {"model": "faster"},
        {"model": "fast-m"},
        {"weights": "random"},
        {"small_videos": "corrected"},
        {"stream": "mine"},
        {"seed": 1},
        {"frames": "consecutive"},
        {"compute_dtype": "bfloat16"},
    ]
    assert len({key(**change) for change in changes}) == len(changes)
    assert key() == key(model="fast-b")
    named = {name for change in changes for name in change}
    assert named | {"outputs", "stored_dtype"} == {field.name for field in fields(tiny())}


def test_a_clip_may_be_of_frames_that_follow_each_other_in_the_middle(video):
    timeline = Timeline(np.arange(100) / 25, 100, 25.0, "v", 300, 300)
    extractor = tiny(frames="consecutive")
    clips = extractor.sampling.clips(timeline)
    assert clips.frames.tolist() == [list(range(34, 66))]
    assert tiny(model="fast-m", frames="consecutive").sampling.clips(timeline).frames.shape == (
        1,
        16,
    )
    side = extractor.side(timeline, clips)
    assert side["frames"].shape == (1, 1, 32)
    assert side["offsets"].shape[:2] == (1, 1)
    rows = extractor.build(CPU)(clips_of(extractor, video))
    assert rows["feature"].shape[:2] == (1, 1)


def test_half_precision_stays_near(video):
    extractor = tiny(compute_dtype="bfloat16")
    clips = clips_of(extractor, video)[:1]
    clip_fn = extractor.build(CPU)
    with torch.inference_mode():
        exact = clip_fn(clips)["feature"]
        with extractor.precision(CPU):
            rough = clip_fn(clips)["feature"].float()
    assert not torch.equal(exact, rough)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
