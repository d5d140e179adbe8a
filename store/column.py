"""One feature of every video of a table, and where each video's rows lie."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqbank.store.schema import FeatureSpec


class Rows(Protocol):
    """Where the rows of some videos lie one after the other: a shard, or an array in memory."""

    def span(self, place: int) -> tuple[int, int]:
        """First row and number of rows of the video at `place`."""
        ...

    def values(self, place: int) -> NDArray[Any]:
        """[t, *shape] of the video at `place`, checked."""
        ...

    def copy_rows(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` with the rows from `start` on, unchecked.

        Args:
            start: Row number.
            out: [t, *shape].
            mapped: Through a memory map, which the page cache keeps, or by reading the file.
        """
        ...

    def copy_checked(self, place: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` with the rows of the video at `place`, compared with its checksum."""
        ...

    def prefetch(self, start: int, count: int) -> None:
        """Have rows loaded in the background."""
        ...

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        """[t] of the video at `place`."""
        ...

    def frame_index(self, place: int) -> NDArray[np.int64]:
        """[t] of the video at `place`."""
        ...

    def has_times(self, place: int) -> bool:
        """Whether the times and frames of the video at `place` are known."""
        ...


Source = TypeVar("Source", bound=Rows, covariant=True)


class Located(NamedTuple, Generic[Source]):
    """Where the rows of one video lie."""

    source: Source
    """A shard, or arrays in memory."""
    place: int
    """The number of the video in its source, from 0."""


class Column:
    """One feature of every video of a table."""

    def __init__(
        self, spec: FeatureSpec, places: Sequence[Located[Rows]], *, bank: Path | None = None
    ) -> None:
        """Hold the places of the videos, in the order of the table.

        Args:
            spec: of the feature.
            places: of each video.
            bank: in which they lie, if they do; there the feature's companions are.
        """
        self.spec = spec
        self.places = list(places)
        self.bank = bank
        self._checked = np.zeros(len(self.places), bool)

    @cached_property
    def sources(self) -> list[Rows]:
        """Each shard once."""
        return list({id(rows): rows for rows, _ in self.places}.values())

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """[n, 3]: number in `sources`, first row there, number of rows."""
        number = {id(rows): place for place, rows in enumerate(self.sources)}
        table = [(number[id(rows)], *rows.span(place)) for rows, place in self.places]
        return np.array(table, np.int64).reshape(-1, 3)

    def is_checked(self, rows: NDArray[np.int64]) -> bool:
        """Whether the checksums of all these videos were compared before."""
        return bool(self._checked[rows].all())

    def copy_checked(self, rows: NDArray[np.int64], out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` with some videos one after the other, each compared with its checksum.

        Raises:
            DamagedShardError: naming the video.
        """
        at = 0
        counts = self.spans[rows, 2].tolist()
        for row, count in zip(rows.tolist(), counts, strict=True):
            source, place = self.places[row]
            source.copy_checked(place, out[at : at + count], mapped=mapped)
            at += count
        self._checked[rows] = True

    def trust(self) -> None:
        """Take every checksum as compared."""
        self._checked[:] = True

    def runs(self, rows: NDArray[np.int64]) -> Iterator[tuple[Rows, int, int]]:
        """What lies one after the other: source, first row and row count of each run."""
        source, start, count = self.spans[rows].T
        follows = (source[1:] == source[:-1]) & (start[1:] == start[:-1] + count[:-1])
        first = np.flatnonzero(np.concatenate([[True], ~follows]))
        totals = np.add.reduceat(count, first)
        for number, begin, total in zip(
            source[first].tolist(), start[first].tolist(), totals.tolist(), strict=True
        ):
            yield self.sources[number], begin, total

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> "Column":
        """The column of some videos; what was checked stays checked."""
        column = Column(self.spec, [self.places[row] for row in rows], bank=self.bank)
        column._checked = self._checked[np.asarray(rows, np.int64)]
        return column


class ArrayRows:
    """Rows of some videos in memory."""

    def __init__(
        self,
        flat: NDArray[Any],
        offsets: NDArray[np.int64],
        pts_seconds: Sequence[NDArray[np.float64]],
        frame_index: Sequence[NDArray[np.int64]],
        has_times: Sequence[bool],
    ) -> None:
        """Hold the rows of n videos.

        Args:
            flat: [sum of t, *shape], one video after the other.
            offsets: [n + 1], of the videos in `flat`.
            pts_seconds: [t] of each video.
            frame_index: [t] of each video.
            has_times: Of each video, whether these two are known.
        """
        self.flat = flat
        self._offsets = offsets
        self._pts_seconds = pts_seconds
        self._frame_index = frame_index
        self._has_times = has_times

    def located(self) -> list[Located[Rows]]:
        """Every video, in the order of its rows."""
        return [Located(self, place) for place in range(len(self._has_times))]

    def span(self, place: int) -> tuple[int, int]:
        """First row and number of rows of the video at `place`."""
        start, stop = self._offsets[place : place + 2].tolist()
        return start, stop - start

    def values(self, place: int) -> NDArray[Any]:
        """[t, *shape] of the video at `place`, a view."""
        start, count = self.span(place)
        return self.flat[start : start + count]

    def copy_rows(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` with the rows from `start` on."""
        out[:] = self.flat[start : start + len(out)]

    def copy_checked(self, place: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` with the rows of the video at `place`."""
        out[:] = self.values(place)

    def prefetch(self, start: int, count: int) -> None:
        """Memory is there."""

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        """[t] of the video at `place`."""
        return self._pts_seconds[place]

    def frame_index(self, place: int) -> NDArray[np.int64]:
        """[t] of the video at `place`."""
        return self._frame_index[place]

    def has_times(self, place: int) -> bool:
        """Whether the times and frames of the video at `place` are known."""
        return self._has_times[place]
