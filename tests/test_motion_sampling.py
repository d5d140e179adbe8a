from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqbank.extractors.frame_sampling import (
    FRAME_SAMPLINGS,
    Mixed,
    MseSortedUniform,
    RandomFrames,
    SegMseMean,
    SegMseMedian,
    UniformRandomStart,
)
from vqbank.extractors.sampling import (
    ContinuousClips,
    MotionSampling,
    SegmentCentres,
    Timeline,
    Uniform,
)

# Few different values, so that there are ties, in float32, which holds them.
SERIES = st.lists(st.integers(0, 6), min_size=1, max_size=60)
COUNTS = st.integers(1, 9)
BY_MOTION = [MseSortedUniform, SegMseMean, SegMseMedian, Mixed]
BY_TIME = [Uniform, RandomFrames, UniformRandomStart]


def timeline(frames, video="v"):
    return Timeline(np.arange(frames) / 25, frames, 25.0, video, 90, 130)


def chosen(sampling, motion):
    """The frames of a sampling of either kind, one per row."""
    series = np.array(motion, dtype=np.float32)
    if isinstance(sampling, MotionSampling):
        clips = sampling.clips_by_motion(timeline(len(series)), series)
    else:
        clips = sampling.clips(timeline(len(series)))
    np.testing.assert_array_equal(clips.frames, clips.rows)
    assert clips.frames.dtype == np.int64
    assert clips.frames.shape[1] == 1
    return clips.frames[:, 0].tolist()


def uniform(frames, count):
    return [round(place) for place in np.linspace(0, frames - 1, count)]


