"""One immutable shard: rows of one feature for some videos, a Zarr v3 group that is written once.

The values lie uncompressed in Zarr's sharded layout, which is the raw rows one after the other
followed by a small table, so that they can be memory-mapped; the group still opens in any Zarr
reader.  `docs/store-format.md` describes every byte.
"""

import math
import mmap
import os
import resource
import secrets
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.errors import DamagedShardError, InvalidFeatureError, naming
from vqbank.store.files import content, crc32c, create_exclusively, inside, opened, sync_folder
from vqbank.store.records import (
    COMMIT,
    FORMAT_VERSION,
    Count,
    parsed,
    read_all,
    read_sealed,
    seal,
)
from vqbank.store.schema import (
    Feature,
    FeatureSpec,
    Fingerprint,
    SideSpec,
    canonical_json,
    from_stored,
    storage_dtype,
    to_stored,
)

FILE_BYTES = 128 * 2**20
"""A value file holds at most this much, unless one row is larger."""
CHUNK_BYTES = (64 * 2**10, 2**20)
"""Inner chunks lie between these, about 64 rows each; only generic Zarr readers see them."""
PIECE_BYTES = 640 * 2**10
"""What is copied before its checksum is taken, so that it is still in the processor's cache."""
INDEX_COLUMNS = ("row_start", "row_count", "id_start", "id_bytes", "record_start", "record_bytes")
ABSENT_CHUNK = 2**64 - 1
MAPPED_FILES = 8192
"""Value files that are mapped at once, where a process may open as many."""
ZSTD_LEVEL = 3
ZSTD_RATIO = 2**15
"""What zstd makes of zeros: 1 MiB takes 51 bytes; nothing shrinks more."""
CODECS = (["bytes"], ["bytes", "zstd"])
"""Of inner chunks, from the row to the disk."""
COMPRESSED_DTYPES = ("uint8", "int16")
"""Pixels and residuals shrink; activations do not (1.0 to 1.3 times), and lose the memory map."""


class _Fingerprint(TypedDict):
    length: Count
    sha256: Annotated[str, Field(max_length=128)]


class _Facts(TypedDict):
    fingerprint: _Fingerprint
    probe: dict[str, Any]


class _Chunks(TypedDict):
    chunk_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**53)]], Field(min_length=1)]


class _Grid(TypedDict):
    name: Literal["regular"]
    configuration: _Chunks


class _Codec(TypedDict):
    name: str


class _Inner(_Chunks):
    codecs: list[_Codec]
    index_location: Literal["end"]


class _Sharding(TypedDict):
    name: Literal["sharding_indexed"]
    configuration: _Inner


class _Metadata(TypedDict):
    shape: list[Count]
    data_type: str
    chunk_grid: _Grid
    codecs: Annotated[list[_Sharding], Field(min_length=1, max_length=1)]


_FACTS: TypeAdapter[Any] = TypeAdapter(_Facts)
_METADATA: TypeAdapter[Any] = TypeAdapter(_Metadata)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """What a shard knows of one of its videos."""

    id: str
    row_start: int
    row_count: int
    crc32c: tuple[int, ...]
    """Of the video's bytes in each array, in the order of `array_names`."""
    fingerprint: Fingerprint
    probe: Mapping[str, Any]
    """What was learnt before and while decoding: size, rate, length, health."""


def array_names(spec: FeatureSpec) -> tuple[str, ...]:
    """The arrays with one entry per row, in the order of the index's checksums."""
    return ("values", "pts_seconds", "frame_index", *(f"side/{side.name}" for side in spec.side))


