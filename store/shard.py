"""One immutable shard: rows of one feature for some videos, a Zarr v3 group that is written once.

The values lie uncompressed in Zarr's sharded layout, which is the raw rows one after the other
followed by a small table, so that they can be memory-mapped; the group still opens in any Zarr
reader.  `docs/store-format.md` describes every byte.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.checksums import crc32c
from vqbank.store.commits import read_all, read_commit
from vqbank.store.errors import DamagedShardError
from vqbank.store.layout import (
    COMPRESSED_DTYPES,
    INDEX_COLUMNS,
    VideoFacts,
    VideoRecord,
    array_names,
)
from vqbank.store.records import Count, parsed
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, from_stored, storage_dtype
from vqbank.store.shard_files import ShardFiles
from vqbank.store.value_files import ValueFiles

PIECE_BYTES = 640 * 2**10
"""What is copied before its checksum is taken, so that it is still in the processor's cache."""
ZSTD_RATIO = 2**15
"""What zstd makes of zeros: 1 MiB takes 51 bytes; nothing shrinks more."""


class _Fingerprint(TypedDict):
    length: Count
    sha256: Annotated[str, Field(max_length=128)]


class _Facts(TypedDict):
    fingerprint: _Fingerprint
    probe: VideoFacts


_FACTS: TypeAdapter[Any] = TypeAdapter(_Facts)


class Shard:
    """A committed shard, read by memory map."""

    def __init__(self, feature_folder: Path, commit: Path, spec: FeatureSpec) -> None:
        """Read the commit record and nothing else.

        Raises:
            DamagedShardError: if the record is not whole or belongs to another feature.
            BankError: if a newer vqbank wrote it.
        """
        self.spec = spec
        self._commit = commit
        self.record = read_commit(feature_folder.parent, commit)
        if self.record["key"] != spec.key or self.record["shard"] != commit.stem:
            raise DamagedShardError(
                f"{commit}: record of shard {self.record['shard']} of {self.record['key']} "
                f"stands in the folder of {spec.key}; remove it"
            )
        committed = self.record["files"]
        stored = sum(
            entry["bytes"] for name, entry in committed.items() if name.startswith("values/c/")
        )
        most = stored * (ZSTD_RATIO if spec.stored_dtype in COMPRESSED_DTYPES else 1)
        if self.record["rows"] * spec.row_bytes > most:
            raise DamagedShardError(
                f"{commit}: {stored} bytes of values hold no {self.record['rows']} rows"
            )
        self.id = self.record["shard"]
        self.folder = feature_folder / "shards" / self.id
        self._files = ShardFiles(feature_folder.parent, self.folder, committed)
        self.value_files = ValueFiles(self._files, spec, self.record["rows"])
        self._columns: dict[str, NDArray[Any]] = {}
        self._checked: set[tuple[int, str]] = set()

    @property
    def order(self) -> tuple[float, str]:
        """Of two shards with the same video the one with the smaller order wins."""
        return (self.record["time"], self.id)

    def __len__(self) -> int:
        return self.record["videos"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.folder.parents[1], self._commit, self.spec)

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """[videos, columns]: INDEX_COLUMNS, then one checksum for each of `array_names`.

        Raises:
            DamagedShardError: if it names rows or text that the shard does not have.
        """
        columns = len(INDEX_COLUMNS) + len(array_names(self.spec))
        index = self._files.array("index", np.dtype("<i8"), len(self) * columns)
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
        return self._files.array("index_text", np.dtype(np.uint8)).tobytes()

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
        return self.video(place).has_times

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
            rows = self.value_files.rows(start, start + count)
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
            self.value_files.copy(start, out, mapped=mapped)
        else:
            rows = self.value_files.rows(start, start + len(out))
            out[:] = from_stored(rows, self.spec.stored_dtype)

    def prefetch(self, start: int, count: int) -> None:
        """Ask the kernel to load rows that will soon be read through the map."""
        self.value_files.prefetch(start, count)

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
            self.value_files.copy(start, out, mapped=mapped)
            checksum = crc32c(out)
        else:
            checksum = 0
            pieces = -(-len(out) // self._piece_rows)
            rows = -(-len(out) // pieces)  # all of about one size
            for first in range(0, len(out), rows):
                piece = out[first : first + rows]
                self.value_files.copy(start + first, piece, mapped=mapped)
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

    @cached_property
    def _is_plain(self) -> bool:
        """Whether values lie on disk as they are in memory."""
        return self.value_files.can_be_mapped and self.spec.stored_dtype != "bfloat16"

    @cached_property
    def _piece_rows(self) -> int:
        return max(1, PIECE_BYTES // self.spec.row_bytes)

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            dtypes = {"pts_seconds": np.dtype("<f8"), "frame_index": np.dtype("<i8")}
            sides = {f"side/{side.name}": side for side in self.spec.side}
            if name in dtypes:
                self._columns[name] = self._files.array(name, dtypes[name], self.record["rows"])
            else:
                side = sides[name]
                numbers = self.record["rows"] * math.prod(side.shape)
                rows = self._files.array(name, storage_dtype(side.dtype), numbers)
                self._columns[name] = rows.reshape(self.record["rows"], *side.shape)
        return self._columns[name]


def committed_shards(feature_folder: Path, spec: FeatureSpec) -> list[Shard]:
    """Every shard that has a commit record: the state of this feature is what listing it shows.

    Where a record is pruned between listing and reading, the list is made again: without it, what
    it superseded could seem to win.

    Raises:
        DamagedShardError: if a record is not whole.
    """
    return read_all(feature_folder, "commits", lambda path: Shard(feature_folder, path, spec))
