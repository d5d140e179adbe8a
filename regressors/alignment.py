"""Features with different rows on one grid of rows: per second, per frame, per clip, per video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

Rule = Literal["repeat", "nearest", "interpolate", "frame", "mean"]
"""How a role's rows come onto the grid.

- repeat: row i of the role onto row i of the grid; its last row again where it has no more.  A
  feature of one row per video stands on every row; a series longer than the grid is cut.
- nearest: the row whose `pts_seconds` is nearest, the earlier one of two.
- interpolate: linear between the two rows around it in seconds; the first and last row beyond them.
- frame: the row of the same `frame_index`.  The grid is then only those rows of the first role
  whose frame every such role has: the longer series is sub-sampled by stored frame index.
- mean: the mean over the role's own rows, on every row.
"""
Align = Rule | Mapping[str, Rule]
"""One rule for every role after the first, or one rule each; the first role's rows are the grid."""


class Placement(NamedTuple):
    """Which rows of one series stand on the grid: (1 - weight) * low + weight * high."""

    low: NDArray[np.int64]
    """[t]: row of the series for each row of the grid."""
    high: NDArray[np.int64] | None = None
    """[t], where rows are mixed."""
    weight: NDArray[np.float32] | None = None
    """[t], of `high`, 0 to 1."""

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """The rows [t, d] of the grid, of a series [rows, d]; float32 where rows are mixed."""
        if self.high is None or self.weight is None:
            return values[self.low]
        weight = self.weight[:, None]
        low, high = values[self.low].astype(np.float32), values[self.high].astype(np.float32)
        return (1 - weight) * low + weight * high


