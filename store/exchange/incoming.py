"""What every import does: find what the bank lacks, refuse other bytes, commit by size."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.checksums import crc32c
from vqbank.store.errors import BankError, InvalidFeatureError, in_words
from vqbank.store.layout import VideoFacts
from vqbank.store.ordinary import open_ordinary
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, StoredDtype, to_stored
from vqbank.store.words import counted, few

SHARD_BYTES = 256 * 2**20
"""An import commits whenever it holds this much."""
MOST_ARRAY_BYTES = 2**29
"""The most bytes of one video in a file of its own: an hour of 30 frames per second has 2,048
values of each frame in 0.9 GB, which nobody publishes; files with holes declare any length."""
NPY_DTYPES: Mapping[str, StoredDtype] = {
    "float16": "float16",
    "float32": "float32",
    "float64": "float32",
    "uint8": "uint8",
    "int8": "int16",
    "int16": "int16",
    "uint16": "int32",
    "int32": "int32",
    "int64": "int32",
}
"""How arrays of a foreign tree are stored; integers that do not fit are refused."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did to one feature of the bank."""

    spec: FeatureSpec
    banked: int
    """Videos that were committed."""
    skipped: int
    """Videos that were banked before, with equal bytes."""
    notes: tuple[str, ...] = ()
    """What whoever imports should know, a sentence each."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One video of an import; its rows are read when they are asked for."""

    id: str
    fingerprint: Fingerprint
    probe: VideoFacts
    checksums: Callable[[], tuple[int, ...]]
    """Gives the CRC-32C of each of `array_names` as it would be stored."""
    feature: Callable[[], Feature]


