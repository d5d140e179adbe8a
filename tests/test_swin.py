import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors.networks.bottleneck_transformer import BottleneckStack, RelativeLogits
from vqbank.extractors.networks.spatial_branch import SpatialBranch
from vqbank.extractors.swin import Swin, our_keys
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.store.errors import WeightsError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def branch():
    """RQ-VQA's whole spatial branch, without values."""
    with torch.device("meta"):
        return SpatialBranch(head_inputs=6639).eval()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_has_the_published_number_of_parameters(branch):
    assert parameters(branch.swin) == 86_878_584
    assert parameters(branch.bot4) == 3_567_360
    assert parameters(branch) == 91_295_993


def test_a_frame_costs_47_giga_multiply_adds(branch):
    picture = torch.empty(1, 3, 384, 384, device="meta")
    counts = []
    with FlopCounterMode(display=False) as counter:
        maps = branch.see(picture)
    counts.append(counter.get_total_flops() / 2e9)
    with FlopCounterMode(display=False) as counter:
        branch.bot4(maps)
    counts.append(counter.get_total_flops() / 2e9)
    assert counts == pytest.approx([47.19, 0.585], rel=0.01)


# Keys.


@pytest.fixture(scope="module")
def official(golden):
    """The state dict of RQ-VQA's checkpoints, without values."""
    recipe = golden("swin_base_mhsa").recipe
    state = {key: torch.empty(shape, device="meta") for key, shape in recipe["state_dict"].items()}
    for key, (dtype, *shape) in recipe["not_filled"].items():
        state[key] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    return state


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def test_rq_vqas_keys_are_all_of_ours(official, branch):
    assert len(official) == 429
    assert shapes(our_keys(official)) == shapes(branch.state_dict())


def lsvq(official):
    """As RQ-VQA's starting point names its 366 entries."""
    state = {
        key.removeprefix("module.feature_extraction."): value
        for key, value in official.items()
        if key.startswith("module.feature_extraction.")
    }
    return state | {
        "quality.0.weight": torch.empty(128, 1280, device="meta"),
        "quality.0.bias": torch.empty(128, device="meta"),
        "quality.1.weight": torch.empty(1, 128, device="meta"),
        "quality.1.bias": torch.empty(1, device="meta"),
    }


def test_the_keys_before_fine_tuning_are_all_of_ours(official):
    state = lsvq(official)
    assert len(state) == 366
    with torch.device("meta"):
        ours = SpatialBranch(blocks=0, head_inputs=1280)
    assert shapes(our_keys(state)) == shapes(ours.state_dict())


def test_timms_keys_are_all_of_ours():
    import timm

    with torch.device("meta"):
        theirs = timm.create_model("swin_base_patch4_window12_384.ms_in22k")
        ours = SpatialBranch(blocks=0)
    assert "head.fc.weight" in theirs.state_dict()
    assert shapes(our_keys(theirs.state_dict())) == shapes(ours.state_dict())


def test_merging_moves_to_the_next_stage_only_where_timm_was_old():
    reduction = "layers.0.downsample.reduction.weight"
    old = {reduction: torch.zeros(0), "layers.1.downsample.norm.bias": torch.zeros(0)}
    assert list(our_keys(old)) == [
        "swin.layers.1.downsample.reduction.weight",
        "swin.layers.2.downsample.norm.bias",
    ]
    new = {"layers.1.downsample.norm.bias": torch.zeros(0)}
    assert list(our_keys(new)) == ["swin.layers.1.downsample.norm.bias"]


# Files.  A tensor of one value takes one value of a file.


def write(path, state):
    content = {key: torch.ones((), dtype=value.dtype).expand(value.shape) for key, value in state}
    torch.save(content, path)
    return path


def test_a_file_without_attention_blocks_gives_the_backbone_alone(official, tmp_path):
    path = write(tmp_path / "lsvq.pth", lsvq(official).items())
    with pytest.raises(WeightsError, match=r"no attention blocks, which swin.feature needs"):
        Swin(weights=str(path)).build(CPU)
    assert Swin(weights=str(path), outputs=("backbone",)).build(CPU)


def test_published_weights_without_attention_blocks_offer_no_feature():
    assert [output.name for output in Swin(weights="lsvq").wanted] == ["backbone"]
    assert [output.name for output in Swin(weights="imagenet22k").offers] == ["backbone", "tokens"]
    assert [output.name for output in Swin().wanted] == ["feature", "backbone"]


