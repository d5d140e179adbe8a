"""What is known of videos without looking at them: size, rate, length, bytes per second."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.labels import Labels
from vqbank.pipelines.labels.columns import simple
from vqbank.pipelines.labels.reader import read_sheets
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError
from vqbank.store.schema import FeatureSpec, Video

COLUMNS: Mapping[str, str] = {
    "width": "width",
    "height": "height",
    "framerate": "rate",
    "fps": "rate",
    "rate": "rate",
    "nbframes": "frames",
    "frames": "frames",
    "framecount": "frames",
    "duration": "seconds",
    "durationseconds": "seconds",
    "bitrate": "bits per second",
    "bitdepth": "bit depth",
}
"""What columns of label files, and facts of banked videos, are; by their bare names."""
USUAL_VALUES = 8
"""Of each, such as sizes and rates, for which a head may have a weight of its own."""


def metadata_of(
    store: FeatureStore | None,
    specs: Sequence[FeatureSpec],
    videos: Sequence[Video],
    labels: Labels | None,
) -> dict[str, NDArray[np.float64]]:
    """[n] by what it is: those of COLUMNS that are known of every video and not always the same.

    Args:
        store: the bank, whose facts of videos come first.
        specs: features of it.
        videos: n of them.
        labels: the label file with the same rows, whose further columns fill what the bank lacks.
    """
    sources = [] if store is None else [_of_bank(store, spec, videos) for spec in specs]
    if labels is not None:
        sources.append(_of_labels(labels.path, len(videos)))
    found: dict[str, NDArray[np.float64]] = {}
    for source in sources:
        for name, values in source.items():
            if name not in found and np.isfinite(values).all() and len(np.unique(values)) > 1:
                found[name] = values
    return found


def _of_bank(
    store: FeatureStore, spec: FeatureSpec, videos: Sequence[Video]
) -> dict[str, NDArray[np.float64]]:
    places = store.find(spec, [video.id for video in videos])
    records = [None if place is None else place.source.video(place.place) for place in places]
    found: dict[str, list[float]] = {}
    for record in records:
        facts = {} if record is None else dict(record.probe)
        own = {COLUMNS[simple(name)]: v for name, v in facts.items() if simple(name) in COLUMNS}
        seconds = own.get("seconds")
        if record is not None and isinstance(seconds, int | float) and seconds > 0:
            own["bits per second"] = 8 * record.fingerprint.length / seconds
        for name in dict.fromkeys(COLUMNS.values()):
            value = own.get(name)
            number = float(value) if isinstance(value, int | float) else math.nan
            found.setdefault(name, []).append(number)
    return {name: np.array(values) for name, values in found.items()}


def _of_labels(path: Path, rows: int) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for sheet in read_sheets(path):
        for column, cells in sheet.columns.items():
            if len(cells) != rows or simple(column) not in COLUMNS:
                continue
            try:
                numbers = sheet.numbers(column, missing=("", "nan", "na", "n/a"))
            except ManifestError:  # another meaning of the name: words, and no numbers
                continue
            found[COLUMNS[simple(column)]] = np.array(numbers, np.float64)
    return found


def inputs_of(metadata: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """[n, d] for a linear head: logarithms and their squares, and which usual value it is.

    Args:
        metadata: [n] by what it is.
    """
    columns = []
    for values in metadata.values():
        logs = np.log1p(np.abs(values))
        columns += [logs, logs**2]
        usual, counts = np.unique(values, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:USUAL_VALUES]
        columns += [values == usual[one] for one in most if counts[one] > 1]
    return np.stack(columns, axis=1).astype(np.float32)
