from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.regressors.alignment import Alignment
from vqbank.regressors.batches import Series
from vqbank.store.column import Column
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable


def table(**roles):
    """One video: by role the seconds and frames of its rows, whose values are 10 x their number."""
    values = {
        role: [10 * np.arange(len(t), dtype=np.float32)[:, None]] for role, (t, _) in roles.items()
    }
    made = FeatureTable.from_arrays([Video("a.mp4", Path("a.mp4"))], values)
    columns = {}
    for role, (seconds, frames) in roles.items():
        ((rows, place),) = made._columns[role].places
        rows._pts_seconds = [np.array(seconds, np.float64)]
        rows._frame_index = [np.array(frames, np.int64)]
        columns[role] = Column(made.specs[role], [(rows, place)])
    return FeatureTable(made.videos, columns)


def aligned(made, align="repeat", **options):
    """By role, the values of the rows on the grid."""
    series = Series(
        made,
        Alignment(align, **options),
        average=False,
        budget_bytes=2**20,
        device=torch.device("cpu"),
    )
    assert series.hold(np.array([0]))
    (window,) = series.windows(np.array([0]), rng=np.random.default_rng(0))
    lengths = {len(window.series(role, 0)) for role in made.roles}
    assert lengths == {series.lengths(np.array([0]))[0]}
    return {role: window.series(role, 0)[:, 0].tolist() for role in made.roles}


FRAMES = ([0.0, 0.5, 1.0, 1.5, 2.0], [0, 12, 25, 37, 50])
SECONDS = ([0.0, 1.0, 2.0], [0, 25, 50])


def test_rows_of_one_role_stand_as_they_are():
    assert aligned(table(x=FRAMES)) == {"x": [0, 10, 20, 30, 40]}


def test_a_feature_of_the_video_is_repeated_on_every_row():
    assert aligned(table(x=SECONDS, y=([0.0], [0])))["y"] == [0, 0, 0]


def test_repeating_goes_row_by_row_and_then_holds_the_last():
    assert aligned(table(x=FRAMES, y=SECONDS))["y"] == [0, 10, 20, 20, 20]
    assert aligned(table(x=SECONDS, y=FRAMES))["y"] == [0, 10, 20]


def test_the_nearest_row_in_seconds():
    assert aligned(table(x=FRAMES, y=SECONDS), "nearest")["y"] == [0, 0, 10, 10, 20]
    assert aligned(table(x=SECONDS, y=FRAMES), "nearest")["y"] == [0, 20, 40]
    assert aligned(table(x=([-5.0, 0.6, 99.0], [0, 1, 2]), y=SECONDS), "nearest")["y"] == [
        0,
        10,
        20,
    ]


def test_times_need_not_ascend():
    """Segments that go round the end of a video do not."""
    x, y = ([1.0, 2.0, 0.5], [0, 1, 2]), ([0.0, 2.0, 1.0, 3.0], [0, 2, 1, 3])
    assert aligned(table(x=x, y=y), "nearest")["y"] == [20, 10, 0]
    assert aligned(table(x=x, y=y), "interpolate")["y"] == [20, 10, 10]
    assert aligned(table(x=([2.5], [0]), y=y), "interpolate")["y"] == [20]


def test_interpolating_is_linear_in_seconds_and_holds_the_ends():
    made = table(x=([-1.0, 0.25, 1.0, 1.9, 7.0], [0, 1, 2, 3, 4]), y=SECONDS)
    assert aligned(made, "interpolate")["y"] == pytest.approx([0, 2.5, 10, 19, 20])
    assert aligned(table(x=FRAMES, y=([0.0], [0])), "interpolate")["y"] == [0] * 5


def test_the_longer_series_is_sub_sampled_by_frame():
    for made in (table(x=FRAMES, y=SECONDS), table(y=SECONDS, x=FRAMES)):
        assert aligned(made, "frame") == {"x": [0, 20, 40], "y": [0, 10, 20]}
    with pytest.raises(HeadError, match=r"a\.mp4: x and y have no frame in common"):
        aligned(table(x=FRAMES, y=([0.0], [7])), "frame")


def test_frames_that_repeat_are_found_each_time():
    """Blocks of frames repeat frames where a video is short."""
    assert aligned(table(x=([0.0, 0.0, 1.0], [0, 0, 25]), y=SECONDS), "frame")["y"] == [0, 0, 10]
    repeated = ([0.0, 0.0, 1.0], [0, 0, 25])
    assert aligned(table(x=repeated, y=repeated), "frame")["y"] == [0, 10, 20]


def test_frames_need_not_ascend():
    """Segments that go round the end of a video do not."""
    made = table(x=([0.0, 1.0], [0, 25]), y=([1.0, 2.0, 0.0], [25, 50, 0]))
    assert aligned(made, "frame") == {"x": [0, 10], "y": [20, 0]}


def test_the_mean_over_a_role_stands_on_every_row():
    assert aligned(table(x=FRAMES, y=SECONDS), "mean")["y"] == [10] * 5
    assert aligned(table(x=([0.0], [0]), y=SECONDS), "mean")["y"] == [10]


def test_every_role_may_have_a_rule_of_its_own():
    made = table(x=FRAMES, y=SECONDS, z=SECONDS)
    got = aligned(made, {"y": "mean", "z": "nearest"})
    assert (got["y"], got["z"]) == ([10] * 5, [0, 0, 10, 10, 20])
    with pytest.raises(HeadError, match="align has rules for y, but none for z"):
        aligned(made, {"y": "mean"})


def test_rules_for_no_role_are_refused():
    with pytest.raises(HeadError, match="a rule for typo, which is no role; there are x"):
        aligned(table(x=FRAMES), {"typo": "mean"})
    with pytest.raises(HeadError, match="a rule for x, the first role"):
        aligned(table(x=FRAMES, y=SECONDS), {"x": "mean", "y": "mean"})


def test_times_are_not_compared_with_row_numbers():
    """What was imported without times has row numbers for them."""
    made = table(x=FRAMES, y=SECONDS, z=([0.0], [0]))
    ((rows, _),) = made._columns["x"].places
    rows._has_times = [True]
    two = made.select(["x", "y"])

    for rule in ("nearest", "interpolate", "frame"):
        for one in (two, made.select(["y", "x"])):
            with pytest.raises(
                HeadError, match=r"a\.mp4: .*the times of y are row numbers.*repeat"
            ):
                aligned(one, rule)
    for rule in ("repeat", "mean"):
        assert len(aligned(two, rule)["y"]) == 5
    assert aligned(made.select(["x", "z"]), "nearest")["z"] == [0] * 5


def test_slots_cut_or_fill_every_video():
    made = table(x=SECONDS, y=([0.0, 1.0], [0, 25]), z=FRAMES)
    got = aligned(made, slots=8)
    assert got["x"] == [0, 10, 20, 20, 20, 20, 20, 20]
    assert got["y"] == [0, 10, 10, 10, 10, 10, 10, 10]
    assert got["z"] == [0, 10, 20, 30, 40, 40, 40, 40]  # each role's own rows, as RQ-VQA has them
    assert aligned(made, "nearest", slots=2) == {"x": [0, 10], "y": [0, 10], "z": [0, 20]}
    assert aligned(table(x=FRAMES), slots=2) == {"x": [0, 10]}
