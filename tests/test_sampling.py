import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqbank.extractors.frame_sampling import FRAME_SAMPLINGS
from vqbank.extractors.sampling import (
    Blocks,
    ClipPerSecond,
    ClipWithinSecond,
    ContinuousClips,
    EvenlySpaced,
    EveryClip,
    EveryNth,
    KeyFrames,
    MotionSampling,
    Neighbours,
    RandomSegments,
    RowsOfBlocks,
    SegmentCentres,
    Timeline,
    Uniform,
)

RULES = [
    KeyFrames(),
    Uniform(8),
    EveryNth(3),
    EveryClip(5),
    ClipPerSecond(32),
    ClipPerSecond(5),
    ClipWithinSecond(32, "middle"),
    ClipWithinSecond(32, "spread"),
    Neighbours(8),
    Neighbours(3),
    Neighbours(1),
    Blocks(),
    Blocks(spaced=128),
    RowsOfBlocks(),
    RowsOfBlocks(spaced=128),
    EvenlySpaced(128),
    SegmentCentres(32),
    *(FRAME_SAMPLINGS[name](8) for name in sorted(FRAME_SAMPLINGS)),
]
JUMPING = [
    RandomSegments(segments=4, joined=1, length=32),
    RandomSegments(segments=8, joined=8, length=4),
    ContinuousClips(32, test=3, train=2),
]
"""Whose clips do not follow one another."""


def chosen(rule, video):
    """The clips, from a made-up motion where they are chosen by it."""
    if isinstance(rule, MotionSampling):
        motion = np.random.default_rng(3).random(len(video), np.float32)
        return rule.clips_by_motion(video, motion)
    return rule.clips(video)


def timeline(frames, rate, *, header_frames=0):
    return Timeline(np.arange(frames) / (rate or 25), header_frames, rate, "v", 90, 130)


@pytest.mark.parametrize(
    ("frames", "rate", "expected"),
    [
        (90, 29.97, [0, 30, 60]),
        (91, 29.97, [0, 30, 60, 90]),
        (239, 30.0, [0, 30, 60, 90, 120, 150, 180, 210]),
        (30, 12.5, [0, 12, 24]),  # halves to even
        (45, 13.5, [0, 14, 28, 42]),
        (20, 30.0, [0]),
        (1, 30.0, [0]),
        (4, 0.0, [0, 1, 2, 3]),
    ],
)
def test_key_frames_stand_at_every_rounded_second(frames, rate, expected):
    clips = KeyFrames().clips(timeline(frames, rate))
    assert clips.frames.tolist() == [[frame] for frame in expected]
    assert clips.rows.tolist() == [[frame] for frame in expected]


@pytest.mark.parametrize(
    ("frames", "rate", "header", "starts", "last"),
    [
        (239, 30.0, 239, [0, 30, 60, 90, 120, 150, 180], 211),
        (240, 30.0, 240, [0, 30, 60, 90, 120, 150, 180, 210], 239),
        (240, 30.0, 0, [0, 30, 60, 90, 120, 150, 180, 210], 239),  # the header says nothing
        (70, 30.0, 100, [0, 30, 60], 69),  # fewer frames than the header promised
        (66, 30.0, 60, [0, 30], 59),  # more of them: only as many as it says are read
        (20, 30.0, 20, [0], 19),
        (1, 30.0, 1, [0], 0),
        (40, 12.5, 40, [0, 12, 24], 39),
        (50, 0.0, 50, [0] * 10, 31),
    ],
)
def test_a_clip_starts_at_every_whole_second(frames, rate, header, starts, last):
    clips = ClipPerSecond(32).clips(timeline(frames, rate, header_frames=header))
    assert clips.frames.shape == (len(starts), 32)
    assert clips.frames[:, 0].tolist() == starts
    assert clips.rows.tolist() == [[start] for start in starts]
    assert clips.frames[-1, -1] == last


def test_a_clip_past_the_end_repeats_the_last_frame():
    clips = ClipPerSecond(6).clips(timeline(8, 4.0))
    assert clips.frames.tolist() == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 7, 7]]


def test_a_clip_that_starts_past_the_end_is_the_last_frame():
    clips = ClipPerSecond(3).clips(timeline(5, 4.0, header_frames=12))
    assert clips.frames.tolist() == [[0, 1, 2], [4, 4, 4], [4, 4, 4]]
    assert clips.rows.tolist() == [[0], [4], [4]]


