"""Scores over time: which seconds of a video a head finds good or bad.

A head scores a whole video.  Here it is shown a part of one at a time, as if that were a video: the
rows of every role that lie in a window of time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.regressors.base import Head
from vqbank.store.column import ArrayRows, Column
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

WINDOW_SECONDS = 3
"""Of other heads, which look at the spread or the order of rows: a second alone often has one row,
whose spread is 0, as no training video's is."""
WORST = 3
"""Moments that are named as the worst."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The scores of one video's seconds, or of its rows where their times are not known."""

    starts: NDArray[np.float64]
    """[k]: seconds, or row numbers."""
    scores: NDArray[np.float64]
    """[k], in the unit of the training scores."""
    pooled: float
    """The score of the whole video."""
    unit: str
    """"second" or "row"."""
    window: int
    """How many seconds or rows around each start a score is of; 0 of heads that score rows."""

    @property
    def worst(self) -> list[int]:
        """Numbers of the worst moments, the lowest score first, no two of them neighbours.

        WORST at most, and no more than a third of all: of three seconds the second worst is the
        second best.
        """
        chosen: list[int] = []
        most = max(1, min(WORST, len(self.scores) // 3))
        for place in np.argsort(self.scores, kind="stable").tolist():
            if all(abs(place - other) > 1 for other in chosen):
                chosen.append(place)
            if len(chosen) == most:
                break
        return chosen

    @property
    def how(self) -> str:
        """In words, what a score is of."""
        if self.window == 0:
            return f"each {self.unit} by the head's own scores of its rows"
        if self.window == 1:
            return f"each {self.unit} by its own rows"
        return f"each {self.unit} by a window of {self.window} around it, as if that were a video"


def over_time(head: Head, table: FeatureTable) -> list[Moments]:
    """Scores of the seconds of every video of a table.

    Heads that score rows (`score`, `gru`) say themselves what they are; of heads whose score is a
    mean over rows (`mlp` without activation) each second is scored by its own rows; all others see
    windows of WINDOW_SECONDS around it, cut at the ends.  Where a role has no row in a window, the
    last one before it stands there: a clip goes on behind its start.

    Args:
        head: fitted.
        table: n videos, with the head's roles.

    Raises:
        HeadError: as `Head.predict`.
    """
    table = table.select(head.roles) if head.roles else table
    pooled = head.predict(table)
    scored = head.row_scores(table)
    means = bool(getattr(head, "averages_rows", False))
    window = 0 if scored is not None else 1 if means else WINDOW_SECONDS
    found = []
    for row in range(len(table)):
        starts, places, unit = windows_of(table, row, max(window, 1))
        if scored is None:
            scores = head.predict(_parts(table, row, places))
        else:
            first = table.roles[0]
            scores = np.array([scored[row][chosen[first]].mean() for chosen in places])
        found.append(Moments(starts, scores, float(pooled[row]), unit, window))
    return found


def windows_of(
    table: FeatureTable, row: int, window: int
) -> tuple[NDArray[np.float64], list[Mapping[str, NDArray[np.int64]]], str]:
    """Where the moments of a video begin, which rows of each role each sees, and their unit.

    Args:
        table: of features.
        row: of the video.
        window: seconds, or rows where no role's times are known; odd.
    """
    timed = [role for role in table.roles if table.has_times(role, row)]
    times = {role: _times(table, role, row, has_times=role in timed) for role in table.roles}
    lasts = [float(own.max()) for role, own in times.items() if role in timed or not timed]
    count = int(max(lasts) + 1e-9) + 1
    starts = np.arange(count, dtype=np.float64)
    before = window // 2
    places = list[Mapping[str, NDArray[np.int64]]]()
    for start in range(count):
        low, high = start - before, start - before + window
        chosen = dict[str, NDArray[np.int64]]()
        for role, own in times.items():
            if timed and role not in timed:  # rows without times: the same share of the video
                own = own * (count / len(own))
            inside = np.flatnonzero((own >= low - 1e-9) & (own < high - 1e-9))
            earlier = np.flatnonzero(own < low)
            if len(inside) == 0:
                latest = earlier[own[earlier].argmax()] if len(earlier) else int(own.argmin())
                inside = np.array([latest])
            chosen[role] = inside
        places.append(chosen)
    return starts, places, "second" if timed else "row"


def _times(table: FeatureTable, role: str, row: int, *, has_times: bool) -> NDArray[np.float64]:
    if has_times:
        own = table.pts_seconds(role, row)
        return np.asarray(own - min(0.0, float(own.min())), np.float64)
    return np.arange(int(table.lengths(role)[row]), dtype=np.float64)


def _parts(
    table: FeatureTable, row: int, places: Sequence[Mapping[str, NDArray[np.int64]]]
) -> FeatureTable:
    """A table of one video per moment."""
    video = table.videos[row]
    videos = [
        Video(f"{video.id}#{number}", video.path, scene=video.scene)
        for number in range(len(places))
    ]
    columns = {}
    for role in table.roles:
        values, rows = table.series(role, row), [chosen[role] for chosen in places]
        every = np.concatenate(rows)
        seconds, frames = table.pts_seconds(role, row), table.frame_index(role, row)
        parts = ArrayRows(
            np.ascontiguousarray(values[every]),
            np.cumsum([0, *map(len, rows)]),
            [seconds[own] for own in rows],
            [frames[own] for own in rows],
            [table.has_times(role, row)] * len(rows),
        )
        columns[role] = Column(table.specs[role], parts.located(), bank=table.bank(role))
    return FeatureTable(videos, columns)
