import warnings

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors.networks.flat_convolutions import flatten_convolutions
from vqbank.extractors.sampling import (
    Blocks,
    ClipWithinSecond,
    EvenlySpaced,
    RowsOfBlocks,
    Timeline,
)
from vqbank.extractors.slowfast import SLOW_FRAMES, frame_statistics, pathways
from vqbank.extractors.views import normalise
from vqbank.store.errors import InvalidFeatureError, RecipeError, UnknownNameError

CPU = torch.device("cpu")


def timeline(frames, rate=30.0, header=None):
    header = frames if header is None else header
    return Timeline(np.arange(frames) / (rate or 30), header, rate, "v", 90, 130)


def slowfast(**parameters):
    return make_extractor("slowfast", weights="random", **parameters)


def key_of(**parameters):
    (spec,) = slowfast(**parameters).specs(decoder="pyav").values()
    return spec.key


@pytest.fixture(scope="module")
def clips(frames):
    """uint8 [1, 32, 3, 64, 64]: small, as no pathway asks for a size."""
    return torch.from_numpy(frames("slowfast", 32, 64, 64)).permute(0, 3, 1, 2)[None]


# Which frames.


def official_blocks(count):
    """The loop of TCSVT-2022-BVQA's get_features on the numbers of frames."""
    video = torch.arange(count)
    if count <= 64:
        block = video[torch.linspace(0, count - 1, 32).long()]
        return [block.tolist()], block.tolist()
    blocks, rows, end = [], [], 64
    places = torch.linspace(0, 63, 32).long()
    while end < count:
        blocks.append(video[end - 64 : end][places].tolist())
        rows += blocks[-1]
        end += 64
    blocks.append(video[count - 64 :][places].tolist())
    return blocks, rows + [index for index in blocks[-1] if index >= end - 64]


@pytest.mark.parametrize("count", [*range(1, 200), 256, 257, 600, 1199, 4096])
def test_blocks_are_those_of_the_official_loop(count):
    clips = Blocks().clips(timeline(count))
    blocks, rows = official_blocks(count)
    assert clips.frames.tolist() == blocks
    assert clips.rows[clips.rows >= 0].tolist() == rows
    assert RowsOfBlocks().clips(timeline(count)).frames[:, 0].tolist() == rows
    kept = clips.rows >= 0
    np.testing.assert_array_equal(clips.rows[kept], clips.frames[kept])


@pytest.mark.parametrize(
    ("count", "rows"), [(1, 32), (65, 33), (128, 64), (192, 96), (240, 120), (300, 150), (600, 300)]
)
def test_blocks_give_a_row_for_every_second_frame(count, rows):
    assert (Blocks().clips(timeline(count)).rows >= 0).sum() == rows


def test_preprocessed_blocks_are_blocks_of_evenly_spaced_frames():
    spaced = EvenlySpaced(128).clips(timeline(1000)).frames[:, 0]
    assert spaced.tolist() == [1000 * i // 128 for i in range(128)]
    clips = Blocks(spaced=128).clips(timeline(1000))
    np.testing.assert_array_equal(clips.frames, spaced[Blocks().clips(timeline(128)).frames])
    assert (clips.rows >= 0).sum() == 64
    for short in (15, 100):
        assert EvenlySpaced(128).clips(timeline(short)).frames[:, 0].tolist() == list(range(short))
        np.testing.assert_array_equal(
            Blocks(spaced=128).clips(timeline(short)).rows, Blocks().clips(timeline(short)).rows
        )


@pytest.mark.parametrize("mode", ["full", "preprocessed"])
@pytest.mark.parametrize("count", [10, 64, 65, 500])
def test_the_other_branches_of_a2inet_take_the_frames_of_the_motion_rows(mode, count):
    motion = slowfast(chunks=f"blocks-{mode}").sampling.clips(timeline(count)).rows
    for name in ("quality", "semantic"):
        other = make_extractor(name, weights="random", mode=mode, frames="blocks")
        frames = other.sampling.clips(timeline(count)).frames[:, 0]
        np.testing.assert_array_equal(frames, motion[motion >= 0])


@pytest.mark.parametrize(
    ("placed", "frames", "rate", "header", "expected"),
    [
        # More than 32 frames in a second: the middle ones, or every second or third.
        ("middle", 130, 60.0, 130, [range(14, 46), range(74, 106)]),
        ("spread", 130, 60.0, 130, [range(32), range(60, 92)]),
        ("spread", 250, 120.0, 250, [range(0, 96, 3), range(120, 216, 3)]),
        # Fewer: the last frame of the second is repeated, and never one of the next.
        ("middle", 90, 29.97, 90, [[*range(s, s + 30), s + 29, s + 29] for s in (0, 30, 60)]),
        ("spread", 50, 25.0, 50, [[*range(s, s + 25), *[s + 24] * 7] for s in (0, 25)]),
        ("middle", 64, 32.0, 64, [range(32), range(32, 64)]),
        # The header promises more than there is.
        ("middle", 70, 60.0, 130, [range(14, 46), [69] * 32]),
        # What the official loader cannot read: shorter than a second, or of unknown rate.
        ("middle", 20, 30.0, 20, [[*range(20), *[19] * 12]]),
        ("middle", 50, 60.0, 50, [range(9, 41)]),
        ("middle", 100, 0.0, 100, [range(34, 66)]),
        ("middle", 1, 30.0, 1, [[0] * 32]),
    ],
)
def test_minimalisticvqa_looks_into_every_second(placed, frames, rate, header, expected):
    clips = ClipWithinSecond(32, placed).clips(timeline(frames, rate, header))
    assert clips.frames.tolist() == [list(clip) for clip in expected]
    assert clips.rows.tolist() == [[clip[0]] for clip in clips.frames.tolist()]


# What is computed of them.


def test_the_slow_pathway_sees_eight_frames():
    assert torch.linspace(0, 31, 8).long().tolist() == SLOW_FRAMES


def test_fast_is_the_same_bits_with_and_without_the_slow_pathway(clips):
    with torch.inference_mode():
        alone = slowfast().build(CPU)(clips)
        both = slowfast(outputs=("fast", "slowfast")).build(CPU)(clips)
    assert {name: tuple(rows.shape) for name, rows in both.items()} == {
        "fast": (1, 1, 256),
        "slowfast": (1, 1, 2304),
    }
    assert alone.keys() == {"fast"}
    assert torch.equal(alone["fast"], both["fast"])
    assert torch.equal(both["fast"], both["slowfast"][..., 2048:])


def test_only_what_is_asked_for_changes_what_is_run_and_no_key():
    keys = {
        name: spec.key
        for name, spec in slowfast(outputs=("fast", "slowfast")).specs(decoder="pyav").items()
    }
    assert key_of() == keys["fast"]
    assert [output.name for output in slowfast().wanted] == ["fast"]


def test_a_block_gives_mean_and_unbiased_deviation_of_every_frame(clips):
    extractor = slowfast(chunks="blocks-full")
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)["blocks"].numpy()
        pixels = normalise(clips, (0.45,) * 3, (0.225,) * 3).transpose(1, 2)
        maps = pathways(extractor.stages(), pixels)[1].numpy()
    assert rows.shape == (1, 32, 512)
    values = np.moveaxis(maps, 2, 1).reshape(1, 32, 256, -1).astype(np.float64)
    expected = np.concatenate([values.mean(-1), values.std(-1, ddof=1)], axis=-1)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_imagenets_statistics_are_another_feature(clips):
    ours, imagenet = slowfast(), slowfast(normalisation="imagenet")
    with torch.inference_mode():
        rows = [each.build(CPU)(clips)["fast"] for each in (ours, imagenet)]
    assert (rows[0] - rows[1]).abs().max() > 0.01 * rows[0].abs().max()
    assert key_of() != key_of(normalisation="imagenet")


