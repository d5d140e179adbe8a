"""Writing a shard: rows of one feature stream to files, and one last file makes them count.

From rows to a shard that is committed: `ShardWriter.add` (or `copy`), `_write_rows`,
`ValueFile.write`; then `ShardWriter.commit`: `_close_file`, `_write_values_metadata`,
`_write_array` for every small array, `_write_index`, `_sync`, `room_of_records`, and
`create_exclusively`, which makes the commit record.
"""

import os
import secrets
import shutil
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from vqbank.store.checksums import crc32c
from vqbank.store.commits import Commit, CommittedFile, NamedRows, Provenance, room_of_records
from vqbank.store.errors import InvalidFeatureError, naming
from vqbank.store.files import create_exclusively, inside, sync_file, sync_folder
from vqbank.store.layout import (
    COMPRESSED_DTYPES,
    INDEX_COLUMNS,
    VideoFacts,
    VideoRecord,
    array_names,
    rows_per_chunk,
    rows_per_file,
    value_file_name,
)
from vqbank.store.records import FORMAT_VERSION, seal
from vqbank.store.schema import (
    Feature,
    FeatureSpec,
    Fingerprint,
    SideSpec,
    canonical_json,
    to_stored,
)
from vqbank.store.shard import Shard

ABSENT_CHUNK = 2**64 - 1
"""What Zarr writes for offset and length of an inner chunk that is not there."""
ZSTD_LEVEL = 3


