"""Player of RQ-VQA's choice of frames, and of what its spatial branch sees of one."""

import re
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from vqbank.extractors.sampling import ClipPerSecond, KeyFrames, Timeline
from vqbank.extractors.swin import Swin
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, frames

_SLOTS = 8
"""Key frames and clips that RQ-VQA's readers use; fewer are filled up with the last one."""


def play_rqvqa_keyframes(fixture: Fixture) -> Iterator[Check]:
    """Key frames and clips of videos of many lengths and rates; squares of frames of many sizes."""
    for what in fixture.expected:
        case = re.fullmatch(r"N(\d+)_fps([\d.]+)(?:_decoded(\d+))?\.(\w+)", what)
        size = re.fullmatch(r"resize_(\d+)x(\d+)", what)
        pixels = re.fullmatch(r"pixels_(\d+)x(\d+)\.resized_u8_sample", what)
        if case is not None:
            count = int(case[1])
            video = _timeline(count, float(case[2]), decoded=int(case[3] or count))
            yield _play_case(fixture, what, case[4], video)
        elif size is not None:
            yield _play_size(fixture, what, int(size[1]), int(size[2]))
        elif pixels is not None:
            yield from _play_pixels(fixture, int(pixels[1]), int(pixels[2]))


def _timeline(count: int, rate: float, *, decoded: int) -> Timeline:
    return Timeline(np.arange(decoded) / (rate or 25), count, rate, "golden", 540, 960)


def _play_case(fixture: Fixture, what: str, kind: str, video: Timeline) -> Check:
    clips = ClipPerSecond(32).clips(video).frames
    if kind == "chunks_error":  # a video shorter than a second: theirs stops, ours is one clip
        return fixture.equal(what, np.array([len(clips)]))
    rows = KeyFrames().clips(video).frames[:, 0] if kind == "key_frames" else clips
    filled = np.repeat(rows[-1:], max(0, _SLOTS - len(rows)), axis=0)
    return fixture.equal(what, np.concatenate([rows, filled]))


def _picture(fixture: Fixture, height: int, width: int) -> Tensor:
    name = f"{fixture.name}/{fixture.letter}/{height}x{width}"
    return torch.from_numpy(frames(name, 1, height, width)).permute(0, 3, 1, 2)


def _play_size(fixture: Fixture, what: str, height: int, width: int) -> Check:
    """Our square is where it is expected in a picture of the expected size, to a grey level."""
    picture = _picture(fixture, height, width)
    tall, wide, top, left = fixture.expected[what].tolist()
    resized = interpolate(picture.float(), (tall, wide), mode="bilinear", align_corners=False)
    ours = Swin.view(picture)
    cut = resized[..., top : top + ours.shape[-2], left : left + ours.shape[-1]]
    return Check(what, float((cut - ours).abs().max()), 1)


def _play_pixels(fixture: Fixture, height: int, width: int) -> Iterator[Check]:
    """The square, and those values of the whole resized picture that fall into it."""
    # The mean, deviation and sha256 of the whole picture are not compared: ours is only the square.
    what = f"pixels_{height}x{width}"
    ours = Swin.view(_picture(fixture, height, width))[0]
    tall, wide, top, left = fixture.expected[f"resize_{height}x{width}"].tolist()
    sample: NDArray[np.uint8] = fixture.expected[f"{what}.resized_u8_sample"]
    step = int(fixture.expected[f"{what}.resized_u8_stride"][0])
    row, column, channel = np.unravel_index(np.arange(len(sample)) * step, (tall, wide, 3))
    row, column = row - top, column - left
    inside = (row >= 0) & (row < ours.shape[1]) & (column >= 0) & (column < ours.shape[2])
    values = ours.numpy()[channel[inside], row[inside], column[inside]]
    difference = np.abs(values.astype(int) - sample[inside])
    yield Check(f"{what}.resized_u8_sample", float(difference.max()), 1)
    yield from fixture.sampled(
        f"{what}.net_input", normalise(ours, IMAGENET_MEAN, IMAGENET_STD), absolute=1e-5
    )
