"""What was tried: the heads of one or several records, side by side on the same tested videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.results.compare import Comparison, compare
from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord
from vqbank.pipelines.results.record import Record, Row
from vqbank.regressors.metrics import MosMapping
from vqbank.store.errors import RecipeError, unknown_name

CURVE_POINTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The videos that are drawn: those that the splits of a record test, or a test set of it."""

    name: str
    """Of the test set; empty of the splits' own test parts."""
    ids: Sequence[str]
    mos: NDArray[np.float64]
    """[n]: on the scale of these videos."""
    score_name: str
    mos_sha256: str

    @classmethod
    def of(cls, record: Record, name: str | None = None) -> "Drawn":
        """What a record tests.

        Args:
            record: of a run.
            name: of a test set; None for the splits' own test parts, or, where there are none, the
                first test set.

        Raises:
            RecipeError: if it has no such test set.
        """
        if name is None and record.tests_itself:
            mos = np.array(record.mos, np.float64)
            return cls("", record.ids, mos, record.score_name, record.mos_sha256)
        for one in record.test_sets:
            if name in (None, one.name):
                mos = np.array(one.mos, np.float64)
                return cls(one.name, one.ids, mos, one.score_name, one.mos_sha256)
        known = [one.name for one in record.test_sets]
        raise RecipeError(unknown_name("test set of this run", str(name), known))


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A head of a record."""

    label: str
    """The head, and its features where those of others are other ones."""
    row: Row
    """Its line in tables: where its numbers are from."""
    predicted: NDArray[np.float64]
    """[n]: the mean over the splits that test a video, NaN where none does."""
    mapped: NDArray[np.float64]
    """[n]: likewise in the unit of the scores, each split's predictions by its own mapping."""

    @property
    def record(self) -> Record:
        """Of the run."""
        return self.row.record

    @property
    def head(self) -> HeadRecord:
        """Of the record."""
        return self.row.head

    @property
    def srcc(self) -> float:
        """The median, or what else the record states; NaN where no split has one."""
        return self.row.number("srcc")

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictions, and what they are mapped to: the median of the splits' curves.

        Both are empty where no split has a mapping.
        """
        known = np.isfinite(self.predicted)
        mappings = [MosMapping(m.kind, tuple(m.parameters)) for m in self.row.scores.mappings]
        mappings = [mapping for mapping in mappings if mapping.kind != "none"]
        if not mappings or not known.any():
            return np.empty(0), np.empty(0)
        own = self.predicted[known]
        grid = np.linspace(own.min(), own.max(), CURVE_POINTS)
        return grid, np.median([mapping(grid) for mapping in mappings], axis=0)


def tried_heads(records: Sequence[Record], drawn: Drawn) -> list[Tried]:
    """The heads of those records that test the same videos by the same scores.

    Args:
        records: of runs; those of other videos or scores are left to tables.
        drawn: by the first of them.

    Raises:
        RecipeError: if a record is of a format that keeps no predictions per split.
    """
    for record in records:
        if record.vqbank_results < KEEPS_PREDICTIONS:
            raise RecipeError(
                f"a record of format {record.vqbank_results} keeps no predictions per split, and "
                "a report shows them; run `vqbank evaluate` again"
            )
    rows = [
        row
        for record in records
        for row in record.rows
        if (row.set_name, row.mos_sha256) == (drawn.name, drawn.mos_sha256)
        and row.direction in ("", "all")
    ]
    of_features = len({row.record.feature_names for row in rows}) > 1
    labels = [
        f"{row.head.name} on {row.record.feature_names}" if of_features else row.head.name
        for row in rows
    ]
    if len(set(labels)) < len(labels):
        labels = [f"{number}. {label}" for number, label in enumerate(labels, 1)]
    place = {video_id: number for number, video_id in enumerate(drawn.ids)}
    return [Tried(label, row, *_means(row, place)) for label, row in zip(labels, rows, strict=True)]


def _means(row: Row, place: dict[str, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Raw and mapped, in the order of `place`."""
    scores = row.scores
    if row.test_set is None:
        ids, tests = row.record.ids, row.record.tests
    else:
        ids = row.test_set.ids
        tests = [list(range(len(ids)))] * len(scores.predicted)
    raw, mapped, counts = (np.zeros(len(place)) for _ in range(3))
    rows = np.array([place[video_id] for video_id in ids], np.int64)
    for test, predicted, mapping in zip(tests, scores.predicted, scores.mappings, strict=True):
        own = np.array(predicted, np.float64)
        raw[rows[test]] += own
        mapped[rows[test]] += MosMapping(mapping.kind, tuple(mapping.parameters))(own)
        counts[rows[test]] += 1
    counts[counts == 0] = np.nan
    return raw / counts, mapped / counts


def best_of(tried: Sequence[Tried]) -> Tried:
    """The highest SRCC on the first one's splits; random weights only where all are."""
    alike = [one for one in tried if one.record.splits_sha256 == tried[0].record.splits_sha256]
    alike = [one for one in alike if not one.record.random_weights] or alike
    return max(alike, key=lambda one: -np.inf if np.isnan(one.srcc) else one.srcc)


def against_best(best: Tried, tried: Sequence[Tried]) -> list[tuple[Tried, Comparison]]:
    """Every other head on the same splits, compared with the best one."""
    same = best.record.splits_sha256
    others = [one for one in tried if one is not best and one.record.splits_sha256 == same]
    # Of both, the test parts, where there are some, come before the test set.
    return [(one, compare([_alone(best), _alone(one)])[-1]) for one in others]


def _alone(one: Tried) -> Record:
    """A record of one head, and of what is drawn of it."""
    kept = [number for number, s in enumerate(one.record.test_sets) if s is one.row.test_set]
    head = one.head.model_copy(update={"sets": [one.head.sets[number] for number in kept]})
    sets = [one.record.test_sets[number] for number in kept]
    return one.record.model_copy(update={"heads": [head], "test_sets": sets})
