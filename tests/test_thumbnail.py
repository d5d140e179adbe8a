import numpy as np
import pytest
import torch
from PIL import Image

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import LetterBox, letter_boxed
from vqbank.pipelines.recipe import read_recipe
from vqbank.store.errors import RecipeError
from vqbank.store.schema import to_stored

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(90, 160, (54, 96)), (160, 90, (96, 54)), (40, 40, (96, 96)), (2, 1000, (1, 96))],
)
def test_a_picture_stands_whole_in_the_middle_of_a_black_square(height, width, shown, frames):
    video = frames("thumbnail", 1, height, width)
    extractor = make_extractor("thumbnail")
    clips = extractor.view(torch.from_numpy(video).permute(0, 3, 1, 2))[:, None]
    (output,) = extractor.offers
    stored = to_stored(extractor.build(CPU)(clips)["pixels"].numpy()[:, 0], output.stored_dtype)

    assert stored.dtype == np.uint8
    assert stored.shape == (1, *output.shape) == (1, 3, 96, 96)
    assert letter_boxed(96, height, width) == shown
    top, left = (96 - shown[0]) // 2, (96 - shown[1]) // 2
    inside = (slice(top, top + shown[0]), slice(left, left + shown[1]))
    small = Image.fromarray(video[0]).resize(shown[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stored[0].transpose(1, 2, 0)[inside], np.asarray(small))
    assert stored.sum() == stored[0][:, *inside].sum()


def test_a_picture_depends_on_its_frame_alone(frames):
    video = torch.from_numpy(frames("thumbnail", 3, 45, 80)).permute(0, 3, 1, 2)
    one_by_one = torch.cat([LetterBox(32)(frame[None]) for frame in video])
    assert torch.equal(LetterBox(32)(video), one_by_one)


@pytest.mark.parametrize(("count", "expected"), [(1, [50]), (2, [25, 75])])
def test_pictures_are_the_middle_frames_of_equal_parts(count, expected):
    timeline = Timeline(np.arange(101) / 30, 101, 30.0, "v", 90, 160)
    clips = make_extractor("thumbnail", count=count).sampling.clips(timeline)
    assert clips.frames[:, 0].tolist() == expected


def test_size_and_number_are_in_the_key():
    changes = [{}, {"side_pixels": 64}, {"count": 3}]
    made = [make_extractor("thumbnail", **change) for change in changes]
    assert len({one.specs(decoder="pyav")["pixels"].key for one in made}) == 3


@pytest.mark.parametrize("change", [{"side_pixels": 8}, {"count": 0}])
def test_pictures_that_show_nothing_are_refused(change):
    with pytest.raises(RecipeError, match=next(iter(change))):
        make_extractor("thumbnail", **change)


@pytest.mark.parametrize("name", ["demo", "a2inet", "dvlta", "qclip", "ramvqa", "rqvqa"])
def test_recipes_bank_pictures_that_no_head_reads(name):
    recipe = read_recipe(name)
    assert "thumbnail" in recipe.extractors
    assert not any(feature.startswith("thumbnail.") for feature in recipe.features.values())
