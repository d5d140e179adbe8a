"""Chosen features of chosen videos: what heads see."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import MissingFeatureError, unknown_name
from vqbank.store.schema import FeatureSpec, Video

BLOCK_BYTES = 64 * 2**20
"""A block of a dask array."""


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


class Column:
    """One feature of every video of a table."""

    def __init__(self, spec: FeatureSpec, places: Sequence[tuple[Rows, int]]) -> None:
        """For each row of the table, where its rows lie and its place there."""
        self.spec = spec
        self.places = list(places)
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
        column = Column(self.spec, [self.places[row] for row in rows])
        column._checked = self._checked[np.asarray(rows, np.int64)]
        return column


class FeatureTable:
    """Features by role for n videos; every video has its own number of rows per role."""

    def __init__(self, videos: Sequence[Video], columns: Mapping[str, Column]) -> None:
        """Hold `columns` by role, each with one place per video."""
        self.videos = tuple(videos)
        self._columns = dict(columns)
        self._window: dict[str, NDArray[Any]] = {}

    @classmethod
    def from_arrays(
        cls, videos: Sequence[Video], series: Mapping[str, Sequence[NDArray[Any]]]
    ) -> "FeatureTable":
        """A table in memory: series[role][row] is [t, *shape], one row per second.

        Values of float64 are taken as float32, which is what a bank would hold.
        """
        columns = {}
        for role, arrays in series.items():
            flat = np.concatenate(arrays)
            if flat.dtype == np.float64:
                flat = flat.astype(np.float32)
            rows = _Arrays(
                flat,
                np.cumsum([0, *map(len, arrays)]),
                [np.arange(len(array), dtype=np.float64) for array in arrays],
                [np.arange(len(array), dtype=np.int64) for array in arrays],
                [False] * len(arrays),
            )
            dtype: Any = flat.dtype.name
            spec = FeatureSpec(f"memory.{role}", flat.shape[1:], dtype, {"source": "arrays"})
            columns[role] = Column(spec, [(rows, place) for place in range(len(arrays))])
        return cls(videos, columns)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def roles(self) -> tuple[str, ...]:
        """In the order of concatenation."""
        return tuple(self._columns)

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """The identity of each role's feature."""
        return {role: column.spec for role, column in self._columns.items()}

    def series(self, role: str, row: int) -> NDArray[Any]:
        """[t, *shape] of one video: a view of the file where its bytes can be mapped."""
        rows, place = self._column(role).places[row]
        return rows.values(place)

    def pts_seconds(self, role: str, row: int) -> NDArray[np.float64]:
        """[t] of one video."""
        rows, place = self._column(role).places[row]
        return rows.pts_seconds(place)

    def frame_index(self, role: str, row: int) -> NDArray[np.int64]:
        """[t] of one video."""
        rows, place = self._column(role).places[row]
        return rows.frame_index(place)

    def has_times(self, role: str, row: int) -> bool:
        """Whether times and frames of one video are known, or mere row numbers of an import."""
        rows, place = self._column(role).places[row]
        return rows.has_times(place)

    def lengths(self, role: str) -> NDArray[np.int64]:
        """[n]: rows of each video."""
        return self._column(role).spans[:, 2]

    def nbytes(self, role: str) -> int:
        """Size of a role's values as `read` gives them."""
        spec = self._column(role).spec
        return int(self.lengths(role).sum()) * _row_bytes(spec)

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> "FeatureTable":
        """The table of some of the videos, in the given order; nothing is copied."""
        videos = [self.videos[row] for row in rows]
        return FeatureTable(videos, {r: c.subset(rows) for r, c in self._columns.items()})

    def select(self, roles: Sequence[str]) -> "FeatureTable":
        """The table of some of the roles, in the given order; nothing is copied.

        Raises:
            MissingFeatureError: if there is no such role.
        """
        return FeatureTable(self.videos, {role: self._column(role) for role in roles})

    def read(
        self,
        role: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        out: NDArray[Any] | None = None,
        mapped: bool = True,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The rows of some videos one after the other, copied.

        Args:
            role: Which feature.
            rows: Videos, in the wanted order.
            out: Filled from its start if given (4 to 7 times quicker than fresh memory, where
                batches are large); it must hold the rows.
            mapped: Through memory maps, or, for more data than memory, by reading files.

        Returns:
            Values [sum of t, *shape] and offsets [len(rows) + 1] of the videos in it.

        Raises:
            DamagedShardError: on a video's first read, if its bytes have changed.
        """
        column = self._column(role)
        chosen = np.asarray(rows, np.int64)
        offsets = np.concatenate([[0], np.cumsum(column.spans[chosen, 2])])
        if out is None:
            out = np.empty((offsets[-1], *column.spec.shape), _dtype(column.spec))
        if not column.is_checked(chosen):
            column.copy_checked(chosen, out, mapped=mapped)
            return out[: offsets[-1]], offsets
        at = 0
        for source, start, count in column.runs(chosen):
            source.copy_rows(start, out[at : at + count], mapped=mapped)
            at += count
        return out[:at], offsets

    def prefetch(self, role: str, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Have some videos loaded from disk in the background, all at once.

        For the first, cold reads of a mapped bank: 2 to 6 times quicker than letting each page
        fault wait for the disk.  Of warm pages it only costs time.
        """
        for source, start, count in self._column(role).runs(np.asarray(rows, np.int64)):
            source.prefetch(start, count)

    def in_memory(self, *, budget_bytes: int) -> "FeatureTable":
        """The same table with its values in RAM where they fit the budget, else itself."""
        if sum(self.nbytes(role) for role in self.roles) > budget_bytes:
            return self
        columns = {}
        for role, column in self._columns.items():
            flat, offsets = self.read(role, range(len(self)))
            flat.flags.writeable = False
            rows = _Arrays(
                flat,
                offsets,
                [source.pts_seconds(place) for source, place in column.places],
                [source.frame_index(place) for source, place in column.places],
                [source.has_times(place) for source, place in column.places],
            )
            columns[role] = Column(column.spec, [(rows, place) for place in range(len(self))])
        return FeatureTable(self.videos, columns)

    @cached_property
    def neighbours(self) -> NDArray[np.int64]:
        """[n]: rows of the table in the order in which they lie on disk."""
        return np.lexsort(self._column(self.roles[0]).spans[:, 1::-1].T)

    def windows(
        self, *, videos: int | Sequence[int], rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, tuple[NDArray[Any], NDArray[np.int64]]]]]:
        """All videos once, in shuffled windows of neighbours on disk: for data beyond memory.

        Files are read, not mapped, so that resident memory stays at one window.  The order within
        a window is shuffled by the caller, who picks videos by the offsets.

        Args:
            videos: In a window; 32 to 64 make reads long enough.  Or in each of them, in the order
                of `neighbours`, n together.
            rng: Order of the windows.

        Yields:
            Rows of the table [w], and by role values and offsets as from `read`.  The values are
            overwritten by the next window, of a later epoch too.
        """
        order = self.neighbours
        if isinstance(videos, int):
            ends = np.arange(videos, len(order) + videos, videos)
        else:
            ends = np.cumsum(videos)
        starts = np.concatenate([[0], ends[:-1]])
        for number in rng.permutation(len(ends)).tolist():
            rows = order[starts[number] : ends[number]]
            window = {}
            for role, column in self._columns.items():
                wanted = int(column.spans[rows, 2].sum())
                if role not in self._window or len(self._window[role]) < wanted:
                    self._window[role] = np.empty((wanted, *column.spec.shape), _dtype(column.spec))
                window[role] = self.read(role, rows, out=self._window[role], mapped=False)
            yield rows, window

    def dask_array(self, role: str) -> Any:
        """All rows [sum of t, *shape] as a dask array in blocks of about 64 MiB.

        For statistics over more than memory, such as standardisation or incremental PCA.
        """
        import dask
        import dask.array

        column = self._column(role)
        bytes_before = np.cumsum(column.spans[:, 2]) * _row_bytes(column.spec)
        cuts = np.flatnonzero(np.diff(bytes_before // BLOCK_BYTES)) + 1
        blocks = []
        for rows in np.split(np.arange(len(self)), cuts):
            part = FeatureTable([self.videos[row] for row in rows], {role: column.subset(rows)})
            shape = (int(column.spans[rows, 2].sum()), *column.spec.shape)
            delayed = dask.delayed(_all_rows)(part, role)
            blocks.append(dask.array.from_delayed(delayed, shape, _dtype(column.spec)))
        return dask.array.concatenate(blocks)

    def trust(self) -> None:
        """Switch checksums off for this table: for benchmarks, and banks just verified."""
        for column in self._columns.values():
            column.trust()

    def _column(self, role: str) -> Column:
        try:
            return self._columns[role]
        except KeyError:
            raise MissingFeatureError(unknown_name("role", role, self._columns)) from None


def _all_rows(table: FeatureTable, role: str) -> NDArray[Any]:
    return table.read(role, range(len(table)), mapped=False)[0]


def _dtype(spec: FeatureSpec) -> np.dtype[Any]:
    return np.dtype("<f4") if spec.stored_dtype == "bfloat16" else spec.storage_dtype


def _row_bytes(spec: FeatureSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * _dtype(spec).itemsize


class _Arrays:
    """Rows in memory."""

    def __init__(
        self,
        flat: NDArray[Any],
        offsets: NDArray[np.int64],
        pts_seconds: Sequence[NDArray[np.float64]],
        frame_index: Sequence[NDArray[np.int64]],
        has_times: Sequence[bool],
    ) -> None:
        self.flat = flat
        self._offsets = offsets
        self._pts_seconds = pts_seconds
        self._frame_index = frame_index
        self._has_times = has_times

    def span(self, place: int) -> tuple[int, int]:
        start, stop = self._offsets[place : place + 2].tolist()
        return start, stop - start

    def values(self, place: int) -> NDArray[Any]:
        start, count = self.span(place)
        return self.flat[start : start + count]

    def copy_rows(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        out[:] = self.flat[start : start + len(out)]

    def copy_checked(self, place: int, out: NDArray[Any], *, mapped: bool) -> None:
        out[:] = self.values(place)

    def prefetch(self, start: int, count: int) -> None:
        """Memory is there."""

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        return self._pts_seconds[place]

    def frame_index(self, place: int) -> NDArray[np.int64]:
        return self._frame_index[place]

    def has_times(self, place: int) -> bool:
        return self._has_times[place]