class _ValueFile:
    """One file of `values`: rows, then the table of inner chunks that Zarr's sharding wants."""

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        self.rows = 0
        self._path = path
        self.file: BinaryIO = path.open("xb", buffering=2**20)
        self._row_bytes = spec.row_bytes
        self._chunk_rows = rows_per_chunk(spec.row_bytes)
        self._compressed = spec.stored_dtype in COMPRESSED_DTYPES
        self._waiting = bytearray()
        self._chunks: list[tuple[int, int]] = []
        self._length = 0
        self._crc = 0

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows: as they come, or chunk by chunk where they are compressed."""
        flat = rows.reshape(-1).view(np.uint8)
        self.rows += len(rows)
        if not self._compressed:
            self._append(flat)
            return
        self._waiting += flat.data
        chunk_bytes = self._chunk_rows * self._row_bytes
        while len(self._waiting) >= chunk_bytes:
            self._compress(bytes(self._waiting[:chunk_bytes]))
            del self._waiting[:chunk_bytes]

    def close(self, total_chunks: int) -> CommittedFile:
        """End the file with a table for `total_chunks`; gives its length and checksum."""
        chunk_bytes = self._chunk_rows * self._row_bytes
        if self._waiting:
            self._compress(bytes(self._waiting).ljust(chunk_bytes, b"\0"))
        elif not self._compressed:
            padding = -self._length % chunk_bytes
            with naming(self._path):
                self.file.seek(padding, os.SEEK_CUR)  # a hole: reads as zeros, costs nothing
            self._crc = crc32c(bytes(padding), self._crc)
            self._length += padding
            starts = range(0, self._length, chunk_bytes)
            self._chunks = [(start, chunk_bytes) for start in starts]
        table = np.full((total_chunks, 2), ABSENT_CHUNK, "<u8")
        table[: len(self._chunks)] = self._chunks
        tail = table.tobytes()
        self._append(np.frombuffer(tail + struct.pack("<I", crc32c(tail)), np.uint8))
        with naming(self._path):
            self.file.close()
        return {"bytes": self._length, "crc32c": self._crc}

    def _compress(self, chunk: bytes) -> None:
        from numcodecs import zstd

        packed = zstd.compress(chunk, level=ZSTD_LEVEL)
        self._chunks.append((self._length, len(packed)))
        self._append(np.frombuffer(packed, np.uint8))

    def _append(self, content: NDArray[np.uint8]) -> None:
        with naming(self._path):
            self.file.write(content.data)
        self._crc = crc32c(content, self._crc)
        self._length += len(content)


class ShardWriter:
    """Streams the rows of one feature to a new shard; nothing is visible before `commit`.

    `with store.writer(...) as writer` commits at the end of the block, unless it was done in it,
    and after an error removes what was written.
    """

    def __init__(
        self,
        feature_folder: Path,
        spec: FeatureSpec,
        *,
        provenance: Mapping[str, Any],
        durable: bool = True,
    ) -> None:
        """Make the folder of a new shard under `feature_folder`.

        Args:
            feature_folder: `NAME@HASH/` of a bank.
            spec: What the rows are.
            provenance: Software, host, device, weights path: recorded, never part of a key.
            durable: Whether `commit` waits until the bytes have reached the disk.
        """
        self.id = secrets.token_hex(8)
        self.spec = spec
        self.payload_bytes = 0
        """Size of the rows that were added, in all arrays."""
        self.videos: list[VideoRecord] = []
        """What was added, in the order of its rows."""
        self.started = time.monotonic()
        """When the writer was made, in seconds of the monotonic clock."""
        self._feature_folder = feature_folder
        self._folder = feature_folder / "shards" / self.id
        self.provenance = cast(Provenance, dict(provenance))
        """What the commit record will tell of who computed the rows; until then it may grow."""
        self._durable = durable
        self._rows = 0
        self._columns: dict[str, list[NDArray[Any]]] = {n: [] for n in array_names(spec)[1:]}
        self._files: dict[str, CommittedFile] = {}
        self._values: _ValueFile | None = None
        self._has_ended = False
        self._may_be_committed = False
        inside(feature_folder.parent, self._folder).mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and not self._has_ended:
                self.commit()
        finally:
            self.abandon()

    def add(
        self, video_id: str, feature: Feature, *, fingerprint: Fingerprint, probe: Mapping[str, Any]
    ) -> None:
        """Append all rows of one video.

        Args:
            video_id: Of the video.
            feature: Its rows.
            fingerprint: Of the file that they were made from.
            probe: `VideoFacts`, and whatever else is known of the video as JSON values.

        Raises:
            InvalidFeatureError: if the rows are not what the spec says; nothing is written then.
        """
        self._refuse_if_ended()
        spec = self.spec
        try:
            if feature.values.shape[1:] != spec.shape:
                raise InvalidFeatureError(
                    f"rows have shape {feature.values.shape[1:]}, not {spec.shape}"
                )
            values = to_stored(feature.values, spec.stored_dtype)
            columns = {
                "pts_seconds": np.array(feature.pts_seconds, "<f8"),  # kept, so not the caller's
                "frame_index": np.array(feature.frame_index, "<i8"),
                **_side_columns(spec.side, feature.side),
            }
        except InvalidFeatureError as error:
            raise InvalidFeatureError(f"{video_id}: {spec.name}: {error}") from error
        except MemoryError as error:
            raise InvalidFeatureError(
                f"{video_id}: {spec.name}: there is no memory to store its rows: {error}"
            ) from error

        self._write_rows(values)
        for name, column in columns.items():
            self._columns[name].append(column)
        self.videos.append(
            VideoRecord(
                id=video_id,
                row_start=self._rows,
                row_count=len(values),
                crc32c=(crc32c(values), *(crc32c(columns[n]) for n in array_names(spec)[1:])),
                fingerprint=fingerprint,
                probe=cast(VideoFacts, dict(probe)),
            )
        )
        self._rows += len(values)
        self.payload_bytes += values.nbytes + sum(column.nbytes for column in columns.values())

    def copy(self, shard: Shard, place: int) -> None:
        """Append a video of another shard of the same feature, byte for byte.

        Raises:
            DamagedShardError: if its bytes are not those that were committed.
        """
        self._refuse_if_ended()
        video = shard.video(place)
        arrays = {name: shard.stored(place, name) for name in array_names(self.spec)}
        self._write_rows(np.ascontiguousarray(arrays["values"]))
        for name, column in self._columns.items():
            column.append(arrays[name].copy())  # a slice would keep its whole array alive
        self.videos.append(replace(video, row_start=self._rows))
        self._rows += video.row_count
        self.payload_bytes += sum(array.nbytes for array in arrays.values())

    def commit(self, *, supersedes: Sequence[NamedRows] = ()) -> None:
        """Make the shard part of the bank: all files first, the commit record last.

        Args:
            supersedes: Rows of older shards that no longer win, as
                `{"shard": id, "videos": [ids] or "all"}`.
        """
        self._refuse_if_ended()
        if not self.videos:
            self.abandon()
            return
        self._has_ended = True
        spec = self.spec
        self._close_file()
        self._write_values_metadata()
        for name, pieces in self._columns.items():
            self._write_array(name, np.concatenate(pieces), dimensions=("row",))
        self._write_index()
        attributes = {"format": "vqbank-shard", "version": FORMAT_VERSION, "key": spec.key}
        self._write_file(
            "zarr.json",
            canonical_json(
                {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            ).encode(),
        )
        if self._durable:
            self._sync()

        record: Commit = {
            "format": "vqbank-commit",
            "version": FORMAT_VERSION,
            "key": spec.key,
            "shard": self.id,
            "time": time.time(),
            "videos": len(self.videos),
            "rows": self._rows,
            "files": self._files,
            "supersedes": list(supersedes),
            "provenance": self.provenance,
        }
        commits = room_of_records(self._feature_folder, "commits", durable=self._durable)
        self._may_be_committed = True
        create_exclusively(commits / f"{self.id}.json", seal(record), durable=self._durable)

    def abandon(self) -> None:
        """Remove what was written, unless the commit record may already be there."""
        self._has_ended = True
        if self._may_be_committed:
            return
        if self._values is not None:
            with suppress(OSError):  # a full disk: what is still in the buffer cannot be flushed
                self._values.file.close()
            self._values = None
        # What cannot be removed now has no commit record: nobody reads it, `prune` removes it.
        shutil.rmtree(self._folder, ignore_errors=True)

    def _refuse_if_ended(self) -> None:
        if self._has_ended:
            raise ValueError(f"shard {self.id} was committed or abandoned; make another writer")

    def _write_rows(self, values: NDArray[Any]) -> None:
        limit = rows_per_file(self.spec.row_bytes)
        while len(values):
            if self._values is None:
                path = self._folder / value_file_name(self.spec, len(self._files))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._values = _ValueFile(path, self.spec)
            room = limit - self._values.rows
            self._values.write(values[:room])
            values = values[room:]
            if self._values.rows == limit:
                self._close_file()

    def _close_file(self) -> None:
        if self._values is None:
            return
        # One small file needs no table for the chunks of a large one.
        rows = rows_per_file(self.spec.row_bytes) if self._files else self._values.rows
        name = value_file_name(self.spec, len(self._files))
        self._files[name] = self._values.close(-(-rows // rows_per_chunk(self.spec.row_bytes)))
        self._values = None

    def _write_values_metadata(self) -> None:
        spec = self.spec
        chunk_rows = rows_per_chunk(spec.row_bytes)
        file_rows = rows_per_file(spec.row_bytes)
        if len(self._files) == 1:
            file_rows = -(-self._rows // chunk_rows) * chunk_rows
        inner = {
            "chunk_shape": [chunk_rows, *spec.shape],
            "codecs": _value_codecs(spec),
            "index_codecs": [_bytes_codec(np.dtype("<u8")), {"name": "crc32c"}],
            "index_location": "end",
        }
        self._write_metadata(
            "values",
            spec.storage_dtype,
            shape=[self._rows, *spec.shape],
            chunk_shape=[file_rows, *spec.shape],
            codecs=[{"name": "sharding_indexed", "configuration": inner}],
            dimensions=["row", *(f"f{axis}" for axis in range(len(spec.shape)))],
            attributes={"logical_dtype": spec.stored_dtype},
        )

    def _write_index(self) -> None:
        text = bytearray()
        table = []
        for video in self.videos:
            video_id = video.id.encode()
            facts = {"fingerprint": asdict(video.fingerprint), "probe": video.probe}
            record = canonical_json(facts).encode()
            start = len(text)
            text += video_id + record
            places = (start, len(video_id), start + len(video_id), len(record))
            table.append((video.row_start, video.row_count, *places, *video.crc32c))
        columns = [*INDEX_COLUMNS, *(f"crc32c:{name}" for name in array_names(self.spec))]
        self._write_array(
            "index", np.array(table, "<i8"), dimensions=("video", "column"), columns=columns
        )
        self._write_array("index_text", np.frombuffer(bytes(text), np.uint8), dimensions=("byte",))

    def _write_array(
        self, name: str, array: NDArray[Any], *, dimensions: Sequence[str], **attributes: Any
    ) -> None:
        """A small array: one uncompressed chunk."""
        self._write_metadata(
            name,
            array.dtype,
            shape=list(array.shape),
            chunk_shape=list(array.shape),
            codecs=[_bytes_codec(array.dtype)],
            dimensions=[*dimensions, *(f"f{a}" for a in range(array.ndim - len(dimensions)))],
            attributes=attributes,
        )
        self._write_file("/".join([name, "c", *("0" for _ in array.shape)]), array.tobytes())

    def _write_metadata(
        self,
        name: str,
        dtype: np.dtype[Any],
        *,
        shape: list[int],
        chunk_shape: list[int],
        codecs: list[dict[str, Any]],
        dimensions: list[str],
        attributes: Mapping[str, Any],
    ) -> None:
        metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            # A lost float chunk must be loud.
            "fill_value": "NaN" if dtype.kind == "f" else 0,
            "codecs": codecs,
            "dimension_names": dimensions,
            "attributes": dict(attributes),
        }
        self._write_file(f"{name}/zarr.json", canonical_json(metadata).encode())

    def _write_file(self, name: str, stored: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            path.write_bytes(stored)
        self._files[name] = {"bytes": len(stored), "crc32c": crc32c(stored)}

    def _sync(self) -> None:
        for name in self._files:
            sync_file(self._folder / name)
        folders = {path.parent for name in self._files for path in [self._folder / name]}
        parents = {parent for folder in folders for parent in folder.parents}
        within = {p for p in folders | parents if p.is_relative_to(self._folder)}
        for folder in sorted(within, key=lambda path: len(path.parts), reverse=True):
            sync_folder(folder)
        sync_folder(self._folder.parent)


def _side_columns(
    specs: Sequence[SideSpec], given: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    declared = {side.name for side in specs}
    if declared != set(given):
        raise InvalidFeatureError(f"side arrays {sorted(given)} given, {sorted(declared)} declared")
    for side in specs:
        if given[side.name].shape[1:] != side.shape:
            raise InvalidFeatureError(
                f"side array {side.name} has shape {given[side.name].shape[1:]}, not {side.shape}"
            )
    return {f"side/{side.name}": to_stored(given[side.name].copy(), side.dtype) for side in specs}


def _value_codecs(spec: FeatureSpec) -> list[dict[str, Any]]:
    plain = [_bytes_codec(spec.storage_dtype)]
    if spec.stored_dtype not in COMPRESSED_DTYPES:
        return plain
    return [*plain, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}]


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
