"""What a bank and a manifest know of the videos of a record: size, rate, pictures, motion."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqbank.store.bank import FeatureStore
from vqbank.store.schema import FeatureSpec, Video

PICTURES = "thumbnail.pixels"
MOTION = "motion.series"
JPEG_QUALITY = 65
"""A picture of 96 x 54 pixels then has some 2 kB."""
MOST_MOMENTS = 60
"""Values of a video's time line: of a longer one each stands for more than a second."""
MOST_GROUPS = 8
"""Colours and markers that can be told apart."""
FACTS = ("lines", "rate", "seconds")


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Of n videos, in their order; what nobody knows is NaN, or absent."""

    facts: Mapping[str, NDArray[np.float64]]
    """[n] of each of FACTS: pixels of the short side, frames per second, duration."""
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """JPEG by video."""
    motion: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    """Mean frame difference of each second, or of each of MOST_MOMENTS equal parts, by video."""
    groups: Sequence[str] = ()
    """[n]: the group of each; empty where there is one only."""
    grouped_by: str = ""

    def knows(self, fact: str) -> bool:
        """Whether a fact is known of some video."""
        return bool(np.isfinite(self.facts[fact]).any())


def known_of(
    ids: Sequence[str],
    store: FeatureStore | None,
    keys: Sequence[str],
    *,
    videos: Sequence[Video] = (),
    pictured: Sequence[int] | None = None,
) -> Known:
    """What can be told of videos.

    Args:
        ids: n.
        store: their bank.
        keys: of features that they have there.
        videos: of a manifest, for scenes and parts.
        pictured: the videos whose pictures are wanted; None for all.
    """
    facts = {fact: np.full(len(ids), np.nan) for fact in FACTS}
    grouped_by, groups = _groups(ids, videos)
    if store is None:
        return Known(facts, groups=groups, grouped_by=grouped_by)
    probed = [spec for name in (*keys, PICTURES, MOTION) for spec in store.named(name)]
    for spec in dict.fromkeys(probed):
        _add_facts(facts, ids, store, spec)
        if np.isfinite(facts["lines"]).all():
            break
    return Known(
        facts,
        pictures=_pictures(ids, store, pictured),
        motion=_motion(ids, store),
        groups=groups,
        grouped_by=grouped_by,
    )


def _add_facts(
    facts: Mapping[str, NDArray[np.float64]],
    ids: Sequence[str],
    store: FeatureStore,
    spec: FeatureSpec,
) -> None:
    for row, found in enumerate(store.find(spec, ids)):
        if found is None or np.isfinite(facts["lines"][row]):
            continue
        probe = found.source.video(found.place).probe
        if "width" not in probe or "height" not in probe:  # imported: nobody has seen the video
            continue
        told: Mapping[str, object] = dict(probe)
        facts["lines"][row] = min(probe["width"], probe["height"])
        for fact, name in (("rate", "rate"), ("seconds", "duration_seconds")):
            value = told.get(name)
            if isinstance(value, int | float) and 0 < value < 1e6:
                facts[fact][row] = value


def _widest(store: FeatureStore, name: str) -> FeatureSpec | None:
    """Of the features of a name, that of most videos."""
    return max(store.named(name), key=lambda spec: len(store.video_ids(spec)), default=None)


def _pictures(
    ids: Sequence[str], store: FeatureStore, wanted: Sequence[int] | None
) -> dict[int, bytes]:
    spec = _widest(store, PICTURES)
    if spec is None or spec.stored_dtype != "uint8" or len(spec.shape) != 3 or spec.shape[0] != 3:
        return {}
    rows = range(len(ids)) if wanted is None else wanted
    pictures = {}
    for row, found in zip(rows, store.find(spec, [ids[row] for row in rows]), strict=True):
        if found is None:
            continue
        values = found.source.feature(found.place).values
        pictures[row] = jpeg(np.asarray(values[len(values) // 2], np.uint8))
    return pictures


def jpeg(square: NDArray[np.uint8]) -> bytes:
    """A letter-boxed picture [3, side, side] without its bars, as a file."""
    lit = np.asarray(square.any(axis=0))
    rows, columns = (np.flatnonzero(lit.max(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:  # a black frame
        rows, columns = np.arange(lit.shape[0]), np.arange(lit.shape[1])
    # Bars are as wide on one side as on the other: a black edge of the picture itself stays.
    top = min(rows[0], lit.shape[0] - 1 - rows[-1])
    left = min(columns[0], lit.shape[1] - 1 - columns[-1])
    inside = square[:, top : lit.shape[0] - top, left : lit.shape[1] - left]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(inside.transpose(1, 2, 0))).save(
        file, "JPEG", quality=JPEG_QUALITY, optimize=True
    )
    return file.getvalue()


def _motion(ids: Sequence[str], store: FeatureStore) -> dict[int, NDArray[np.float64]]:
    spec = _widest(store, MOTION)
    if spec is None:
        return {}
    series = {}
    for row, found in enumerate(store.find(spec, ids)):
        if found is None:
            continue
        feature = found.source.feature(found.place)
        changes = np.asarray(feature.values, np.float64).reshape(len(feature.values), -1)[:, 0]
        series[row] = moments(changes, feature.pts_seconds)
    return series


def moments(values: NDArray[np.float64], pts_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the seconds of a video, or over MOST_MOMENTS parts of a longer one.

    A second without a value takes that of the one before.

    Args:
        values: [t].
        pts_seconds: [t], increasing.
    """
    since = pts_seconds - pts_seconds[0]
    step = max(1.0, (float(since[-1]) + 1e-9) / MOST_MOMENTS)
    place = np.minimum((since / step).astype(np.int64), MOST_MOMENTS - 1)
    counts = np.bincount(place)
    means = np.bincount(place, values) / np.maximum(counts, 1)
    last = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))
    return means[last]


def _groups(ids: Sequence[str], videos: Sequence[Video]) -> tuple[str, list[str]]:
    """What tells groups of videos apart: the data set, else the part, else the scene."""
    by_id = {video.id: video for video in videos}
    candidates = {
        "data set": [video_id.partition("/")[0] for video_id in ids],
        "part": [str(by_id[i].part or "none") if i in by_id else "none" for i in ids],
        "scene": [str(by_id[i].scene or "none") if i in by_id else "none" for i in ids],
    }
    for what, names in candidates.items():
        count = len(set(names))
        if count > 1 and (what == "scene" or count <= MOST_GROUPS):
            return what, names
    return "", []
