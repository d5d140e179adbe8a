"""How two features, or two banks, differ: per video, byte for byte and by cosine."""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.column import Located
from vqbank.store.files import BLOCK_BYTES
from vqbank.store.layout import array_names
from vqbank.store.schema import FeatureSpec, StoredDtype, from_stored
from vqbank.store.shard import Shard


@dataclass(frozen=True, slots=True)
class Difference:
    """One video whose rows are not the same on both sides."""

    key: str
    """Key of the feature; of the first where two are compared."""
    video: str
    rows: tuple[int, int]
    """Rows of the video on either side; 0 where it is missing."""
    arrays: tuple[str, ...] = ()
    """Arrays whose bytes differ: `values`, `pts_seconds`, `frame_index`, `side/...`."""
    largest: float = math.nan
    """Largest absolute difference of two values; NaN unless shapes are equal."""
    cosine: float = math.nan
    """Cosine between the values of both sides, all as one vector; NaN unless shapes are equal."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Differences, counted."""

    only_in_one: int
    only_in_two: int
    differing: int
    worst: tuple[Difference, ...]
    """The worst differences: other shapes first, then by the largest difference of two values."""


def diff(
    one: FeatureStore, two: FeatureStore, specs: Iterable[FeatureSpec] | None = None
) -> Iterator[Difference]:
    """Compare two banks, video by video; nothing is yielded if and only if they are the same bank.

    The same bank has the same videos under the same keys, with equal bytes of every array.  How
    rows are grouped into shards, and commit times, are free.

    Args:
        one: A bank.
        two: Another.
        specs: Which features; those of both banks if None.

    Raises:
        DamagedShardError: naming the video whose bytes have changed since they were committed.
    """
    chosen = [*one.specs(), *two.specs()] if specs is None else list(specs)
    for spec in sorted(set(chosen), key=lambda spec: spec.key):
        yield from _compare((one, spec), (two, spec))


def diff_features(store: FeatureStore, one: FeatureSpec, two: FeatureSpec) -> Iterator[Difference]:
    """Compare two features of one bank, such as two keys of one name, video by video.

    Raises:
        DamagedShardError: naming the video whose bytes have changed since they were committed.
    """
    return _compare((store, one), (store, two))


def summarise(differences: Iterable[Difference], *, worst: int = 10) -> Summary:
    """Count differences and keep the worst."""
    counts = [0, 0, 0]

    def both() -> Iterator[Difference]:
        for difference in differences:
            side = 2 if all(difference.rows) else difference.rows.index(0) ^ 1
            counts[side] += 1
            if side == 2:
                yield difference

    def badness(difference: Difference) -> tuple[float, float]:
        if math.isnan(difference.largest):
            return math.inf, 0.0
        return difference.largest, -difference.cosine

    found = tuple(heapq.nlargest(worst, both(), key=badness))
    return Summary(counts[0], counts[1], counts[2], found)


def _compare(
    one: tuple[FeatureStore, FeatureSpec], two: tuple[FeatureStore, FeatureSpec]
) -> Iterator[Difference]:
    ids = sorted({*one[0].video_ids(one[1]), *two[0].video_ids(two[1])})
    sides = zip(one[0].find(one[1], ids), two[0].find(two[1], ids), strict=True)
    for video, (first, second) in zip(ids, sides, strict=True):
        if first is not None and second is not None:
            yield from _compare_video(video, first, second)
            continue
        yield Difference(one[1].key, video, (_row_count(first), _row_count(second)))


def _row_count(found: Located[Shard] | None) -> int:
    return 0 if found is None else found.source.span(found.place)[1]


def _compare_video(
    video: str, first: Located[Shard], second: Located[Shard]
) -> Iterator[Difference]:
    one, two = first.source, second.source
    names = dict.fromkeys([*array_names(one.spec), *array_names(two.spec)])
    known = set(array_names(one.spec)) & set(array_names(two.spec))
    differing = tuple(
        name
        for name in names
        if name not in known
        or not _same_bytes(one.stored(first.place, name), two.stored(second.place, name))
    )
    if not differing:
        return
    rows = (_row_count(first), _row_count(second))
    largest, cosine = _distance(
        *(one.stored(first.place, "values"), one.spec.stored_dtype),
        *(two.stored(second.place, "values"), two.spec.stored_dtype),
    )
    yield Difference(one.spec.key, video, rows, differing, largest, cosine)


def _same_bytes(one: NDArray[Any], two: NDArray[Any]) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    first, second = (np.ascontiguousarray(array).reshape(-1) for array in (one, two))
    return np.array_equal(first.view(np.uint8), second.view(np.uint8))


def _distance(
    one: NDArray[Any], dtype_one: StoredDtype, two: NDArray[Any], dtype_two: StoredDtype
) -> tuple[float, float]:
    """Largest absolute difference and cosine of two arrays as stored."""
    if one.shape != two.shape:
        return math.nan, math.nan
    largest = product = square_one = square_two = 0.0
    step = max(1, BLOCK_BYTES // (8 * max(1, math.prod(one.shape[1:]))))
    for start in range(0, len(one), step):
        a = from_stored(one[start : start + step], dtype_one).astype(np.float64).reshape(-1)
        b = from_stored(two[start : start + step], dtype_two).astype(np.float64).reshape(-1)
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
        product += float(a @ b)
        square_one += float(a @ a)
        square_two += float(b @ b)
    if square_one == 0 or square_two == 0:
        return largest, 1.0 if square_one == square_two else 0.0
    return largest, product / math.sqrt(square_one) / math.sqrt(square_two)
