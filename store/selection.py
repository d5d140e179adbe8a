"""A selection: a small lock file that names exactly which rows of a bank a run used."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.bank import FeatureStore
from vqbank.store.checksums import crc32c
from vqbank.store.documents import MOST_JSON_BYTES, file_bytes, json_value
from vqbank.store.errors import BankError, MissingFeatureError, refusal
from vqbank.store.files import write_atomically
from vqbank.store.records import Count, Version, checked
from vqbank.store.schema import FeatureSpec, Video, canonical_json
from vqbank.store.words import counted, few

FORMAT = "vqbank-selection"
VERSION = 1


class _LockFile(TypedDict):
    format: Literal["vqbank-selection"]
    version: Version
    videos: Count
    features: dict[str, str]
    snapshot: str
    rows: dict[str, str]


_LOCK_FILE: TypeAdapter[Any] = TypeAdapter(_LockFile)


@dataclass(frozen=True)
class Selection:
    """Features by role, the videos, and checksums of their rows."""

    features: Mapping[str, str]
    """Key by role; the order is that of concatenation."""
    snapshot: str
    """SHA-256 over the sorted (key, video id, CRC-32C of every array)."""
    rows: Mapping[str, str]
    """By video id: a CRC-32C over its part of the snapshot, so that a difference can be named."""

    def __len__(self) -> int:
        return len(self.rows)


def make_selection(
    store: FeatureStore, features: Mapping[str, str], videos: Iterable[Video]
) -> Selection:
    """What the bank gives now for chosen features of chosen videos.

    Args:
        store: The bank.
        features: Feature name or key by role.
        videos: In any order; it does not matter.

    Raises:
        AmbiguousFeatureError: if several keys share a name.
        MissingFeatureError: naming the videos that lack a feature.
    """
    specs = {role: store.resolve(name) for role, name in features.items()}
    ids = sorted({video.id for video in videos})
    digest = hashlib.sha256()
    rows = np.zeros(len(ids), np.uint32)
    for spec in sorted(set(specs.values()), key=lambda spec: spec.key):
        for number, line in enumerate(_lines(store, spec, ids)):
            digest.update(line)
            rows[number] = crc32c(line, int(rows[number]))
    return Selection(
        features={role: spec.key for role, spec in specs.items()},
        snapshot=digest.hexdigest(),
        rows={video: f"{row:08x}" for video, row in zip(ids, rows.tolist(), strict=True)},
    )


def write_selection(
    path: Path, store: FeatureStore, features: Mapping[str, str], videos: Iterable[Video]
) -> Selection:
    """Make a selection and write its lock file, over an older one if there is one.

    Raises:
        AmbiguousFeatureError: if several keys share a name.
        MissingFeatureError: naming the videos that lack a feature.
    """
    selection = make_selection(store, features, videos)
    header = {"format": FORMAT, "version": VERSION, "videos": len(selection)}
    text = json.dumps({**header, **asdict(selection)}, indent=1, ensure_ascii=False)
    try:
        write_atomically(path, f"{text}\n".encode())
    except OSError as error:
        raise BankError(f"cannot be written: {refusal(error)}") from error
    return selection


def read_selection(path: Path) -> Selection:
    """The selection in a lock file.

    Raises:
        BankError: if it is none, is damaged, or is of a newer format.
    """
    text = file_bytes(path, BankError, most_bytes=MOST_JSON_BYTES)
    read = json_value(text, path, BankError)
    version = read.get("version") if isinstance(read, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise BankError(
            f"{path} is a selection of format version {version}, this vqbank reads up to "
            f"{VERSION}; install a newer vqbank"
        )
    read = checked(read, _LOCK_FILE, f"{path} is not a selection")
    selection = Selection(read["features"], read["snapshot"], read["rows"])
    if len(selection) != read["videos"]:
        raise BankError(
            f"{path} says {counted(read['videos'], 'video')} and names {len(selection)}; write it "
            "again"
        )
    return selection


def check_selection(
    store: FeatureStore, selection: Selection, videos: Sequence[Video] | None = None
) -> None:
    """Make sure that a bank still gives exactly the rows that a selection names.

    Args:
        store: The bank.
        selection: From `read_selection`.
        videos: What is about to be used; the selection's own if None.

    Raises:
        BankError: naming the first videos whose rows, or which themselves, are others.
        MissingFeatureError: naming what the bank no longer has.
    """
    locked = [Video(video, Path(video)) for video in selection.rows]
    if videos is not None:
        given = {video.id for video in videos}
        for here, there, where in (
            (given, selection.rows.keys(), "not in the selection"),
            (selection.rows.keys(), given, "of the selection not among those given"),
        ):
            if others := sorted(here - there):
                raise BankError(f"{counted(len(others), 'video')} {where}: {few(others)}")
    now = make_selection(store, selection.features, locked)
    if others := [video for video, row in selection.rows.items() if now.rows[video] != row]:
        raise BankError(
            f"{store.path} gives other rows than were selected for {len(others)} of "
            f"{counted(len(selection), 'video')}: {few(others)}; write a new selection, or use the "
            "old bank"
        )
    if now.snapshot != selection.snapshot:
        raise BankError(f"{store.path} gives other rows than snapshot {selection.snapshot[:12]}")


def _lines(store: FeatureStore, spec: FeatureSpec, ids: Sequence[str]) -> Iterator[bytes]:
    found = store.find(spec, ids)
    lacking = [video for video, place in zip(ids, found, strict=True) if place is None]
    if lacking:
        raise MissingFeatureError(
            f"{len(lacking)} of {len(ids)} videos have no {spec.key} in {store.path}: "
            f"{few(lacking)}"
        )
    for video, place in zip(ids, found, strict=True):
        if place is not None:
            shard, number = place
            yield canonical_json([spec.key, video, shard.video(number).crc32c]).encode() + b"\n"