def rows_per_chunk(row_bytes: int) -> int:
    """Rows of an inner chunk: 64 rows rounded up to a power of two in bytes, within CHUNK_BYTES."""
    smallest, largest = CHUNK_BYTES
    wanted = 1 << max(0, 64 * row_bytes - 1).bit_length()
    return max(1, min(max(wanted, smallest), largest) // max(1, row_bytes))


def rows_per_file(row_bytes: int) -> int:
    """Rows of a full value file: a multiple of `rows_per_chunk`."""
    chunk = rows_per_chunk(row_bytes)
    return max(1, FILE_BYTES // max(1, row_bytes) // chunk) * chunk


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

    def close(self, total_chunks: int) -> dict[str, int]:
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
    """Streams the rows of one feature to a new shard; nothing is visible before `commit`."""

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
        self.videos: list[VideoRecord] = []
        self.started = time.monotonic()
        self._feature_folder = feature_folder
        self._folder = feature_folder / "shards" / self.id
        self._provenance = dict(provenance)
        self._durable = durable
        self._rows = 0
        self._columns: dict[str, list[NDArray[Any]]] = {n: [] for n in array_names(spec)[1:]}
        self._files: dict[str, dict[str, int]] = {}
        self._values: _ValueFile | None = None
        self._may_be_committed = False
        inside(feature_folder.parent, self._folder).mkdir(parents=True)

    def add(
        self, video_id: str, feature: Feature, *, fingerprint: Fingerprint, probe: Mapping[str, Any]
    ) -> None:
        """Append all rows of one video.

        Raises:
            InvalidFeatureError: if the rows are not what the spec says; nothing is written then.
        """
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
                probe=dict(probe),
            )
        )
        self._rows += len(values)
        self.payload_bytes += values.nbytes + sum(column.nbytes for column in columns.values())

    def copy(self, shard: "Shard", place: int) -> None:
        """Append a video of another shard of the same feature, byte for byte.

        Raises:
            DamagedShardError: if its bytes are not those that were committed.
        """
        video = shard.video(place)
        arrays = {name: shard.stored(place, name) for name in array_names(self.spec)}
        self._write_rows(np.ascontiguousarray(arrays["values"]))
        for name, column in self._columns.items():
            column.append(arrays[name].copy())  # a slice would keep its whole array alive
        self.videos.append(replace(video, row_start=self._rows))
        self._rows += video.row_count
        self.payload_bytes += sum(array.nbytes for array in arrays.values())

    def commit(self, *, supersedes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Make the shard part of the bank: all files first, the commit record last.

        Args:
            supersedes: Rows of older shards that no longer win, as
                `{"shard": id, "videos": [ids] or "all"}`.
        """
        if not self.videos:
            self.abandon()
            return
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

        record = {
            "format": "vqbank-commit",
            "version": FORMAT_VERSION,
            "key": spec.key,
            "shard": self.id,
            "time": time.time(),
            "videos": len(self.videos),
            "rows": self._rows,
            "files": self._files,
            "supersedes": [dict(entry) for entry in supersedes],
            "provenance": self._provenance,
        }
        commits = inside(self._feature_folder.parent, self._feature_folder / "commits")
        commits.mkdir(exist_ok=True)
        if self._durable:  # whoever made these folders may have been killed before it synced them
            sync_folder(self._feature_folder)
            sync_folder(self._feature_folder.parent)
        self._may_be_committed = True
        create_exclusively(commits / f"{self.id}.json", seal(record), durable=self._durable)

    def abandon(self) -> None:
        """Remove what was written, unless the commit record may already be there."""
        if self._may_be_committed:
            return
        if self._values is not None:
            with suppress(OSError):  # a full disk: what is still in the buffer cannot be flushed
                self._values.file.close()
            self._values = None
        # What cannot be removed now has no commit record: nobody reads it, `prune` removes it.
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_rows(self, values: NDArray[Any]) -> None:
        limit = rows_per_file(self.spec.row_bytes)
        while len(values):
            if self._values is None:
                path = self._folder / self._value_file(len(self._files))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._values = _ValueFile(path, self.spec)
            room = limit - self._values.rows
            self._values.write(values[:room])
            values = values[room:]
            if self._values.rows == limit:
                self._close_file()

    def _value_file(self, number: int) -> str:
        return "/".join(["values", "c", str(number), *("0" for _ in self.spec.shape)])

    def _close_file(self) -> None:
        if self._values is None:
            return
        # One small file needs no table for the chunks of a large one.
        rows = rows_per_file(self.spec.row_bytes) if self._files else self._values.rows
        name = self._value_file(len(self._files))
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
            path = self._folder / name
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
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


class _Held:
    """Value files that are mapped in this process.

    Each holds a descriptor, of which a process has 1,024 as a rule; beyond half of them the one
    that was mapped first is let go.  Arrays that were given out of it stay what they are.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[weakref.ref[Shard], int], None] = {}
        self._lock = threading.Lock()

    def add(self, shard: "Shard", number: int) -> None:
        """Take note of a map, and let go of others if there are too many."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAPPED_FILES if soft == resource.RLIM_INFINITY else min(MAPPED_FILES, soft // 2)
        with self._lock:
            self._files[weakref.ref(shard), number] = None
            if len(self._files) <= most:
                return
            self._files = {at: None for at in self._files if at[0]() is not None}
            for at in [*self._files][: max(0, len(self._files) - most * 3 // 4)]:
                del self._files[at]
                old = at[0]()
                if old is not None:
                    old.unmap(at[1])


_HELD = _Held()


class Shard:
    """A committed shard, read by memory map."""

    def __init__(self, feature_folder: Path, commit: Path, spec: FeatureSpec) -> None:
        """Read the commit record and nothing else.

        Raises:
            DamagedShardError: if the record is not whole or belongs to another feature.
            BankError: if a newer vqbank wrote it.
        """
        self.spec = spec
        self._root = feature_folder.parent
        self.record = read_sealed(self._root, commit, COMMIT)
        if self.record["key"] != spec.key or self.record["shard"] != commit.stem:
            raise DamagedShardError(
                f"{commit}: record of shard {self.record['shard']} of {self.record['key']} "
                f"stands in the folder of {spec.key}; remove it"
            )
        files = self.record["files"].items()
        stored = sum(entry["bytes"] for name, entry in files if name.startswith("values/c/"))
        most = stored * (ZSTD_RATIO if spec.stored_dtype in COMPRESSED_DTYPES else 1)
        if self.record["rows"] * spec.row_bytes > most:
            raise DamagedShardError(
                f"{commit}: {stored} bytes of values hold no {self.record['rows']} rows"
            )
        self._commit = commit
        self.id: str = self.record["shard"]
        self.folder = feature_folder / "shards" / self.id
        self._checked: set[tuple[int, str]] = set()

    @property
    def order(self) -> tuple[float, str]:
        """Of two shards with the same video the one with the smaller order wins."""
        return (self.record["time"], self.id)

    def __len__(self) -> int:
        return int(self.record["videos"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.folder.parents[1], self._commit, self.spec)

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """[videos, columns]: INDEX_COLUMNS, then one checksum for each of `array_names`.

        Raises:
            DamagedShardError: if it names rows or text that the shard does not have.
        """
        columns = len(INDEX_COLUMNS) + len(array_names(self.spec))
        index = self._read_small("index", np.dtype("<i8"), len(self) * columns)
        index = index.reshape(-1, columns)
        limits = (self.record["rows"], len(self._text), len(self._text))
        for column, limit in zip((0, 2, 4), limits, strict=True):
            start, count = index[:, column], index[:, column + 1]
            least = 1 if column == 0 else 0  # rows
            whole = (start >= 0) & (count >= least) & (start <= limit) & (count <= limit - start)
            if not whole.all():
                raise DamagedShardError(
                    f"{self.folder}: its index says {INDEX_COLUMNS[column + 1]} "
                    f"{count[~whole][0]} from {start[~whole][0]} on, of {limit}"
                )
        return index

    @cached_property
    def _text(self) -> bytes:
        return self._read_small("index_text", np.dtype(np.uint8)).tobytes()

    def ids(self) -> Iterator[str]:
        """Ids of the videos, in the order of their rows."""
        text = self._text
        try:
            for start, length in self.index[:, 2:4].tolist():
                yield text[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise DamagedShardError(f"{self.folder}: an id in its index is no UTF-8") from error

    def holds(self, place: int, video_id: str) -> bool:
        """Whether the video at `place` is this one."""
        if not 0 <= place < len(self):
            return False
        start, length = self.index[place, 2:4].tolist()
        return self._text[start : start + length] == video_id.encode()

    def video(self, place: int) -> VideoRecord:
        """What is known of the video at `place`."""
        row = self.index[place].tolist()
        row_start, row_count, id_start, id_bytes, record_start, record_bytes, *checksums = row
        what = f"{self.folder}: the record of video {place} in its index"
        facts = parsed(self._text[record_start : record_start + record_bytes], _FACTS, what)
        try:
            video_id = self._text[id_start : id_start + id_bytes].decode()
        except UnicodeDecodeError as error:
            raise DamagedShardError(f"{self.folder}: an id in its index is no UTF-8") from error
        return VideoRecord(
            id=video_id,
            row_start=row_start,
            row_count=row_count,
            crc32c=tuple(checksums),
            fingerprint=Fingerprint(**facts["fingerprint"]),
            probe=facts["probe"],
        )

    def span(self, place: int) -> tuple[int, int]:
        """First row and number of rows of the video at `place`."""
        start, count = self.index[place, :2].tolist()
        return start, count

    def values(self, place: int) -> NDArray[Any]:
        """The rows [t, *shape] of the video at `place`: a view of the file where it can be.

        Raises:
            DamagedShardError: if the bytes are not those that were committed; checked on the first
                read of each video in a process.
        """
        return from_stored(self.stored(place, "values"), self.spec.stored_dtype)

    def pts_seconds(self, place: int) -> NDArray[np.float64]:
        """[t] of the video at `place`."""
        return self.stored(place, "pts_seconds")

    def frame_index(self, place: int) -> NDArray[np.int64]:
        """[t] of the video at `place`."""
        return self.stored(place, "frame_index")

    def has_times(self, place: int) -> bool:
        """Whether the times of the video at `place` are known; imports may have row numbers."""
        return self.video(place).probe.get("times") != "row numbers"

    def side(self, place: int, name: str) -> NDArray[Any]:
        """[t, ...] of the declared side array `name` of the video at `place`."""
        dtype = next(side.dtype for side in self.spec.side if side.name == name)
        return from_stored(self.stored(place, f"side/{name}"), dtype)

    def feature(self, place: int) -> Feature:
        """Everything of the video at `place`."""
        return Feature(
            values=self.values(place),
            pts_seconds=self.pts_seconds(place),
            frame_index=self.frame_index(place),
            side={side.name: self.side(place, side.name) for side in self.spec.side},
        )

    def stored(self, place: int, name: str) -> NDArray[Any]:
        """One of `array_names` of the video at `place`, as it lies on disk.

        Raises:
            DamagedShardError: if the bytes are not those that were committed.
        """
        start, count = self.index[place, :2].tolist()
        if name == "values":
            rows = self._value_rows(start, start + count)
        else:
            rows = self._column(name)[start : start + count]
        if (place, name) not in self._checked:
            self._check(place, name, rows)
        return rows

    def copy_rows(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` [t, *shape] with the rows from `start` on, unchecked.

        Args:
            start: Row number.
            out: As many rows as are wanted.
            mapped: Through the memory map, or by reading the file past it.
        """
        if self._is_plain:
            self._copy_stored(start, out, mapped=mapped and self._is_local)
        else:
            out[:] = from_stored(self._value_rows(start, start + len(out)), self.spec.stored_dtype)

    def _copy_stored(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        limit = self.layout.file_rows
        done = 0
        while done < len(out):
            number, first = divmod(start + done, limit)
            piece = out[done : done + limit - first]
            if mapped:
                piece[:] = self._map(number)[first : first + len(piece)]
            else:
                self._read_into(number, first, piece)
            done += len(piece)

    def _read_into(self, number: int, first: int, out: NDArray[Any]) -> None:
        """One range of one value file, read past the memory map."""
        path = self.value_file(number)
        start = first * self.spec.row_bytes
        flat = out.reshape(-1).view(np.uint8)
        if self._is_local:
            with opened(self._root, path) as file, naming(path):
                file.seek(start)
                got = file.readinto(flat.data)
            if got != flat.nbytes:
                raise DamagedShardError(f"{path} ended early")
        else:
            flat[:] = np.frombuffer(self._range(path, start, flat.nbytes), np.uint8)

    def unmap(self, number: int) -> None:
        """Let go of a value file; it is mapped again when it is read again."""
        self._maps.pop(number, None)

    def prefetch(self, start: int, count: int) -> None:
        """Ask the kernel to load rows that will soon be read through the map."""
        if not self._is_local or self.layout.codecs != ["bytes"]:
            return
        limit = self.layout.file_rows
        for number in range(start // limit, (start + count - 1) // limit + 1):
            mapped, _ = self._mapped(number)
            first = max(0, start - number * limit) * self.spec.row_bytes
            last = min(limit, start + count - number * limit) * self.spec.row_bytes
            aligned = first - first % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, aligned, last - aligned)

    def copy_checked(self, place: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` [t, *shape] with the video at `place`, compared with its checksum.

        Raises:
            DamagedShardError: if the bytes are not those that were committed.
        """
        if not self._is_plain:
            out[:] = self.values(place)
            return
        start, expected = self._value_checksums[place]
        if len(out) <= self._piece_rows:
            self._copy_stored(start, out, mapped=mapped and self._is_local)
            checksum = crc32c(out)
        else:
            checksum = 0
            pieces = -(-len(out) // self._piece_rows)
            rows = -(-len(out) // pieces)  # all of about one size
            for first in range(0, len(out), rows):
                piece = out[first : first + rows]
                self._copy_stored(start + first, piece, mapped=mapped and self._is_local)
                checksum = crc32c(piece, checksum)
        if checksum != expected:
            raise self._changed(place, "values")

    def _check(self, place: int, name: str, rows: NDArray[Any]) -> None:
        column = len(INDEX_COLUMNS) + array_names(self.spec).index(name)
        if crc32c(rows) != self.index[place, column]:
            raise self._changed(place, name)
        self._checked.add((place, name))

    def _changed(self, place: int, name: str) -> DamagedShardError:
        return DamagedShardError(
            f"{self.video(place).id}: {name} in {self.folder} has changed since it was "
            "committed; run `vqbank verify --mark` and extract again, or restore the file"
        )

    @cached_property
    def _value_checksums(self) -> list[tuple[int, int]]:
        """First row and checksum of every video's values: plain numbers, read video by video."""
        column = len(INDEX_COLUMNS) + array_names(self.spec).index("values")
        return list(zip(self.index[:, 0].tolist(), self.index[:, column].tolist(), strict=True))

    def _value_rows(self, start: int, stop: int) -> NDArray[Any]:
        if self.layout.codecs != ["bytes"]:
            return self._unpacked(start, stop)
        limit = self.layout.file_rows
        number, first = divmod(start, limit)
        if self._is_local and stop <= (number + 1) * limit:
            return self._map(number)[first : first + stop - start]
        rows = np.empty((stop - start, *self.spec.shape), self.spec.storage_dtype)
        self._copy_stored(start, rows, mapped=self._is_local)
        return rows

    @cached_property
    def _is_local(self) -> bool:
        return isinstance(self.folder, Path)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether values lie on disk as they are in memory."""
        return self.layout.codecs == ["bytes"] and self.spec.stored_dtype != "bfloat16"

    @cached_property
    def _piece_rows(self) -> int:
        return max(1, PIECE_BYTES // self.spec.row_bytes)

    def _unpacked(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of the inner chunks that hold them.

        zarr-python would do it too; but it follows links, and allocates what a chunk says of its
        own length, and banks come from strangers.
        """
        from numcodecs import zstd

        step = self.layout.chunk_rows
        first, last = start // step, -(-stop // step)
        places = [self._packed_place(number) for number in range(first, last)]
        rows = np.zeros(((last - first) * step, *self.spec.shape), self.spec.storage_dtype)
        for number, (path, offset, length) in enumerate(places):
            packed = self._range(path, offset, length)
            chunk = rows[number * step : (number + 1) * step].reshape(-1).view(np.uint8)
            try:
                zstd.decompress(packed, chunk)
            except (ValueError, RuntimeError) as error:  # what zstd says of damaged bytes
                raise DamagedShardError(
                    f"{self.folder}: rows {start} to {stop} cannot be unpacked: {error}"
                ) from error
        return rows[start - first * step : stop - first * step]

    def _packed_place(self, number: int) -> tuple[Path, int, int]:
        """Where a compressed inner chunk lies: its file, its offset and its length there."""
        file, place = divmod(number, self.layout.file_rows // self.layout.chunk_rows)
        table = self._packed_table(file)
        offset, length = table[place].tolist()
        before = int(table[:place].sum(axis=0)[1])
        path = self.value_file(file)
        if offset != before or length > self._value_bytes(file) - offset:
            raise DamagedShardError(f"{path}: its chunk {place} is not where it should be")
        return path, offset, length

    def _packed_table(self, file: int) -> NDArray[np.uint64]:
        """[chunks, 2]: offset and length of each inner chunk of a value file."""
        if file not in self._tables:
            count = self.layout.file_rows // self.layout.chunk_rows
            start = self._value_bytes(file) - 16 * count - 4
            path = self.value_file(file)
            if start < 0:
                raise DamagedShardError(f"{path} is too short for a table of {count} chunks")
            table = self._range(path, start, 16 * count)
            self._tables[file] = np.frombuffer(table, "<u8").reshape(count, 2)
        return self._tables[file]

    @cached_property
    def _tables(self) -> dict[int, NDArray[np.uint64]]:
        return {}

    def _range(self, path: Path, start: int, length: int) -> bytes:
        """Some bytes of a file, whose length was compared with what was committed."""
        if self._is_local:
            with opened(self._root, path) as file, naming(path):
                file.seek(start)
                found: bytes = file.read(length)
        else:
            remote: Any = path
            found = remote.fs.cat_file(remote.path, start=start, end=start + length)
        if len(found) != length:
            raise DamagedShardError(f"{path} ended early")
        return found

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        return {}

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            dtypes = {"pts_seconds": np.dtype("<f8"), "frame_index": np.dtype("<i8")}
            sides = {f"side/{side.name}": side for side in self.spec.side}
            if name in dtypes:
                self._columns[name] = self._read_small(name, dtypes[name], self.record["rows"])
            else:
                side = sides[name]
                numbers = self.record["rows"] * math.prod(side.shape)
                rows = self._read_small(name, storage_dtype(side.dtype), numbers)
                self._columns[name] = rows.reshape(self.record["rows"], *side.shape)
        return self._columns[name]

    def _read_small(
        self, name: str, dtype: np.dtype[Any], count: int | None = None
    ) -> NDArray[Any]:
        """All of an array of one chunk; of `count` numbers, if that is known."""
        prefix = f"{name}/c/"
        file = next((f for f in self.record["files"] if f.startswith(prefix)), None)
        if file is None:
            raise DamagedShardError(f"{self.folder}: its commit record names no array {name}")
        entry = self.record["files"][file]
        if count is not None and entry["bytes"] != count * dtype.itemsize:
            raise DamagedShardError(
                f"{self.folder / file} has {entry['bytes']} bytes, where {count} numbers of "
                f"{dtype.itemsize} bytes belong"
            )
        stored = content(self._root, self._file(file), limit=None)
        if crc32c(stored) != entry["crc32c"]:
            raise DamagedShardError(f"{self.folder / file} has changed since it was committed")
        return np.frombuffer(stored, dtype)

    @cached_property
    def layout(self) -> "_Layout":
        """How the rows lie in the value files.

        Raises:
            DamagedShardError: if it is not a layout of the rows that the record names.
        """
        path = self._file("values/zarr.json")
        what = f"{path} is not the metadata of values"
        metadata = parsed(content(self._root, path), _METADATA, what)
        file_rows, *row = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        inner = metadata["codecs"][0]["configuration"]
        chunk_rows, *inner_row = inner["chunk_shape"]
        codecs = [codec["name"] for codec in inner["codecs"]]
        stated = (metadata["shape"], metadata["data_type"], row, inner_row)
        of_row = list(self.spec.shape)
        whole = ([self.record["rows"], *of_row], self.spec.storage_dtype.name, of_row, of_row)
        if stated != whole or file_rows % chunk_rows or codecs not in CODECS:
            raise DamagedShardError(
                f"{what}: {stated[1]} {stated[0]}, in files of {[file_rows, *row]} and chunks of "
                f"{[chunk_rows, *inner_row]} as {', '.join(codecs)}, of {whole[1]} {whole[0]}"
            )
        return _Layout(file_rows, chunk_rows, codecs)

    @cached_property
    def _maps(self) -> dict[int, tuple[mmap.mmap, NDArray[Any]]]:
        return {}

    def _map(self, number: int) -> NDArray[Any]:
        """The rows of value file `number`, memory-mapped and read-only."""
        return self._mapped(number)[1]

    def _mapped(self, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        found = self._maps.get(number)
        if found is not None:
            return found
        rows = min(self.layout.file_rows, self.record["rows"] - number * self.layout.file_rows)
        spec = self.spec
        path = self.value_file(number)
        length = self._value_bytes(number)
        if rows < 1 or length < rows * spec.row_bytes:
            raise DamagedShardError(f"{path} has {length} bytes: too few for {rows} rows")
        # A private map: nothing written to it could reach the file.  Heads lend its memory to
        # torch, which has no read-only tensors.
        with naming(path), opened(self._root, path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = np.frombuffer(mapped, spec.storage_dtype, rows * math.prod(spec.shape))
        flat.flags.writeable = False
        made = self._maps[number] = (mapped, flat.reshape(rows, *spec.shape))
        _HELD.add(self, number)
        return made

    def value_file(self, number: int) -> Path:
        """The path of value file `number`."""
        return self._file(self._value_name(number))

    def _value_bytes(self, number: int) -> int:
        return int(self.record["files"].get(self._value_name(number), {}).get("bytes", 0))

    def _value_name(self, number: int) -> str:
        return "/".join(["values", "c", str(number), *("0" for _ in self.spec.shape)])

    def _file(self, name: str) -> Path:
        """The path of a committed file whose length is still what was committed."""
        path = inside(self._root, self.folder / name)
        expected = self.record["files"].get(name, {}).get("bytes")
        try:
            length = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedShardError(f"{path} is missing, though it was committed") from error
        except OSError as error:
            raise DamagedShardError(f"{path} cannot be read ({error.strerror})") from error
        if length != expected:
            raise DamagedShardError(f"{path} has {length} bytes, {expected} were committed")
        return path


@dataclass(frozen=True, slots=True)
class _Layout:
    """How `values` is cut."""

    file_rows: int
    chunk_rows: int
    codecs: list[str]
    """Of inner chunks; ["bytes"] alone can be mapped."""


def committed_shards(feature_folder: Path, spec: FeatureSpec) -> list[Shard]:
    """Every shard that has a commit record: the state of this feature is what listing it shows.

    Where a record is pruned between listing and reading, the list is made again: without it, what
    it superseded could seem to win.

    Raises:
        DamagedShardError: if a record is not whole.
    """
    return read_all(feature_folder, "commits", lambda path: Shard(feature_folder, path, spec))


def mark_bad(feature_folder: Path, shard_id: str, videos: Sequence[str] | None) -> None:
    """Let rows of a committed shard count as missing, so that extracting again repairs them.

    Args:
        feature_folder: `NAME@HASH/` of a bank.
        shard_id: Whose rows.
        videos: Of which videos; None for all.
    """
    room = inside(feature_folder.parent, feature_folder / "bad")
    room.mkdir(exist_ok=True)
    sync_folder(feature_folder)
    record = {
        "format": "vqbank-bad",
        "version": FORMAT_VERSION,
        "shard": shard_id,
        "videos": "all" if videos is None else sorted(videos),
        "time": time.time(),
    }
    create_exclusively(room / f"{secrets.token_hex(8)}.json", seal(record))