def test_a_checkpoint_of_another_network_is_refused(official, tmp_path):
    state = dict(official)
    del state["module.bot4.net.1.net.3.pos_emb.rel_width"]
    state["module.feature_extraction.feature_extraction.norm.gain"] = torch.zeros(1)
    path = write(tmp_path / "other.pth", state.items())
    missing = r"missing: bot4.net.1.net.3.pos_emb.rel_width; unexpected: swin.norm.gain"
    with pytest.raises(WeightsError, match=missing):
        Swin(weights=str(path)).build(CPU)


def test_a_truncated_checkpoint_is_refused(official, tmp_path):
    path = write(tmp_path / "half.pth", official.items())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"half.pth is damaged or no weight file"):
        Swin(weights=str(path)).build(CPU)


# Attention blocks.


def test_relative_logits_count_rows_and_columns_from_query_to_key():
    torch.manual_seed(0)
    side, channels = 4, 5
    relative = RelativeLogits(side, channels)
    queries = torch.randn(2, 3, side * side, channels)
    expected = torch.zeros(2, 3, side * side, side * side)
    places = [divmod(place, side) for place in range(side * side)]
    for a, (row, column) in enumerate(places):
        for b, (key_row, key_column) in enumerate(places):
            table = (
                relative.rel_width[key_column - column + side - 1]
                + relative.rel_height[key_row - row + side - 1]
            )
            expected[:, :, a, b] = queries[:, :, a] @ table
    torch.testing.assert_close(relative(queries), expected)


def test_untrained_blocks_pass_on_what_is_positive():
    stack = BottleneckStack(blocks=2, channels=8, bottleneck=4, heads=2, head_channels=3, side=5)
    maps = torch.randn(2, 8, 5, 5)
    assert torch.equal(stack.eval()(maps), maps.relu())


def test_outputs_are_one_map_before_and_after_the_blocks():
    extractor = Swin(weights="random-tiny", outputs=("feature", "backbone", "tokens"))
    clips = torch.randint(0, 256, (1, 1, 3, 384, 384), dtype=torch.uint8)
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)
    for output in extractor.wanted:
        assert rows[output.name].shape == (1, 1, *output.shape)
    tokens = rows["tokens"]
    torch.testing.assert_close(rows["backbone"], tokens.mean(dim=2))
    # Untrained blocks: what is positive.
    torch.testing.assert_close(rows["feature"], tokens.relu().mean(dim=2))


def test_tiny_rows_are_as_wide_as_those_of_swin_b():
    assert Swin(weights="random-tiny").offers == Swin(weights="random").offers


# Frames.


@pytest.mark.parametrize(
    ("height", "width"),
    [(540, 960), (1920, 1080), (368, 640), (641, 363), (224, 224), (90, 131), (384, 384)],
)
def test_frames_are_opencvs_to_the_last_bit(height, width, frames):
    cv2 = pytest.importorskip("cv2")
    drawn = frames(f"opencv/{height}x{width}", 1, height, width)
    short = min(height, width)
    size = [384 if length == short else int(384 / short * length) for length in (height, width)]
    top, left = (round((length - 384) / 2) for length in size)
    resized = cv2.resize(drawn[0], (size[1], size[0]))
    ours = Swin.view(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    expected = resized[top : top + 384, left : left + 384]
    np.testing.assert_array_equal(ours[0].permute(1, 2, 0).numpy(), expected)


def test_frames_are_what_rq_vqas_network_gets(golden, frames):
    expected = golden("rqvqa_keyframes").expected
    cases = [key.split(".")[0] for key in expected if key.endswith(".net_input.sample")]
    assert len(cases) == 2
    for case in cases:
        height, width = map(int, case.removeprefix("pixels_").split("x"))
        drawn = frames(f"rqvqa_keyframes/a/{height}x{width}", 1, height, width)
        seen = Swin.view(torch.from_numpy(drawn).permute(0, 3, 1, 2))
        ours = normalise(seen[0], IMAGENET_MEAN, IMAGENET_STD).flatten()
        stride = expected[f"{case}.net_input.shape_stride"][-1]
        sample = expected[f"{case}.net_input.sample"]
        np.testing.assert_allclose(ours[::stride].numpy(), sample, rtol=0, atol=1e-5)
