"""Sealed records: small JSON files with a checksum, that are made once and whole.

Who wrote one may be a stranger: its checksum says that it is whole, and its schema that every field
is there and of a kind and size that the rest of the code may rely on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vqbank.store.checksums import crc32c
from vqbank.store.documents import json_value
from vqbank.store.errors import BankError, DamagedShardError
from vqbank.store.files import content
from vqbank.store.schema import canonical_json

FORMAT_VERSION = 1

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of rows or bytes: times the size of a row it is still what NumPy and files can count."""
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Unix seconds up to the year 5138, beyond which dates cannot be shown."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1)]


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


def read_sealed(root: Path, path: Path, kind: TypeAdapter[Any]) -> Any:
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
    return checked(record, kind, what)


def seal(record: Mapping[str, Any]) -> bytes:
    """A record with its checksum: what commit records and marks of bad rows are."""
    text = canonical_json(dict(record))
    return canonical_json({"crc32c": crc32c(text.encode()), "record": dict(record)}).encode()
