import numpy as np
import pytest
import torch
from PIL import Image

from vqbank.extractors.views import (
    CLIP_MEAN,
    CLIP_STD,
    Native,
    ShortSideCrop,
    Squash,
    normalise,
    resize_last_axis,
)

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(540, 960), (960, 540), (368, 641), (224, 224), (299, 225)]
VIEWS = [
    Native(),
    Squash(224, 224, "bilinear"),
    Squash(64, 96, "bicubic"),
    ShortSideCrop(224, 224, "bicubic"),
    ShortSideCrop(64, 48, "bilinear"),
]


def to_tensor(pictures):
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).contiguous()


def by_pillow(pictures, height, width, interpolation):
    # Rows first, then columns, each rounded to 8 bits: what one call did before Pillow 13, which
    # takes the cheaper order (the other one, where a picture is tall) and differs by a level.
    kernel = FILTERS[interpolation]
    resized = []
    for picture in pictures:
        narrow = Image.fromarray(picture).resize((width, picture.shape[0]), kernel)
        resized.append(np.array(narrow.resize((width, height), kernel)))
    return to_tensor(resized)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_short_side_crop_is_pillows_resize_and_the_centre(frames, height, width, interpolation):
    pictures = frames("views", 2, height, width)
    short = min(height, width)
    tall, wide = int(224 * height / short), int(224 * width / short)
    top, left = round((tall - 224) / 2), round((wide - 224) / 2)
    expected = by_pillow(pictures, tall, wide, interpolation)
    expected = expected[:, :, top : top + 224, left : left + 224]
    ours = ShortSideCrop(224, 224, interpolation)(to_tensor(pictures))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_is_pillows_antialiased_resize(frames, height, width):
    pictures = frames("views", 2, height, width)
    ours = Squash(224, 224, "bilinear")(to_tensor(pictures))
    assert torch.equal(ours, by_pillow(pictures, 224, 224, "bilinear"))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pillows_arithmetic_on_a_device_gives_its_bits(frames, height, width, interpolation):
    """What a GPU computes, here on the CPU."""
    pictures = frames("views", 1, height, width)
    narrow = resize_last_axis(to_tensor(pictures), 224, interpolation)
    ours = resize_last_axis(narrow.transpose(-1, -2), 224, interpolation).transpose(-1, -2)
    assert torch.equal(ours, by_pillow(pictures, 224, 224, interpolation))


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(10, 14, 1, 3), (10, 15, 1, 4), (10, 17, 1, 4), (13, 10, 2, 1)],
)
def test_the_crop_is_cut_from_the_centre(height, width, top, left):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([rows, columns, rows]).to(torch.uint8)[None]
    cut = ShortSideCrop(10, 8)(picture)
    assert cut.shape == (1, 3, 8, 8)
    assert cut[0, :2, 0, 0].tolist() == [top, left]
    assert torch.equal(cut, picture[:, :, top : top + 8, left : left + 8])


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_frame_does_not_depend_on_its_neighbours_in_the_chunk(view, frames):
    chunk = to_tensor(frames("views", 5, 270, 480))
    together = view(chunk)
    assert together.dtype == torch.uint8
    alone = torch.cat([view(frame[None]) for frame in chunk])
    assert torch.equal(together, alone)
    assert torch.equal(view(chunk.flip(0)).flip(0), together)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_how_a_frame_lies_in_memory_changes_nothing(view, frames):
    pictures = torch.from_numpy(frames("views", 2, 270, 480))  # [k, h, w, 3], as decoders give it
    channels_last = pictures.permute(0, 3, 1, 2)
    assert torch.equal(view(channels_last), view(channels_last.contiguous()))


def test_native_frames_are_the_very_same():
    chunk = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(Native()(chunk), chunk)


def test_normalise_is_the_usual_formula():
    chunk = torch.randint(0, 256, (2, 4, 3, 5, 7), dtype=torch.uint8)
    mean, std = np.reshape(CLIP_MEAN, (3, 1, 1)), np.reshape(CLIP_STD, (3, 1, 1))
    expected = (chunk.double().numpy() / 255 - mean) / std
    ours = normalise(chunk, CLIP_MEAN, CLIP_STD)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
