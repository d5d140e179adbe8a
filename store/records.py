"""Records of a bank: small sealed JSON files, such as commits, that are made once and whole.

Who wrote one may be a stranger: its checksum says that it is whole, and its schema, here, that
every field is there and of a kind and size that the rest of the code may rely on.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from vqbank.store.documents import json_value
from vqbank.store.errors import BankError, DamagedShardError
from vqbank.store.files import content, crc32c, listed
from vqbank.store.schema import canonical_json

Record = TypeVar("Record")

FORMAT_VERSION = 1

Count = Annotated[int, Field(ge=0, le=2**53)]
"""Of rows or bytes: no product with the size of a row leaves what NumPy and files can count."""
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Unix seconds up to the year 5138, beyond which dates cannot be shown."""
ShardId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Version = Annotated[int, Field(ge=1)]
FileName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=255
    ),
]
"""Below a shard's folder; no step of it leaves the folder or is hidden."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Videos = list[str] | Literal["all"]
_lenient = with_config(ConfigDict(extra="allow", strict=True))


@_lenient
class _File(TypedDict):
    bytes: Count
    crc32c: Checksum


@_lenient
class _Supersession(TypedDict):
    shard: ShardId
    videos: Videos


@_lenient
class Provenance(TypedDict):
    """Who computed rows; free but for what is read of it."""

    software: NotRequired[dict[str, str]]
    rows_from: NotRequired[list["Provenance"]]
    original: NotRequired[list["Provenance"]]


@_lenient
class _Commit(TypedDict):
    format: Literal["vqbank-commit"]
    version: Version
    key: str
    shard: ShardId
    time: Time
    videos: Annotated[int, Field(ge=1, le=10**8)]
    rows: Annotated[int, Field(ge=1, le=2**53)]
    files: dict[FileName, _File]
    supersedes: list[_Supersession]
    provenance: Provenance


@_lenient
class _Mark(TypedDict):
    format: Literal["vqbank-bad"]
    version: Version
    shard: ShardId
    videos: Videos
    time: Time


@_lenient
class _Tower(TypedDict):
    sha256: Sha256
    bytes: Count
    configuration: dict[str, Any]


@_lenient
class _TailIndex(TypedDict):
    version: Version
    towers: dict[str, _Tower]


@_lenient
class _Tokens(TypedDict):
    version: Version
    tokens: dict[str, list[Annotated[int, Field(ge=0, lt=2**31)]]]


COMMIT: TypeAdapter[Any] = TypeAdapter(_Commit)
MARK: TypeAdapter[Any] = TypeAdapter(_Mark)
TAIL_INDEX: TypeAdapter[Any] = TypeAdapter(_TailIndex)
TOKENS: TypeAdapter[Any] = TypeAdapter(_Tokens)


def parsed(text: bytes | str, kind: TypeAdapter[Any], what: str) -> Any:
    """The value of a JSON text that is of this kind.

    Args:
        text: Of any origin.
        kind: Its schema.
        what: The file and what it should be, for the message.

    Raises:
        DamagedShardError: naming the field.
    """
    return checked(json_value(text, what, DamagedShardError), kind, what)


def checked(value: Any, kind: TypeAdapter[Any], what: str) -> Any:
    """The value, which is of this kind.

    Raises:
        DamagedShardError: naming the field.
    """
    try:
        return kind.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise DamagedShardError(f"{what}: {place[:200]}: {first['msg'].lower()}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_sealed(root: Path, path: Path, kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The record in a file that `seal` made.

    Args:
        root: Of the bank.
        path: Of the file.
        kind: Its schema.

    Raises:
        FileNotFoundError: if it is not there.
        DamagedShardError: if it is not whole, is no such record, or leads out of the bank.
        BankError: if a newer vqbank wrote it, or it cannot be read.
    """
    what = f"{path} is not a record of a bank"
    wrapped = json_value(content(root, path), path, DamagedShardError)
    if not isinstance(wrapped, dict) or not isinstance(wrapped.get("record"), dict):
        raise DamagedShardError(f"{what}: it has no record")
    record: dict[str, Any] = wrapped["record"]
    try:
        sealed = crc32c(canonical_json(record).encode())
    except (ValueError, RecursionError) as error:  # NaN, half of a surrogate pair, too deep
        raise DamagedShardError(f"{what}: {_one_line(error)}") from error
    if sealed != wrapped.get("crc32c"):
        raise DamagedShardError(f"{path} has changed since it was written")
    version = record.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BankError(
            f"{path} is of format version {version}, this vqbank reads up to "
            f"{FORMAT_VERSION}; install a newer vqbank"
        )
    valid: dict[str, Any] = checked(record, kind, what)
    return valid


def seal(record: Mapping[str, Any]) -> bytes:
    """A record with its checksum: what commit records and marks of bad rows are."""
    text = canonical_json(dict(record))
    return canonical_json({"crc32c": crc32c(text.encode()), "record": dict(record)}).encode()


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


def read_mark(feature_folder: Path, path: Path) -> dict[str, Any]:
    """A mark of bad rows."""
    return read_sealed(feature_folder.parent, path, MARK)


def named_rows(named: Iterable[Mapping[str, Any]]) -> set[tuple[str, str | None]]:
    """(shard id, video id) of what such entries name; the video is None for a whole shard."""
    return {
        (entry["shard"], video)
        for entry in named
        for video in ([None] if entry["videos"] == "all" else entry["videos"])
    }


def bad_videos(feature_folder: Path) -> set[tuple[str, str | None]]:
    """As from `named_rows`: what a check found damaged, and counts as missing."""
    return named_rows(read_all(feature_folder, "bad", lambda path: read_mark(feature_folder, path)))
