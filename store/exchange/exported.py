"""What our own two export formats share: which rows they hold, and how they are checked.

What is exported is the stored bytes with their CRC-32C, so that an import is the same feature under
the same key, bit for bit; bfloat16 is exported as its uint16 bits.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.checksums import crc32c
from vqbank.store.column import Located
from vqbank.store.errors import BankError, InvalidFeatureError, in_words
from vqbank.store.layout import VideoRecord, array_names
from vqbank.store.schema import (
    Feature,
    FeatureSpec,
    Fingerprint,
    canonical_json,
    from_stored,
    storage_dtype,
)
from vqbank.store.shard import Shard

EXCHANGE_VERSION = 1
"""The version of both formats."""


def chosen_specs(store: FeatureStore, specs: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """These features as the bank has them, by key, each once."""
    return [store.resolve(key) for key in sorted({spec.key for spec in specs})]


def banked(store: FeatureStore, spec: FeatureSpec) -> Iterator[Located[Shard]]:
    """Shard and place of every video, in the order of their ids."""
    for found in store.find(spec, store.video_ids(spec)):
        if found is not None:
            yield found


def provenances(store: FeatureStore, spec: FeatureSpec) -> list[Any]:
    """What the commits of all rows recorded, each once."""
    shards = {shard.id: shard for shard, _ in banked(store, spec)}
    distinct = {canonical_json(shard.record["provenance"]) for shard in shards.values()}
    return [json.loads(text) for text in sorted(distinct)]


def facts_of(record: VideoRecord) -> dict[str, Any]:
    """What stands in an export of a video beside its rows, as JSON values."""
    return {"fingerprint": asdict(record.fingerprint), "probe": dict(record.probe)}


@contextmanager
def as_bank_error(source: Path) -> Iterator[None]:
    """What HDF5, NumPy and JSON say of a file that is not as it should be, as one error."""
    try:
        yield
    except BankError:
        raise
    except (
        OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
        MemoryError, ArithmeticError,
    ) as error:  # fmt: skip
        raise BankError(
            f"{source} is damaged, or no file that vqbank exported: {in_words(error)}"
        ) from error


def check_header(source: Path, found: Mapping[str, Any], expected: str) -> None:
    """Refuse what is no export in the format `expected`, or a newer one.

    Raises:
        BankError: naming the source.
    """
    if found.get("format") != expected:
        raise BankError(f"{source} is no export of vqbank: it is not marked as {expected!r}")
    if found["version"] > EXCHANGE_VERSION:
        raise BankError(
            f"{source} is of export version {found['version']}, this vqbank reads up to "
            f"{EXCHANGE_VERSION}; install a newer vqbank"
        )


def checked_feature(
    source: Path, spec: FeatureSpec, record: VideoRecord, arrays: Mapping[str, NDArray[Any]]
) -> Feature:
    """Stored arrays of one video as a feature, if they are the bytes that were exported."""
    for name, expected in zip(array_names(spec), record.crc32c, strict=True):
        if crc32c(arrays[name]) != expected:
            raise BankError(
                f"{source}: {record.id}: {name} of {spec.key} has changed since it was exported; "
                "export it again, or copy the file again"
            )
    try:
        return Feature(
            values=from_stored(arrays["values"], spec.stored_dtype),
            pts_seconds=arrays["pts_seconds"],
            frame_index=arrays["frame_index"],
            side={s.name: from_stored(arrays[f"side/{s.name}"], s.dtype) for s in spec.side},
        )
    except InvalidFeatureError as error:
        raise InvalidFeatureError(f"{source}: {record.id}: {error}") from error


def array_layout(spec: FeatureSpec) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Stored dtype and row shape of each of `array_names`."""
    return {
        "values": (spec.storage_dtype, spec.shape),
        "pts_seconds": (np.dtype("<f8"), ()),
        "frame_index": (np.dtype("<i8"), ()),
        **{f"side/{side.name}": (storage_dtype(side.dtype), side.shape) for side in spec.side},
    }


def exported_record(
    video_id: str, span: Sequence[int], checksums: Sequence[int], facts: Mapping[str, Any]
) -> VideoRecord:
    """The record of a video of an export.

    Args:
        video_id: Of the video.
        span: First row and number of rows in the export's arrays.
        checksums: CRC-32C of each of `array_names`.
        facts: As from `facts_of`.
    """
    return VideoRecord(
        id=video_id,
        row_start=span[0],
        row_count=span[1],
        crc32c=tuple(checksums),
        fingerprint=Fingerprint(**facts["fingerprint"]),
        probe=facts["probe"],
    )
