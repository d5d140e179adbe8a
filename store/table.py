"""Chosen features of chosen videos: what heads see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from store.errors import MissingFeatureError, unknown_name
from store.schema import FeatureSpec, Video


class Rows(Protocol):
    """Where the rows of some videos lie: a shard on disk, or arrays in memory."""

    def values(self, place: int) -> NDArray[Any]:
        """[t, *shape] of the video at `place`."""
        ...

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        """[t] of the video at `place`."""
        ...

    def frame_index(self, place: int) -> NDArray[np.int64]:
        """[t] of the video at `place`."""
        ...


@dataclass(frozen=True, slots=True)
class Column:
    """One feature of every video of a table."""

    spec: FeatureSpec
    places: tuple[tuple[Rows, int], ...]
    """For each row of the table, where its rows lie and its place there."""


class FeatureTable:
    """Features by role for n videos; every video has its own number of rows per role."""

    def __init__(self, videos: tuple[Video, ...], columns: Mapping[str, Column]) -> None:
        """Hold `columns` by role, each with one place per video."""
        self.videos = videos
        self._columns = dict(columns)

    @classmethod
    def from_arrays(
        cls, videos: Sequence[Video], series: Mapping[str, Sequence[NDArray[Any]]]
    ) -> "FeatureTable":
        """A table in memory: series[role][row] is [t, *shape], one row per second."""
        columns = {}
        for role, arrays in series.items():
            rows = _Arrays(tuple(arrays))
            identity = {"source": "arrays in memory"}
            dtype = np.dtype(arrays[0].dtype).name
            spec = FeatureSpec(f"memory.{role}", arrays[0].shape[1:], dtype, identity)  # type: ignore[arg-type]
            columns[role] = Column(spec, tuple((rows, place) for place in range(len(arrays))))
        return cls(tuple(videos), columns)

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
        """[t, *shape] of one video, read-only where it lies on disk."""
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

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> "FeatureTable":
        """The table of some of the videos, in the given order; nothing is copied."""
        columns = {
            role: Column(column.spec, tuple(column.places[row] for row in rows))
            for role, column in self._columns.items()
        }
        return FeatureTable(tuple(self.videos[row] for row in rows), columns)

    def _column(self, role: str) -> Column:
        try:
            return self._columns[role]
        except KeyError:
            raise MissingFeatureError(unknown_name("role", role, self._columns)) from None


@dataclass(frozen=True, slots=True)
class _Arrays:
    arrays: tuple[NDArray[Any], ...]

    def values(self, place: int) -> NDArray[Any]:
        return self.arrays[place]

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        return np.arange(len(self.arrays[place]), dtype=np.float64)

    def frame_index(self, place: int) -> NDArray[np.int64]:
        return np.arange(len(self.arrays[place]), dtype=np.int64)
