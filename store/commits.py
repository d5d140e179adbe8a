"""What counts in a bank: commit records, what they supersede, and marks of bad rows.

A feature's folder has two rooms of records.  A record in `commits/` makes a shard part of the bank,
and may name rows of older shards that no longer win; one in `bad/` lets rows count as missing.
Records are made once, whole, and never changed: listing them is the state of the feature.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from vqbank.store.files import create_exclusively, inside, listed, sync_folder
from vqbank.store.records import FORMAT_VERSION, Checksum, Count, Time, Version, read_sealed, seal

Record = TypeVar("Record")

ShardId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
FileName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=255
    ),
]
"""A file's name below its shard's folder; no step of it leaves the folder or is hidden."""
Videos = list[str] | Literal["all"]
HiddenRows = set[tuple[str, str | None]]
"""(shard id, video id) of rows that do not win; the video is None for a whole shard."""
_lenient = with_config(ConfigDict(extra="allow", strict=True))


@_lenient
class CommittedFile(TypedDict):
    """Length and CRC-32C of a file of a shard."""

    bytes: Count
    crc32c: Checksum


@_lenient
class NamedRows(TypedDict):
    """Some videos of a shard, or all."""

    shard: ShardId
    videos: Videos


@_lenient
class Provenance(TypedDict):
    """Who computed rows; free but for what is read of it."""

    software: NotRequired[dict[str, str]]
    network_seconds: NotRequired[float]
    """What all videos of the shard took in the network, with all outputs that share it."""
    rows_from: NotRequired[list["Provenance"]]
    original: NotRequired[list["Provenance"]]


@_lenient
class Commit(TypedDict):
    """A commit record, which makes a shard part of the bank."""

    format: Literal["vqbank-commit"]
    version: Version
    key: str
    shard: ShardId
    time: Time
    videos: Annotated[int, Field(ge=1, le=10**8)]
    rows: Annotated[int, Field(ge=1, le=2**53)]
    files: dict[FileName, CommittedFile]
    supersedes: list[NamedRows]
    provenance: Provenance


@_lenient
class Mark(TypedDict):
    """A mark of bad rows, which count as missing."""

    format: Literal["vqbank-bad"]
    version: Version
    shard: ShardId
    videos: Videos
    time: Time


_COMMIT: TypeAdapter[Any] = TypeAdapter(Commit)
_MARK: TypeAdapter[Any] = TypeAdapter(Mark)


def read_commit(root: Path, path: Path) -> Commit:
    """The commit record at `path` in the bank `root`.

    Raises:
        FileNotFoundError: if it is not there.
        DamagedShardError: if it is not whole, is no such record, or leads out of the bank.
        BankError: if a newer vqbank wrote it, or it cannot be read.
    """
    commit: Commit = read_sealed(root, path, _COMMIT)
    return commit


def read_mark(root: Path, path: Path) -> Mark:
    """The mark of bad rows at `path` in the bank `root`; errors as for `read_commit`."""
    mark: Mark = read_sealed(root, path, _MARK)
    return mark


def room_of_records(feature_folder: Path, room: str, *, durable: bool = True) -> Path:
    """The folder of commit records or of marks, made if need be, so that its name lasts.

    Whoever made the folders above it may have been killed before their names reached the disk.
    """
    folder = inside(feature_folder.parent, feature_folder / room)
    folder.mkdir(exist_ok=True)
    if durable:
        sync_folder(feature_folder)
        sync_folder(feature_folder.parent)
    return folder


def mark_bad(feature_folder: Path, shard_id: str, videos: Sequence[str] | None) -> None:
    """Let rows of a committed shard count as missing, so that extracting again repairs them.

    Args:
        feature_folder: `NAME@HASH/` of a bank.
        shard_id: Whose rows.
        videos: Of which videos; None for all.
    """
    mark: Mark = {
        "format": "vqbank-bad",
        "version": FORMAT_VERSION,
        "shard": shard_id,
        "videos": "all" if videos is None else sorted(videos),
        "time": time.time(),
    }
    room = room_of_records(feature_folder, "bad")
    create_exclusively(room / f"{secrets.token_hex(8)}.json", seal(mark))


def records(feature_folder: Path, room: str) -> list[Path]:
    """Commit records, or marks of bad rows; names that begin with a dot are unfinished.

    Raises:
        DamagedShardError: if the way to them is a link.
    """
    found = listed(feature_folder.parent, feature_folder / room)
    return [p for p in found if p.name.endswith(".json") and not p.name.startswith(".")]


def record_names(feature_folder: Path) -> list[str]:
    """Names of all commit records and marks of bad rows: they stand for the feature's state."""
    rooms = ("bad", "commits")
    return [f"{room}/{path.name}" for room in rooms for path in records(feature_folder, room)]


def read_all(folder: Path, room: str, read: Callable[[Path], Record]) -> list[Record]:
    """Every record of a room; where one is pruned between listing and reading, all are again.

    Without it, what it superseded could seem to win.
    """
    while True:
        found = records(folder, room)
        try:
            return [read(path) for path in found]
        except FileNotFoundError:
            if records(folder, room) == found:
                raise


def named_rows(named: Iterable[NamedRows | Mark]) -> HiddenRows:
    """What entries of `supersedes`, or marks of bad rows, name."""
    return {
        (entry["shard"], video)
        for entry in named
        for video in ([None] if entry["videos"] == "all" else entry["videos"])
    }


def bad_videos(feature_folder: Path) -> HiddenRows:
    """Rows that a check found damaged; they count as missing.

    Raises:
        DamagedShardError: if a mark is not whole.
    """
    root = feature_folder.parent
    return named_rows(read_all(feature_folder, "bad", lambda path: read_mark(root, path)))


def superseded_videos(commits: Iterable[Commit]) -> HiddenRows:
    """Rows that these commits replaced."""
    return named_rows(entry for commit in commits for entry in commit["supersedes"])
