import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import ShortSideCrop
from vqbank.store.errors import RecipeError
from vqbank.store.schema import to_stored

CPU = torch.device("cpu")


def timeline(count, height=90, width=160):
    return Timeline(np.arange(count) / 30, count, 30.0, "v", height, width)


@pytest.mark.parametrize(("side", "short"), [(112, 128), (224, 256)])
def test_pixels_are_those_of_the_view_in_eight_bits(side, short, frames):
    extractor = make_extractor("frames", side_pixels=side)
    video = torch.from_numpy(frames("frames", 3, 150, 260)).permute(0, 3, 1, 2)
    clips = extractor.view(video)[:, None]
    rows = extractor.build(CPU)(clips)["pixels"].numpy()
    (output,) = extractor.offers
    stored = to_stored(rows[:, 0], output.stored_dtype)
    assert stored.dtype == np.uint8
    assert stored.shape[1:] == output.shape == (3, side, side)
    np.testing.assert_array_equal(stored, ShortSideCrop(short, side)(video))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [0] * 32),
        (16, [frame for frame in range(16) for _ in range(2)]),
        (32, list(range(32))),
        (100, [int(i * 100 / 32 + 100 / 64) for i in range(32)]),
    ],
)
def test_a_clip_is_the_middle_frame_of_each_of_32_parts(frames, expected):
    clips = make_extractor("frames").sampling.clips(timeline(frames))
    assert clips.rows.tolist() == clips.frames.tolist() == [[frame] for frame in expected]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0] * 32),
        (20, [*range(20), *range(12)]),
        (32, list(range(32))),
        (33, list(range(1, 33))),
        (100, list(range(34, 66))),
    ],
)
def test_a_clip_may_be_of_frames_that_follow_each_other_in_the_middle(count, expected):
    for name in ("frames", "vificlip"):
        weights = {"weights": "random-tiny"} if name == "vificlip" else {}
        extractor = make_extractor(name, **weights, frames="consecutive")
        clips = extractor.sampling.clips(timeline(count))
        assert clips.rows.tolist() == clips.frames.tolist() == [[frame] for frame in expected]


def test_size_and_number_and_choice_of_frames_are_in_the_key():
    changes = [{}, {"side_pixels": 224}, {"count": 16}, {"frames": "consecutive"}]
    keys = {
        make_extractor("frames", **change).specs(decoder="pyav")["pixels"].key for change in changes
    }
    assert len(keys) == 4
    named = make_extractor("frames", frames="centres").specs(decoder="pyav")["pixels"].key
    assert named in keys


@pytest.mark.parametrize("change", [{"side_pixels": 113}, {"count": 0}])
def test_other_sizes_and_no_frames_are_refused(change):
    with pytest.raises(RecipeError, match=next(iter(change))):
        make_extractor("frames", **change)