def test_239_frames_at_30_give_eight_key_frames_and_seven_clips():
    video = timeline(239, 30.0, header_frames=239)
    assert len(KeyFrames().clips(video).frames) == 8
    assert len(ClipPerSecond(32).clips(video).frames) == 7


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(9, [0, 2, 4, 6, 8]), (10, [0, 2, 4, 7, 9]), (3, [0, 0, 1, 2, 2]), (1, [0] * 5)],
)
def test_uniform_takes_the_first_and_the_last_frame(frames, expected):
    clips = Uniform(5).clips(timeline(frames, 25.0))
    assert clips.frames[:, 0].tolist() == expected
    assert clips.rows[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("frames", "expected"), [(7, [0, 3, 6]), (6, [0, 3]), (1, [0]), (20, list(range(0, 20, 3)))]
)
def test_every_nth_starts_at_the_first_frame(frames, expected):
    assert EveryNth(3).clips(timeline(frames, 25.0)).frames[:, 0].tolist() == expected


def test_neighbours_mirror_the_ends():
    clips = Neighbours(3).clips(timeline(5, 25.0))
    assert clips.rows.tolist() == [[0, 1, 2], [3, 4, -1]]
    assert clips.frames[0].tolist() == [1, 0, 1, 2, 3]
    assert clips.frames[1, :4].tolist() == [2, 3, 4, 3]  # what is left is padding


def test_the_only_neighbour_of_a_lonely_frame_is_itself():
    clips = Neighbours(2).clips(timeline(1, 25.0))
    assert clips.frames.tolist() == [[0, 0, 0, 0]]
    assert clips.rows.tolist() == [[0, -1]]


@given(
    rule=st.sampled_from([*RULES, *JUMPING]),
    frames=st.integers(1, 400),
    header=st.integers(0, 500),
    rate=st.one_of(st.just(0.0), st.floats(0.1, 240)),
)
def test_every_rule_stays_inside_the_video(rule, frames, header, rate):
    assert_inside(rule, timeline(frames, rate, header_frames=header))


@pytest.mark.parametrize("frames", [1, 20])
@pytest.mark.parametrize("rule", [*RULES, *JUMPING], ids=lambda rule: type(rule).__name__)
def test_every_rule_knows_what_to_do_with_a_short_video(rule, frames):
    assert_inside(rule, timeline(frames, 30.0, header_frames=frames))


def assert_inside(rule, video):
    clips = chosen(rule, video)
    assert clips.frames.dtype == clips.rows.dtype == np.int64
    assert len(clips.frames) == len(clips.rows) >= 1
    assert clips.frames.min() >= 0
    assert clips.frames.max() < len(video)
    assert (clips.rows >= 0).any(axis=1).all()  # a clip without a row would be computed in vain
    assert clips.rows.min() >= -1
    kept = clips.rows[clips.rows >= 0]
    assert kept.max() < len(video)
    if rule not in JUMPING and rule != FRAME_SAMPLINGS["mixed"](8):
        assert (np.diff(kept) >= 0).all()


@given(block=st.integers(1, 20), frames=st.integers(1, 200))
def test_neighbours_give_every_frame_one_row_between_its_neighbours(block, frames):
    clips = Neighbours(block).clips(timeline(frames, 25.0))
    assert clips.frames.shape[1] == clips.rows.shape[1] + 2
    assert clips.rows[clips.rows >= 0].tolist() == list(range(frames))
    for row, before, here, after in zip(
        clips.rows.flat,
        clips.frames[:, :-2].flat,
        clips.frames[:, 1:-1].flat,
        clips.frames[:, 2:].flat,
        strict=True,
    ):
        if row < 0:
            continue
        assert here == row
        present = {frame for frame in (row - 1, row + 1) if 0 <= frame < frames} or {row}
        assert {before, after} == present
        assert before == row - 1 or row == 0
        assert after == row + 1 or row == frames - 1


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [
        (6, 3, [[0, 1, 2], [3, 4, 5]]),
        (7, 3, [[0, 1, 2], [3, 4, 5], [6, 6, 6]]),
        (2, 4, [[0, 1, 1, 1]]),
    ],
)
def test_every_clip_follows_the_one_before_and_the_last_repeats_its_last_frame(
    count, length, expected
):
    clips = EveryClip(length).clips(Timeline(np.arange(count) / 5, count, 5.0, "v", 48, 64))
    assert clips.frames.tolist() == expected
    assert clips.rows[:, 0].tolist() == [frames[0] for frames in expected]