@dataclass(frozen=True)
class Alignment:
    """The grid of a head, and how the features of a video come onto it."""

    align: Align = "repeat"
    slots: int | None = None
    """Rows of the grid for every video: the first ones of the first role, its last one again where
    it has fewer, and so for roles that repeat (RQ-VQA's 8 slots).  None: all rows as they are."""
    own: tuple[str, ...] = ()
    """Roles whose rows are no rows of the grid: a batch has them beside it, as they are, under a
    mask of their own.  The first role is the grid in any case."""

    def on_grid(self, roles: Sequence[str]) -> list[str]:
        """Those of the roles after the first that are brought to its rows."""
        return [role for role in roles[1:] if role not in self.own]

    def rule(self, role: str) -> Rule:
        """Of a role after the first.

        Raises:
            HeadError: if rules are given by role, and none for this one.
        """
        if isinstance(self.align, str):
            return self.align
        if role not in self.align:
            raise HeadError(
                f"align has rules for {', '.join(self.align) or 'no role'}, but none for {role}"
            )
        return self.align[role]

    def check(self, roles: Sequence[str]) -> None:
        """Compare the rules with the roles of a table.

        Raises:
            HeadError: if a role after the first has no rule, or a rule is for no such role.
        """
        first, others = roles[0], self.on_grid(roles)
        for role in others:
            self.rule(role)
        for role in () if isinstance(self.align, str) else self.align:
            if role == first:
                raise HeadError(
                    f"align has a rule for {role}, the first role, whose rows are those to which "
                    "all others are brought; leave it out"
                )
            if role not in roles:
                raise HeadError(
                    f"align has a rule for {role}, which is no role; there are {', '.join(roles)}"
                )
            if role not in others:
                raise HeadError(
                    f"align has a rule for {role}, whose rows this head takes as they are; "
                    "leave it out"
                )

    def length(self, table: FeatureTable, row: int) -> int:
        """Rows of one video on the grid, without looking at its values."""
        if self.slots is not None:
            return self.slots
        if any(self.rule(role) == "frame" for role in self.on_grid(table.roles)):
            return len(self._grid(table, row))
        return int(table.lengths(table.roles[0])[row])

    def place(self, table: FeatureTable, row: int) -> dict[str, Placement | None]:
        """By role, the rows of one video on the grid; None where they stand there as they are.

        The mean of a role has one row, on which its placement then stands.

        Raises:
            HeadError: naming the video, if roles that are aligned by frame have none in common, or
                roles are aligned by times that only one of them has.
        """
        first, others = table.roles[0], self.on_grid(table.roles)
        if not others and self.slots is None:
            return dict.fromkeys(table.roles)
        for role in others:
            self._refuse_unlike_times(table, role, row)
        grid = self._grid(table, row)
        slot = np.arange(len(grid))
        if self.slots is not None:
            slot = np.arange(self.slots)
            grid = grid[np.minimum(slot, len(grid) - 1)]
        placements: dict[str, Placement | None] = dict.fromkeys(table.roles)
        placements[first] = _unless_identity(grid, int(table.lengths(first)[row]))
        for role in others:
            count = int(table.lengths(role)[row])
            match self.rule(role):
                case "repeat":
                    low = np.minimum(slot, count - 1)
                case "mean":
                    low, count = np.zeros(len(grid), np.int64), 1
                case "frame":
                    frames, sought = table.frame_index(role, row), table.frame_index(first, row)
                    low = _same_frame(frames, sought[grid])
                case "nearest":
                    times, wanted = table.pts_seconds(role, row), table.pts_seconds(first, row)
                    low = _nearest(times, wanted[grid])
                case "interpolate":
                    times, wanted = table.pts_seconds(role, row), table.pts_seconds(first, row)
                    placements[role] = _between(times, wanted[grid])
                    continue
            placements[role] = _unless_identity(low, count)
        return placements

    def _refuse_unlike_times(self, table: FeatureTable, role: str, row: int) -> None:
        first, rule = table.roles[0], self.rule(role)
        alone = table.lengths(role)[row] == 1 and rule != "frame"  # on every row, at any time
        if rule in {"repeat", "mean"} or alone:
            return
        known = {one: table.has_times(one, row) for one in (first, role)}
        if known[first] != known[role]:
            lacking = first if known[role] else role
            raise HeadError(
                f"{table.videos[row].id}: {role} cannot be aligned to {first} by {rule}: the times "
                f"of {lacking} are row numbers, as it was imported without; align {role} by repeat"
            )

    def _grid(self, table: FeatureTable, row: int) -> NDArray[np.int64]:
        """Rows of the first role that are rows of the grid, slots aside."""
        first, others = table.roles[0], self.on_grid(table.roles)
        by_frame = [role for role in others if self.rule(role) == "frame"]
        if not by_frame:
            return np.arange(table.lengths(first)[row])
        frames = table.frame_index(first, row)
        shared = np.ones(len(frames), bool)
        for role in by_frame:
            shared &= np.isin(frames, table.frame_index(role, row))
        if not shared.any():
            raise HeadError(
                f"{table.videos[row].id}: {first} and {', '.join(by_frame)} have no frame in "
                "common; bank them with the same sampling, or align them by nearest"
            )
        return np.flatnonzero(shared)


def _unless_identity(low: NDArray[np.int64], count: int) -> Placement | None:
    return None if np.array_equal(low, np.arange(count)) else Placement(low)


def _same_frame(frames: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each wanted frame; where both repeat the same frames, row for row.

    Frames need not ascend: clips that go round the end of a video do not.
    """
    if np.array_equal(frames, wanted):
        return np.arange(len(frames))
    order = np.argsort(frames, kind="stable")
    return order[np.searchsorted(frames, wanted, sorter=order)]


def _nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Times need not ascend, nor do frames in `_same_frame`."""
    order = np.argsort(times, kind="stable")
    times = times[order]
    high = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
    low = np.maximum(high - 1, 0)
    return order[np.where(wanted - times[low] <= times[high] - wanted, low, high)]


def _between(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> Placement | None:
    order = np.argsort(times, kind="stable")
    times = times[order]
    high = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
    low = np.maximum(high - 1, 0)
    gap = times[high] - times[low]
    share = np.divide(wanted - times[low], gap, out=np.ones(len(wanted)), where=gap > 0)
    weight = np.clip(share, 0, 1).astype(np.float32)
    if not (weight % 1).any():
        return _unless_identity(order[np.where(weight == 1, high, low)], len(times))
    return Placement(order[low], order[high], weight)