def test_a_rule_is_known_by_what_it_does_and_not_by_its_name():
    rules = ["rq-vqa", "minimalisticvqa", "minimalisticvqa-uniform"]
    blocks = ["blocks-full", "blocks-preprocessed"]
    assert key_of(chunks="simplevqa") == key_of() == key_of(chunks="rq-vqa")
    assert len({key_of(chunks=rule) for rule in rules + blocks}) == 5


def test_frames_too_small_to_deviate_are_refused():
    with pytest.raises(InvalidFeatureError, match="32 x 32"):
        frame_statistics(torch.ones(4, 32, 1, 1))
    clip = torch.zeros(1, 32, 3, 32, 32, dtype=torch.uint8)
    block = slowfast(chunks="blocks-full").build(CPU)
    with torch.inference_mode(), pytest.raises(InvalidFeatureError, match="32 x 32"):
        block(clip)


def test_unknown_rules_and_outputs_are_refused():
    with pytest.raises(RecipeError, match="chunks"):
        slowfast(chunks="blocks")
    with pytest.raises(UnknownNameError, match="output of slowfast 'fast'"):
        slowfast(chunks="blocks-full", outputs=("fast",)).specs(decoder="pyav")


def test_flat_convolutions_change_no_more_than_rounding():
    stages = slowfast().stages()
    source = torch.Generator().manual_seed(5)
    for module in stages.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            size = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(size, generator=source))
            module.running_var.copy_(0.5 + torch.rand(size, generator=source))
    pixels = torch.randn(2, 3, 32, 72, 104, generator=source)
    channels_last = pixels.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        official = pathways(stages, pixels)
        flatten_convolutions(stages)
        ours = pathways(stages, channels_last)
    for expected, maps in zip(official, ours, strict=True):
        assert (maps - expected).abs().max() <= 2e-5 * expected.abs().max()
    unfolded = [m for m in stages.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    left = [m.kernel_size for m in stages.modules() if isinstance(m, torch.nn.Conv3d)]
    assert not unfolded
    assert left == [(5, 7, 7)]  # the fast pathway's first


# Its size, as measured with fvcore.


def giga_multiply_adds(network, *pixels):
    """As fvcore counts them, batch normalisation included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        from fvcore.nn import FlopCountAnalysis

        counted = FlopCountAnalysis(network, pixels)
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return counted.total() / 1e9


class Both(torch.nn.Module):
    def __init__(self, stages):
        super().__init__()
        self.stages = stages

    def forward(self, pixels):
        return pathways(self.stages, pixels)


def test_parameters_and_multiply_adds_are_those_measured():
    stages = slowfast().stages()
    fast = torch.nn.Sequential(*[stage.multipathway_blocks[1] for stage in stages])
    assert sum(weights.numel() for weights in stages.parameters()) == 33_644_488
    assert sum(weights.numel() for weights in fast.parameters()) == 514_152
    # Sides are halved five times, so that multiply-adds grow with the area.
    pixels, area = torch.zeros(1, 3, 32, 32, 32), 7 * 7
    assert area * giga_multiply_adds(Both(stages), pixels) == pytest.approx(50.58, rel=0.001)
    assert area * giga_multiply_adds(fast, pixels) == pytest.approx(5.37, rel=0.001)
