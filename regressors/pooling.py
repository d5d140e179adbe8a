"""From ragged series to one vector per video."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vqbank.store.schema import FeatureSpec
from vqbank.store.table import FeatureTable, mean_and_deviation


def pooled(table: FeatureTable) -> NDArray[np.float32]:
    """Mean and standard deviation over time of every role, [n, pooled_width].

    In the order of roles, each role's means before its deviations.  Sums are float64; deviations
    divide by t, so that a video of one row has deviation 0.
    """
    if isinstance(table, PooledTable):
        return table.vectors
    out = np.empty((len(table), pooled_width(table.specs.values())), np.float32)
    for row in range(len(table)):
        series = (table.series(role, row) for role in table.roles)
        out[row] = np.concatenate([mean_and_deviation(values) for values in series])
    return out


class PooledTable(FeatureTable):
    """A table together with what `pooled` makes of it, which its subsets share."""

    def __init__(self, table: FeatureTable, vectors: NDArray[np.float32]) -> None:
        """Hold the vectors [n, pooled_width] of a table's n videos."""
        super().__init__(table.videos, table._columns)
        self.vectors = vectors

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> "PooledTable":
        """The table of some of the videos, in the given order."""
        return PooledTable(super().subset(rows), self.vectors[np.asarray(rows, np.int64)])

    def select(self, roles: Sequence[str]) -> "PooledTable":
        """The table of some of the roles, in the given order, with their part of the vectors."""
        ends = np.cumsum([pooled_width([spec]) for spec in self.specs.values()])
        own = dict(zip(self.roles, np.split(self.vectors, ends[:-1], axis=1), strict=True))
        return PooledTable(super().select(roles), np.concatenate([own[r] for r in roles], axis=1))


def pooled_width(specs: Iterable[FeatureSpec]) -> int:
    """Width of what `pooled` makes of features with these specs."""
    return sum(2 * int(np.prod(spec.shape, dtype=np.int64)) for spec in specs)
