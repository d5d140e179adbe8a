"""Fits of cells on splits: what is fitted when and where, and what comes out of each."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from sklearn.base import clone

from vqbank.pipelines.experiments.fitting import Telling
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.processes import in_workers
from vqbank.pipelines.experiments.shared_splits import SharedSplits
from vqbank.pipelines.log import log
from vqbank.pipelines.splits.split import Split
from vqbank.regressors import load_head
from vqbank.regressors.base import Head
from vqbank.regressors.card import CARD, read_card
from vqbank.regressors.metrics import QualityMetrics, quality_metrics
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import PooledTable, pooled, pooled_width
from vqbank.regressors.progress import Cost
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

WORTH_WORKERS_SECONDS = 10.0
"""What is left of a run goes to worker processes if it takes longer: to start them takes some."""
TOGETHER = 4
"""Splits whose networks are trained at the same time: a number that neither cores nor processes
change, so that results are the same; more gain little, and leave other cores without work."""
LONG_OPERATIONS = 1e10
"""Of a fit, which then takes a few seconds or more: it is done in a process that can be killed."""
MEASURED_VIDEOS = 600
"""Of the small fit by which a long one is foretold."""
TABLE_BYTES = 2**30
"""Tables up to this size, together, are read into memory once, for all splits of heads of whole
series: first what is trained on, then test sets."""


@dataclass(frozen=True)
class Cell:
    """One thing that is tried: a head on some of the features."""

    label: str
    """Of the head, in tables; cells of one experiment have different ones."""
    head: Head
    """With its parameters, unfitted: every fit is of a clone, and this one stays as it is."""
    roles: tuple[str, ...]
    """Of the table, in the order of concatenation."""


@dataclass(frozen=True, slots=True, eq=False)
class SetResult:
    """One fitted head on a test set."""

    metrics: QualityMetrics
    predicted: NDArray[np.float64]
    """Of its videos, in their order."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitResult:
    """One cell on one split."""

    cell: str
    """Its label."""
    split: int
    metrics: QualityMetrics | None
    """Of the test rows; None where there are none."""
    selection: str
    """By which rule the head's hyper-parameters or epoch were chosen; never on test rows."""
    held_out: int | None
    """On how few held-out videos an epoch was chosen; None for heads without epochs."""
    predicted: NDArray[np.float64]
    """Of the test rows, in their order."""
    seconds: float
    """What fitting and predicting took; of networks that train together, an equal share."""
    sets: Sequence[SetResult] = ()
    """On each test set."""


Task = tuple[str, Sequence[tuple[int, Split]]]
"""A cell's label, and the splits that it is tried on with their numbers."""


