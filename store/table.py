"""Chosen features of chosen videos: what heads see."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.column import ArrayRows, Column
from vqbank.store.errors import MissingFeatureError, VqbankError, unknown_name
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.words import counted, html_table, text_table

if TYPE_CHECKING:
    import pandas
    import torch

_HEAD = ("role", "feature", "row", "rows, of one video")
BLOCK_BYTES = 64 * 2**20
"""A block of a dask array."""


class FeatureTable:
    """Features by role for n videos; every video has its own number of rows per role.

    Example:
        >>> table = bank.table(videos, {"motion": "motion.series"})
        >>> len(table), table.roles, table.series("motion", 0).shape
        (12, ('motion',), (6, 3))
        >>> mos = np.array([video.mos for video in table.videos])
    """

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
            rows = ArrayRows(
                flat,
                np.cumsum([0, *map(len, arrays)]),
                [np.arange(len(array), dtype=np.float64) for array in arrays],
                [np.arange(len(array), dtype=np.int64) for array in arrays],
                [False] * len(arrays),
            )
            dtype: Any = flat.dtype.name
            spec = FeatureSpec(f"memory.{role}", flat.shape[1:], dtype, {"source": "arrays"})
            columns[role] = Column(spec, rows.located())
        return cls(videos, columns)

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        return text_table(self._title(), _HEAD, self._lines())

    def _repr_html_(self) -> str:
        return html_table(self._title(), _HEAD, self._lines())

    def _title(self) -> str:
        scored = sum(video.mos is not None for video in self.videos)
        return f"FeatureTable: {counted(len(self), 'video')}, {scored} with a score"

    def _lines(self) -> list[tuple[str, ...]]:
        return [(role, *_described(column)) for role, column in self._columns.items()]

    @property
    def roles(self) -> tuple[str, ...]:
        """In the order of concatenation."""
        return tuple(self._columns)

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """The identity of each role's feature."""
        return {role: column.spec for role, column in self._columns.items()}

    def bank(self, role: str) -> Path | None:
        """The bank that a role's feature lies in, with its companions; None of mere arrays."""
        return self._column(role).bank

    def series(self, role: str, row: int) -> NDArray[Any]:
        """[t, *shape] of one video: a view of the file where its bytes can be mapped."""
        rows, place = self._column(role).places[row]
        return rows.values(place)

    def arrays(self, role: str) -> list[NDArray[Any]]:
        """[t, *shape] of every video, in the order of `videos`; read-only views, as `series`.

        Raises:
            MissingFeatureError: if there is no such role.
            DamagedShardError: naming the video, if its bytes have changed since they were banked.
        """
        return [self.series(role, row) for row in range(len(self))]

    def tensors(self, role: str) -> "list[torch.Tensor]":
        """[t, *shape] of every video as torch tensors on the CPU, which share one new memory.

        They are copies: writing to them changes neither the bank nor the table.  bfloat16 comes as
        float32.  For more than memory, see `windows`.

        Raises:
            MissingFeatureError: if there is no such role.
            DamagedShardError: naming the video, if its bytes have changed since they were banked.
        """
        import torch

        values, _ = self.read(role, range(len(self)))
        return list(torch.from_numpy(values).split(self.lengths(role).tolist()))

    def frame(self) -> "pandas.DataFrame":
        """A pandas frame with a row per video: its score, and its features pooled over time.

        The index are the ids.  Column `mos` is NaN where a score is not known; `ROLE.mean.0` and so
        on are means over the rows of a video, `ROLE.deviation.0` standard deviations, which divide
        by t, in float64 and in the order of the flattened row.

        Raises:
            VqbankError: if pandas is not installed.
            DamagedShardError: naming the video, if its bytes have changed since they were banked.
        """
        try:
            import pandas
        except ImportError as error:
            raise VqbankError("a frame needs pandas: `pip install pandas`") from error
        columns = {"mos": np.array([video.mos for video in self.videos], np.float64)}
        for role in self.roles:
            pooled = np.stack([mean_and_deviation(rows) for rows in self.arrays(role)])
            width = pooled.shape[1] // 2
            for number, values in enumerate(pooled.T):
                of = "mean" if number < width else "deviation"
                columns[f"{role}.{of}.{number % width}"] = values
        return pandas.DataFrame(columns, index=[video.id for video in self.videos])

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

    def some_rows(self, role: str, row: int, wanted: NDArray[np.int64]) -> NDArray[Any]:
        """Some rows [n, *shape] of one video, copied: their bytes and no others are read.

        Args:
            role: which feature.
            row: of the table.
            wanted: [n], rows of the video.

        Raises:
            DamagedShardError: on the video's first read, which is of all its rows, if its bytes
                have changed.
        """
        column = self._column(role)
        if not column.is_checked(np.array([row])):
            return self.read(role, [row], mapped=False)[0][wanted]
        source, start, _ = column.spans[row].tolist()
        out = np.empty((len(wanted), *column.spec.shape), _dtype(column.spec))
        for place, one in enumerate(wanted.tolist()):
            column.sources[source].copy_rows(start + one, out[place : place + 1], mapped=False)
        return out

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
            rows = ArrayRows(
                flat,
                offsets,
                [source.pts_seconds(place) for source, place in column.places],
                [source.frame_index(place) for source, place in column.places],
                [source.has_times(place) for source, place in column.places],
            )
            columns[role] = Column(column.spec, rows.located(), bank=column.bank)
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


def mean_and_deviation(values: NDArray[Any]) -> NDArray[np.float64]:
    """[2 d]: mean over time of every value of a row, then standard deviation.

    Sums are float64; deviations divide by t, so that a video of one row has deviation 0.

    Args:
        values: [t, *shape] of one video, with d values in a row.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.concatenate([flat.mean(axis=0), flat.std(axis=0)])


def _described(column: Column) -> tuple[str, str, str]:
    spec = column.spec
    try:
        lengths = column.spans[:, 2]
        rows = f"{lengths.sum()}, {lengths.min()} to {lengths.max()}" if len(lengths) else "0"
    except VqbankError as error:
        rows = str(error)
    return spec.key, f"{spec.stored_dtype} {list(spec.shape)}", rows


def _all_rows(table: FeatureTable, role: str) -> NDArray[Any]:
    return table.read(role, range(len(table)), mapped=False)[0]


def _dtype(spec: FeatureSpec) -> np.dtype[Any]:
    return np.dtype("<f4") if spec.stored_dtype == "bfloat16" else spec.storage_dtype


def _row_bytes(spec: FeatureSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * _dtype(spec).itemsize