def nearest(motion, count, centre):
    """By exact arithmetic, frame by frame."""
    frames = len(motion)
    if frames < count:
        return uniform(frames, count)
    found = []
    for segment in range(count):
        inside = range(segment * frames // count, (segment + 1) * frames // count)
        middle = centre([Fraction(motion[frame]) for frame in inside])
        found.append(min(inside, key=lambda frame: (abs(motion[frame] - middle), frame)))
    return found


def mean(values):
    return sum(values) / len(values)


def median(values):
    ordered = sorted(values)
    return (ordered[len(values) // 2] + ordered[(len(values) - 1) // 2]) / 2


def sorted_uniform(motion, count):
    frames = len(motion)
    if frames < count:
        return uniform(frames, count)
    by_motion = sorted(range(frames), key=lambda frame: (motion[frame], frame))
    return sorted(by_motion[rank] for rank in uniform(frames, count))


@given(SERIES, COUNTS)
def test_the_frame_nearest_the_median_of_each_segment(motion, count):
    assert chosen(SegMseMedian(count), motion) == nearest(motion, count, median)


@given(st.lists(st.integers(0, 6), min_size=32, max_size=32), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_the_frame_nearest_the_mean_of_each_segment(motion, count):
    """Of segments whose means float64 holds, so that ties are ties."""
    assert chosen(SegMseMean(count), motion) == nearest(motion, count, mean)


@given(st.lists(st.floats(0, 65025, width=32), min_size=1, max_size=60), COUNTS)
def test_of_any_series_the_nearest_is_nearest(motion, count):
    for sampling, centre in ((SegMseMean, mean), (SegMseMedian, median)):
        got, exact = chosen(sampling(count), motion), nearest(motion, count, centre)
        for segment, (one, other) in enumerate(zip(got, exact, strict=True)):
            start, stop = (edge * len(motion) // count for edge in (segment, segment + 1))
            inside = [Fraction(value) for value in motion[start:stop]] or [Fraction(0)]
            middle = centre(inside)
            distances = [abs(Fraction(motion[frame]) - middle) for frame in (one, other)]
            assert len(motion) < count or distances[0] - distances[1] <= Fraction(1, 10**9)


@given(SERIES, COUNTS)
def test_ranks_of_motion_are_uniform_and_in_time_order(motion, count):
    assert chosen(MseSortedUniform(count), motion) == sorted_uniform(motion, count)


@given(SERIES, COUNTS)
def test_mixed_is_all_that_need_no_draw_one_after_the_other(motion, count):
    kinds = (Uniform, MseSortedUniform, SegMseMean, SegMseMedian)
    expected = [frame for kind in kinds for frame in chosen(kind(count), motion)]
    assert chosen(Mixed(count), motion) == expected


def test_what_the_rules_say_of_one_series():
    motion = [5, 1, 9, 3, 3, 7, 0, 2, 8, 6, 4, 4]
    # Segments 5 1 9 3 | 3 7 0 2 | 8 6 4 4: means 4.5, 3, 5.5; medians 4, 2.5, 5.
    assert chosen(SegMseMean(3), motion) == [0, 4, 9]
    assert chosen(SegMseMedian(3), motion) == [0, 4, 9]
    # In the order of motion: 6 1 7 3 4 10 11 0 9 5 8 2; ranks 0, round(5.5) = 6, 11.
    assert chosen(MseSortedUniform(3), motion) == [2, 6, 11]


def test_of_equally_near_frames_the_earliest_counts():
    assert chosen(SegMseMean(2), [1, 3, 3, 1]) == [0, 2]
    assert chosen(SegMseMedian(2), [9, 1, 1, 9]) == [0, 2]
    assert chosen(SegMseMean(2), [5] * 7) == [0, 3]
    assert chosen(MseSortedUniform(3), [5] * 7) == [0, 3, 6]


@pytest.mark.parametrize("kind", [*BY_MOTION, *BY_TIME])
@pytest.mark.parametrize("frames", [1, 5, 7])
def test_a_video_of_fewer_frames_repeats_as_the_uniform_sampling_does(kind, frames):
    motion = list(range(frames))[::-1]
    expected = uniform(frames, 8)
    assert chosen(kind(8), motion) == expected * (4 if kind is Mixed else 1)
    if frames == 5:
        assert expected == [0, 1, 1, 2, 2, 3, 3, 4]


@given(st.integers(8, 400), st.text(max_size=5))
def test_random_frames_are_different_and_in_time_order(frames, video):
    for seed in range(3):
        drawn = RandomFrames(8, seed=seed).clips(timeline(frames, video)).frames[:, 0]
        assert (np.diff(drawn) > 0).all()
        assert drawn.min() >= 0
        assert drawn.max() < frames


def test_every_frame_is_drawn_about_as_often_as_any_other():
    drawn = [RandomFrames(8, seed=s).clips(timeline(16)).frames[:, 0] for s in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=16)
    assert abs(counts - 200).max() < 50  # five standard deviations


@given(st.integers(8, 400), st.integers(0, 5))
def test_a_random_start_moves_all_frames_by_less_than_a_stride(frames, seed):
    drawn = UniformRandomStart(8, seed=seed).clips(timeline(frames)).frames[:, 0]
    assert (np.diff(drawn) == frames // 8).all()
    assert 0 <= drawn[0] < frames // 8
    assert drawn[-1] < frames


@pytest.mark.parametrize("kind", [RandomFrames, UniformRandomStart])
def test_draws_depend_on_video_and_seed_and_on_nothing_else(kind):
    def drawn(video="v", **parameters):
        return kind(8, **parameters).clips(timeline(300, video)).frames[:, 0].tolist()

    first = drawn()
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert drawn() == first
    others = [drawn("w"), drawn(seed=1), drawn(stream="s")]
    assert all(other != first for other in others)


def test_samplings_go_by_names_and_take_the_number_of_frames():
    for name, kind in FRAME_SAMPLINGS.items():
        sampling = kind(8)
        assert len(chosen(sampling, range(50))) == (32 if name == "mixed" else 8)
    by_motion = {n for n, kind in FRAME_SAMPLINGS.items() if isinstance(kind(8), MotionSampling)}
    assert by_motion == {"mse-sorted-uniform", "seg-mse-mean", "seg-mse-median", "mixed"}


# Clips of consecutive frames, and single ones from the middle of segments.


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(240, [34, 104, 174]), (32, [0, 0, 0]), (33, [0, 1, 1]), (300, [44, 134, 224])],
)
def test_clips_for_testing_are_spread_evenly(frames, starts):
    clips = ContinuousClips().clips(timeline(frames))
    assert clips.rows[:, 0].tolist() == starts
    assert starts == [int((i + 0.5) * (frames - 31) / 3) for i in range(3)]
    assert (np.diff(clips.frames, axis=1) == 1).all()
    assert clips.frames.max() < frames


def test_a_video_shorter_than_a_clip_goes_round():
    clips = ContinuousClips(train=2).clips(timeline(12))
    np.testing.assert_array_equal(clips.frames, np.tile(np.arange(32) % 12, (5, 1)))


def test_clips_for_training_start_anywhere_and_leave_the_others_alone():
    with_training = [
        ContinuousClips(train=4, seed=seed).clips(timeline(35)).frames for seed in range(60)
    ]
    starts = {int(start) for frames in with_training for start in frames[3:, 0]}
    assert starts == {0, 1, 2, 3}
    for frames in with_training:
        np.testing.assert_array_equal(frames[:3], ContinuousClips().clips(timeline(35)).frames)


@given(st.integers(1, 400))
def test_frames_from_the_middle_of_segments_are_those_of_mmaction(frames):
    got = SegmentCentres(32).clips(timeline(frames)).frames[:, 0]
    length = frames / 32
    assert got.tolist() == [int(i * length + length / 2) for i in range(32)]