@dataclass(frozen=True)
class Fits:
    """All fits of some cells on shared splits; goes to other processes as it is."""

    table: FeatureTable
    mos: NDArray[np.float64]
    """[n], on the data set's own scale."""
    cells: Mapping[str, Cell]
    """By label."""
    splits: SharedSplits
    sets: Sequence[FurtherSet] = ()
    """What every fitted head predicts beside the test rows."""
    kept: Mapping[str, Path] = field(default_factory=dict)
    """By label, a folder of fitted heads: those that it holds are not fitted again, and others are
    put there."""

    def run(self, *, jobs: int = 1, watch: Telling | None = None) -> Iterator[SplitResult]:
        """Every cell on every split, all splits of a cell one after the other.

        Args:
            jobs: processes.  They start only if, by the time of the last fit, what is left takes
                longer than starting them, but at once for networks too large for a stack, and
                for fits that take long, because a process can be ended; results are the same.
            watch: told what fits that take long will cost, before the first of them, and of their
                steps and the epochs of networks as they come, if in processes by a thread.

        Raises:
            HeadError: if a head cannot be fitted on a split.
        """
        ready = self._ready
        splits = list(enumerate(self.splits.rows))
        stacks, large, long, alone = ready._kinds
        if watch is not None:
            rows = self.splits.rows[0].train
            for label in long:
                cell, table = self.cells[label], ready.table_of(label)
                known = cost(cell, table, self.mos, rows, fits=len(splits), jobs=jobs)
                if known is not None:
                    watch(known)
        yield from ready._in_turn([(c, [one]) for c in alone for one in splits], jobs, watch)
        yield from ready._in_processes([(c, [one]) for c in long for one in splits], jobs, watch)
        some = [splits[at : at + TOGETHER] for at in range(0, len(splits), TOGETHER)]
        yield from ready._in_turn([(c, few) for c in stacks for few in some], jobs, watch)
        # Networks that start processes by themselves, which share the features.
        for label in large:
            for at in range(0, len(splits), jobs):
                yield from ready.on_splits(label, splits[at : at + jobs], watch, jobs=jobs)

    @property
    def _ready(self) -> "Fits":
        """With features pooled or in memory, once for all fits."""
        kinds = [isinstance(cell.head, PooledHead) for cell in self.cells.values()]

        left = 0 if all(kinds) else TABLE_BYTES

        def ready(table: FeatureTable) -> FeatureTable:
            nonlocal left
            read = table.in_memory(budget_bytes=left)
            left -= sum(table.nbytes(role) for role in table.roles) if read is not table else 0
            return PooledTable(read, pooled(read)) if any(kinds) else read

        whole = replace(self, table=ready(self.table))
        # Of one split a test set is read once anyway.
        left = left if len(self.splits) > 1 else 0
        sets = [
            replace(one, rated=replace(one.rated, table=ready(one.rated.table)))
            for one in self.sets
        ]
        return replace(whole, sets=sets)

    @property
    def _kinds(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Labels of networks that stack, of others, of fits that take long, and of all others."""
        most = max(len(split.train) for split in self.splits.rows)
        kinds: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
        for label, cell in self.cells.items():
            head, table = cell.head, self.table_of(label)
            if self.has_heads(label):
                kinds[3].append(label)
            elif head.trains_together(table):
                kinds[0].append(label)
            elif head.shares(table):
                kinds[1].append(label)
            elif takes_long(head, table, most):
                kinds[2].append(label)
            else:
                kinds[3].append(label)
        return kinds

    def table_of(self, label: str) -> FeatureTable:
        """The features of a cell."""
        return self._of_cell(label, self.table)

    def _of_cell(self, label: str, table: FeatureTable) -> FeatureTable:
        roles = self.cells[label].roles
        return table if roles == table.roles else table.select(roles)

    def has_heads(self, label: str) -> bool:
        """Whether the fitted heads of a cell are kept, so that none has to be fitted."""
        folders = [self._folder(label, split) for split in range(len(self.splits))]
        return all(folder is not None and (folder / CARD).exists() for folder in folders)

    def _folder(self, label: str, split: int) -> Path | None:
        """Where the fitted head of a split is kept."""
        return self.kept[label] / f"{split:05}" if label in self.kept else None

    def _in_turn(
        self, tasks: Sequence[Task], jobs: int, watch: Telling | None
    ) -> Iterator[SplitResult]:
        """One after the other, or in processes where that is worth it."""
        took = 0.0
        for number, task in enumerate(tasks):
            if jobs > 1 and number and took * (len(tasks) - number) > WORTH_WORKERS_SECONDS:
                yield from self._in_processes(tasks[number:], jobs, watch)
                return
            started = time.monotonic()
            results = self.on_splits(*task, watch)
            took = time.monotonic() - started
            yield from results

    def _in_processes(
        self, tasks: Sequence[Task], jobs: int, watch: Telling | None
    ) -> Iterator[SplitResult]:
        for results in in_workers(self.on_splits, tasks, jobs=jobs, watch=watch):
            yield from results

    def on_splits(
        self,
        label: str,
        splits: Sequence[tuple[int, Split]],
        watch: Telling | None = None,
        *,
        jobs: int = 1,
    ) -> list[SplitResult]:
        """One cell on some splits with their numbers, at the same time where it can be.

        Args:
            label: of the cell.
            splits: with their numbers.
            watch: told of every epoch of a network, and every step of another fit.
            jobs: processes that a network may start.
        """
        fitted = self._fitted(label, splits, watch, jobs)
        started = time.monotonic()
        table = self.table_of(label)
        predictions = [
            head.predict(table.subset(split.test)) if len(split.test) else np.empty(0)
            for (head, _), (_, split) in zip(fitted, splits, strict=True)
        ]
        sets = [
            [
                SetResult(quality_metrics(one.rated.mos, predicted), predicted)
                for one in self.sets
                for predicted in [head.predict(self._of_cell(label, one.rated.table))]
            ]
            for head, _ in fitted
        ]
        share = (time.monotonic() - started) / len(splits)
        found = zip(splits, fitted, predictions, sets, strict=True)
        return [
            SplitResult(
                cell=label,
                split=number,
                metrics=quality_metrics(self.mos[split.test], own) if len(own) else None,
                selection=head.selection_,
                held_out=_held_out(head),
                predicted=own,
                seconds=seconds + share,
                sets=further,
            )
            for (number, split), (head, seconds), own, further in found
        ]

    def _fitted(
        self,
        label: str,
        splits: Sequence[tuple[int, Split]],
        watch: Telling | None,
        jobs: int,
    ) -> list[tuple[Head, float]]:
        """The heads of some splits with the seconds that each took: kept ones, or fitted now."""
        cell = self.cells[label]
        folders = [self._folder(label, number) for number, _ in splits]
        kept = [folder for folder in folders if folder is not None and (folder / CARD).exists()]
        if len(kept) == len(splits):
            return [_kept(cell.head, folder) for folder in kept]
        started = time.monotonic()
        mos = self.splits.training_mos(self.mos, [split for _, split in splits])
        heads = [clone(cell.head) for _ in splits]
        for head in heads:
            head.watch, head.processes = watch, jobs
        fitted = type(heads[0]).fit_many(
            heads,
            self.table_of(label),
            mos,
            [split.train for _, split in splits],
            [split.validation for _, split in splits],
        )
        share = (time.monotonic() - started) / len(splits)
        for head, folder in zip(fitted, folders, strict=True):
            if folder is not None:
                try:
                    head.save(folder, {"seconds": share})
                except HeadError as error:  # the record is worth more than the head
                    log.warning("%s is not kept: %s", label, error)
        return [(head, share) for head in fitted]


def _kept(head: Head, folder: Path) -> tuple[Head, float]:
    """What `head`, fitted, was kept as, on the machine of today; and the seconds of its fit.

    Raises:
        HeadError: if what the folder holds is damaged.
    """
    kept = load_head(folder)
    kept.set_params(**{name: getattr(head, name) for name in head.unkept})
    return kept, float(read_card(folder)["seconds"])


def _held_out(head: Head) -> int | None:
    """On how few videos a fitted head chose an epoch."""
    counts: list[int] = head.record_.get("split", {}).get("held_out_videos", [])
    return min(counts, default=None)


def cost(
    cell: Cell,
    table: FeatureTable,
    mos: NDArray[np.float64],
    rows: NDArray[np.int64],
    *,
    fits: int,
    jobs: int = 1,
) -> Cost | None:
    """What fits of a cell on such rows will take, by one on a few of them.

    Args:
        cell: of a head on pooled features.
        table: of its features.
        mos: [n].
        rows: of the table, of one fit.
        fits: how many there will be.
        jobs: how many at the same time.

    Returns:
        None where the few rows cannot be fitted: they share a score, or have too few scenes.
    """
    some = np.sort(np.random.default_rng(0).permutation(rows)[:MEASURED_VIDEOS])
    if not isinstance(cell.head, PooledHead) or len(np.unique(mos[some])) < 2:
        return None
    few, width = table.subset(some), pooled_width(table.specs.values())
    small = cell.head.small(len(rows))
    started = time.monotonic()
    try:
        small.fit(few, mos[some])
    except HeadError:  # all rows may have scenes enough; if not, their own fit says so
        return None
    took = time.monotonic() - started
    seconds = took * cell.head.operations(len(rows), width) / small.operations(len(some), width)
    return Cost(cell.label, len(rows), seconds, fits, seconds * math.ceil(fits / jobs))


def takes_long(head: Head, table: FeatureTable, videos: int) -> bool:
    """Whether one fit on so many videos takes so long that Ctrl-C could not wait for it."""
    width = pooled_width(table.specs.values())
    return isinstance(head, PooledHead) and head.operations(videos, width) > LONG_OPERATIONS


def all_cores() -> int:
    """How many processes this machine, or its batch system, has room for."""
    return int(cpu_count())
