"""What was tried: the heads of one or several records, side by side on the same videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.results.compare import Comparison, compare
from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.records import alone
from vqbank.regressors.metrics import MosMapping
from vqbank.store.errors import RecipeError

CURVE_POINTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A head of a record."""

    label: str
    """The head, and its features where those of others are other ones."""
    record: Record
    head: HeadRecord
    predicted: NDArray[np.float64]
    """[n]: the mean over the splits that test a video, NaN where none does."""
    mapped: NDArray[np.float64]
    """[n]: likewise in the unit of the scores, each split's predictions by its own mapping."""

    @property
    def median(self) -> float:
        """Median SRCC; NaN where no split has one."""
        return self.head.statistics["srcc"].median

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predictions, and what they are mapped to: the median of the splits' curves.

        Both are empty where no split has a mapping.
        """
        known = np.isfinite(self.predicted)
        mappings = [MosMapping(m.kind, tuple(m.parameters)) for m in self.head.mappings]
        mappings = [mapping for mapping in mappings if mapping.kind != "none"]
        if not mappings or not known.any():
            return np.empty(0), np.empty(0)
        own = self.predicted[known]
        grid = np.linspace(own.min(), own.max(), CURVE_POINTS)
        return grid, np.median([mapping(grid) for mapping in mappings], axis=0)


def tried_heads(records: Sequence[Record]) -> list[Tried]:
    """The heads of those records that have the videos and the scores of the first one.

    Of a record whose splits test nothing, its first test set is what is tested.

    Args:
        records: of runs; those of other videos or scores are left to tables.

    Raises:
        RecipeError: if a record is of a format that keeps no predictions per split.
    """
    for record in records:
        if record.vqbank_results < KEEPS_PREDICTIONS:
            raise RecipeError(
                f"a record of format {record.vqbank_results} keeps no predictions per split, and "
                "a report shows them; run `vqbank evaluate` again"
            )
    records = [
        record if record.tests_itself else alone(record, record.test_sets[0].name)
        for record in records
    ]
    first = records[0]
    alike = [record for record in records if record.mos_sha256 == first.mos_sha256]
    pairs = [(record, head) for record in alike for head in record.heads]
    names = [head.name for _, head in pairs]
    of_features = len({record.feature_names for record in alike}) > 1
    labels = [
        f"{head.name} on {record.feature_names}" if of_features else head.name
        for record, head in pairs
    ]
    if len(set(labels)) < len(names):
        labels = [f"{number}. {label}" for number, label in enumerate(labels, 1)]
    place = {video_id: row for row, video_id in enumerate(first.ids)}
    return [
        Tried(label, record, head, *_means(record, head, place))
        for label, (record, head) in zip(labels, pairs, strict=True)
    ]


def _means(
    record: Record, head: HeadRecord, place: dict[str, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Raw and mapped, in the order of `place`."""
    raw, mapped, counts = (np.zeros(len(place)) for _ in range(3))
    rows = np.array([place[video_id] for video_id in record.ids], np.int64)
    for test, predicted, mapping in zip(record.tests, head.predicted, head.mappings, strict=True):
        own = np.array(predicted, np.float64)
        raw[rows[test]] += own
        mapped[rows[test]] += MosMapping(mapping.kind, tuple(mapping.parameters))(own)
        counts[rows[test]] += 1
    counts[counts == 0] = np.nan
    return raw / counts, mapped / counts


def best_of(tried: Sequence[Tried]) -> Tried:
    """The highest median SRCC on the first one's splits; random weights only where all are."""
    alike = [one for one in tried if one.record.splits_sha256 == tried[0].record.splits_sha256]
    alike = [one for one in alike if not one.record.random_weights] or alike
    return max(alike, key=lambda one: -np.inf if np.isnan(one.median) else one.median)


def against_best(best: Tried, tried: Sequence[Tried]) -> list[tuple[Tried, Comparison]]:
    """Every other head on the same splits, compared with the best one."""
    same = best.record.splits_sha256
    others = [one for one in tried if one is not best and one.record.splits_sha256 == same]
    if not others:
        return []
    each = [one.record.model_copy(update={"heads": [one.head]}) for one in (best, *others)]
    return list(zip(others, compare([alone(record) for record in each]), strict=True))