def lacking_videos(
    store: FeatureStore, spec: FeatureSpec, videos: Sequence[Incoming], *, source: Path
) -> tuple[list[Incoming], int]:
    """The videos that the bank lacks, and how many it has; other bytes are refused."""
    ids = [video.id for video in videos]
    twice = [video_id for video_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise BankError(f"{source}: {spec.key} has video {twice[0]!r} twice")
    lacking = []
    differing = []
    for video, found in zip(videos, store.find(spec, ids), strict=True):
        if found is None:
            lacking.append(video)
        elif found.source.video(found.place).crc32c != video.checksums():
            differing.append(video.id)
    if differing:
        raise BankError(
            f"{source}: {store.path} has {counted(len(differing), 'video')} with other bytes under "
            f"the same key {spec.key}: {few(differing)}; nothing was imported"
        )
    return lacking, len(videos) - len(lacking)


def bank_videos(
    store: FeatureStore,
    spec: FeatureSpec,
    videos: Sequence[Incoming],
    skipped: int,
    *,
    source: Path,
    original: Sequence[Any],
) -> Imported:
    """Commit shards of about SHARD_BYTES.

    Args:
        store: the bank.
        spec: of the feature.
        videos: what the bank lacks, from `lacking_videos`.
        skipped: how many it has.
        source: what is imported, for the commit record.
        original: what the source says of its own origin.

    Raises:
        InvalidFeatureError: naming the video, if its rows may not be banked.
    """
    provenance = {
        "software": {"vqbank": version("vqbank")},
        "imported_from": source.name,
        "original": list(original),
    }
    waiting = iter(videos)
    banked = 0
    while banked < len(videos):
        with store.writer(spec, provenance=provenance) as writer:
            for video in waiting:
                feature = video.feature()
                writer.add(video.id, feature, fingerprint=video.fingerprint, probe=video.probe)
                if writer.payload_bytes >= SHARD_BYTES:
                    break
        banked += len(writer.videos)
    store.refresh()
    return Imported(spec, banked, skipped)


def import_videos(
    store: FeatureStore,
    spec: FeatureSpec,
    videos: Sequence[Incoming],
    *,
    source: Path,
    notes: Sequence[str],
) -> Imported:
    """Bank what the bank lacks of a foreign import; `notes` are what its user should know.

    Raises:
        BankError: if the bank has other bytes under the same key and ids; nothing is imported then.
        InvalidFeatureError: naming the video, if its rows may not be banked.
    """
    store.refresh()
    lacking, skipped = lacking_videos(store, spec, videos, source=source)
    done = bank_videos(store, spec, lacking, skipped, source=source, original=[])
    return Imported(done.spec, done.banked, done.skipped, tuple(notes))


def checksums_of(spec: FeatureSpec, feature: Callable[[], Feature]) -> tuple[int, ...]:
    """CRC-32C of each array of a feature without side arrays, as it would be stored."""
    read = feature()
    values = to_stored(read.values, spec.stored_dtype)
    return (crc32c(values), crc32c(read.pts_seconds), crc32c(read.frame_index))


def npy_array(path: Path) -> NDArray[Any]:
    """A `.npy` file as it is, memory-mapped, so that it is no longer than it says.

    Raises:
        InvalidFeatureError: if it is damaged, holds objects, or is longer than a video can be.
    """
    try:
        open_ordinary(path).close()
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises whatever damaged bytes lead it to
        raise InvalidFeatureError(
            f"{path} cannot be read as a plain .npy array: {in_words(error)}"
        ) from error
    if array.nbytes > MOST_ARRAY_BYTES:
        raise InvalidFeatureError(
            f"{path} holds {array.shape} {array.dtype}, {array.nbytes:,} bytes; one video has "
            f"{MOST_ARRAY_BYTES:,} at most"
        )
    return array


def npy_rows(path: Path) -> NDArray[Any]:
    """[t, ...], memory-mapped; what has fewer than two axes is one row."""
    array = npy_array(path)
    if array.dtype.name not in NPY_DTYPES:
        raise InvalidFeatureError(
            f"{path} holds {array.dtype}; offered are {', '.join(NPY_DTYPES)}"
        )
    return array[None] if array.ndim < 2 else array


def npy_tree_spec(
    name: str,
    paths: Iterable[Path],
    note: str,
    *,
    rows_of: Callable[[Path], NDArray[Any]] = npy_rows,
) -> FeatureSpec:
    """The identity of a feature that a tree of `.npy` files holds, all of which must agree.

    Args:
        name: Of the feature.
        paths: Of the files, at least one.
        note: What is known of where they come from; part of the key.
        rows_of: How the rows of a file are read.

    Raises:
        InvalidFeatureError: naming two files whose rows have another shape or dtype, or one that is
            no plain array.
    """
    first, *others = paths
    rows = rows_of(first)
    for path in others:
        found = rows_of(path)
        if (found.dtype.name, found.shape[1:]) != (rows.dtype.name, rows.shape[1:]):
            raise InvalidFeatureError(
                f"{first} has {rows.dtype.name} rows of shape {rows.shape[1:]}, {path} has "
                f"{found.dtype.name} rows of shape {found.shape[1:]}; all files of a tree must "
                "agree (a one-dimensional array is one row)"
            )
    return FeatureSpec(
        name=name,
        shape=rows.shape[1:],
        stored_dtype=NPY_DTYPES[rows.dtype.name],
        identity={
            "source": "imported npy tree",
            "provenance": "unknown",
            "note": note,
            "dtype": rows.dtype.name,
        },
    )


def numbered_feature(rows: NDArray[Any]) -> Feature:
    """Rows [t, ...] that have no times: row numbers stand for them.

    Raises:
        InvalidFeatureError: if a row is not finite.
    """
    numbers = np.arange(len(rows))
    return Feature(rows, numbers.astype("f8"), numbers)


def npy_feature(path: Path) -> Feature:
    """Rows of a `.npy` file, without times.

    Raises:
        InvalidFeatureError: naming the file, as `npy_rows` and `numbered_feature`.
    """
    rows = npy_rows(path)
    try:
        return numbered_feature(rows)
    except InvalidFeatureError as error:
        raise InvalidFeatureError(f"{path}: {error}") from error


def refuse_pickle(path: Path) -> None:
    """MaxVQA keeps features as pickles, whose opening runs what is in them.

    Raises:
        BankError: if the file is a pickle, or a torch file around one.
    """
    with open_ordinary(path) as file:
        start = file.read(4)
    if start[:1] == b"\x80" or (start == b"PK\x03\x04" and path.suffix in (".pkl", ".pt", ".pth")):
        raise BankError(
            f"{path} is a pickle, and opening one runs whatever it holds; if you trust it, write "
            "one .npy file for each video from it and import that folder"
        )
