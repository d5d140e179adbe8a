"""The value files of one shard: by memory map, by reading past it, or unpacked.

Rows lie in them one after the other, in Zarr's sharded layout; those of pixels and residuals are
compressed chunk by chunk, and cannot be mapped.
"""

import math
import mmap
import resource
import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.errors import DamagedShardError
from vqbank.store.files import content
from vqbank.store.layout import value_file_name
from vqbank.store.records import Count, parsed
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard_files import ShardFiles

CODECS = (["bytes"], ["bytes", "zstd"])
"""The codecs of inner chunks that vqbank writes, from the row to the disk."""
MAPPED_FILES = 8192
"""Value files that are mapped at once, where a process may open as many."""


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


_METADATA: TypeAdapter[Any] = TypeAdapter(_Metadata)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a shard are cut into files and chunks."""

    file_rows: int
    """How many rows a full file has."""
    chunk_rows: int
    """How many rows an inner chunk has."""
    codecs: list[str]
    """The codecs of inner chunks; rows under ["bytes"] alone can be mapped."""


class _Mapped:
    """Value files that are mapped in this process.

    Each holds a descriptor, of which a process has 1,024 as a rule; beyond half of them the one
    that was mapped first is let go.  Arrays that were given out of it stay what they are.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[weakref.ref[ValueFiles], int], None] = {}
        self._lock = threading.Lock()

    def add(self, files: "ValueFiles", number: int) -> None:
        """Take note of a map, and let go of others if there are too many."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAPPED_FILES if soft == resource.RLIM_INFINITY else min(MAPPED_FILES, soft // 2)
        with self._lock:
            self._files[weakref.ref(files), number] = None
            if len(self._files) <= most:
                return
            self._files = {at: None for at in self._files if at[0]() is not None}
            for at in [*self._files][: max(0, len(self._files) - most * 3 // 4)]:
                del self._files[at]
                old = at[0]()
                if old is not None:
                    old.unmap(at[1])


_MAPPED = _Mapped()


class ValueFiles:
    """The rows of a shard, by their numbers, as they lie on disk and unchecked."""

    def __init__(self, files: ShardFiles, spec: FeatureSpec, rows: int) -> None:
        """Look at nothing yet.

        Args:
            files: The shard's.
            spec: What the rows are.
            rows: How many the commit record states.
        """
        self._files = files
        self._spec = spec
        self._rows = rows
        self._maps: dict[int, tuple[mmap.mmap, NDArray[Any]]] = {}
        self._tables: dict[int, NDArray[np.uint64]] = {}

    @cached_property
    def layout(self) -> Layout:
        """How the rows lie in the files.

        Raises:
            DamagedShardError: if it is not a layout of the rows that the record states.
        """
        path = self._files.path("values/zarr.json")
        what = f"{path} is not the metadata of values"
        metadata = parsed(content(self._files.root, path), _METADATA, what)
        file_rows, *row = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        inner = metadata["codecs"][0]["configuration"]
        chunk_rows, *inner_row = inner["chunk_shape"]
        codecs = [codec["name"] for codec in inner["codecs"]]
        stated = (metadata["shape"], metadata["data_type"], row, inner_row)
        of_row = list(self._spec.shape)
        whole = ([self._rows, *of_row], self._spec.storage_dtype.name, of_row, of_row)
        if stated != whole or file_rows % chunk_rows or codecs not in CODECS:
            raise DamagedShardError(
                f"{what}: {stated[1]} {stated[0]}, in files of {[file_rows, *row]} and chunks of "
                f"{[chunk_rows, *inner_row]} as {', '.join(codecs)}, of {whole[1]} {whole[0]}"
            )
        return Layout(file_rows, chunk_rows, codecs)

    @property
    def can_be_mapped(self) -> bool:
        """Whether rows lie in the files as they are, uncompressed."""
        return self.layout.codecs == ["bytes"]

    def path(self, number: int) -> Path:
        """The path of a value file.

        Raises:
            DamagedShardError: if its length is not what was committed.
        """
        return self._files.path(value_file_name(self._spec, number))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [stop - start, *shape]: a view of the file where they lie in one that is mapped."""
        if not self.can_be_mapped:
            return self._unpacked(start, stop)
        limit = self.layout.file_rows
        number, first = divmod(start, limit)
        if self._files.is_local and stop <= (number + 1) * limit:
            return self._map(number)[1][first : first + stop - start]
        rows = np.empty((stop - start, *self._spec.shape), self._spec.storage_dtype)
        self.copy(start, rows, mapped=True)
        return rows

    def copy(self, start: int, out: NDArray[Any], *, mapped: bool) -> None:
        """Fill `out` [t, *shape] with the rows from `start` on, which are not compressed.

        Args:
            start: Row number.
            out: As many rows as are wanted.
            mapped: Through the memory map, or by reading the file past it.
        """
        limit = self.layout.file_rows
        done = 0
        while done < len(out):
            number, first = divmod(start + done, limit)
            piece = out[done : done + limit - first]
            if mapped and self._files.is_local:
                piece[:] = self._map(number)[1][first : first + len(piece)]
            else:
                name = value_file_name(self._spec, number)
                flat = piece.reshape(-1).view(np.uint8)
                self._files.read_into(name, first * self._spec.row_bytes, flat)
            done += len(piece)

    def prefetch(self, start: int, count: int) -> None:
        """Ask the kernel to load rows that will soon be read through the map."""
        if not self._files.is_local or not self.can_be_mapped:
            return
        limit = self.layout.file_rows
        for number in range(start // limit, (start + count - 1) // limit + 1):
            mapped, _ = self._map(number)
            first = max(0, start - number * limit) * self._spec.row_bytes
            last = min(limit, start + count - number * limit) * self._spec.row_bytes
            aligned = first - first % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, aligned, last - aligned)

    def unmap(self, number: int) -> None:
        """Let go of a value file; it is mapped again when it is read again."""
        self._maps.pop(number, None)

    def _map(self, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        """The memory map of a value file, and its rows in it, which are read-only."""
        found = self._maps.get(number)
        if found is not None:
            return found
        spec = self._spec
        rows = min(self.layout.file_rows, self._rows - number * self.layout.file_rows)
        name = value_file_name(spec, number)
        length = self._files.length(name)
        if rows < 1 or length < rows * spec.row_bytes:
            raise DamagedShardError(
                f"{self._files.path(name)} has {length} bytes: too few for {rows} rows"
            )
        mapped = self._files.map(name)
        flat = np.frombuffer(mapped, spec.storage_dtype, rows * math.prod(spec.shape))
        flat.flags.writeable = False
        made = self._maps[number] = (mapped, flat.reshape(rows, *spec.shape))
        _MAPPED.add(self, number)
        return made

    def _unpacked(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of the inner chunks that hold them.

        zarr-python would do it too; but it follows links, and allocates what a chunk says of its
        own length, and banks come from strangers.
        """
        from numcodecs import zstd

        step = self.layout.chunk_rows
        first, last = start // step, -(-stop // step)
        places = [self._packed_place(number) for number in range(first, last)]
        rows = np.zeros(((last - first) * step, *self._spec.shape), self._spec.storage_dtype)
        for number, (name, offset, length) in enumerate(places):
            packed = self._files.range(name, offset, length)
            chunk = rows[number * step : (number + 1) * step].reshape(-1).view(np.uint8)
            try:
                zstd.decompress(packed, chunk)
            except (ValueError, RuntimeError) as error:  # what zstd says of damaged bytes
                raise DamagedShardError(
                    f"{self._files.folder}: rows {start} to {stop} cannot be unpacked: {error}"
                ) from error
        return rows[start - first * step : stop - first * step]

    def _packed_place(self, number: int) -> tuple[str, int, int]:
        """Where a compressed inner chunk lies: its file, its offset and its length there."""
        file, place = divmod(number, self.layout.file_rows // self.layout.chunk_rows)
        table = self._packed_table(file)
        offset, length = table[place].tolist()
        before = int(table[:place].sum(axis=0)[1])
        name = value_file_name(self._spec, file)
        if offset != before or length > self._files.length(name) - offset:
            path = self._files.path(name)
            raise DamagedShardError(f"{path}: its chunk {place} is not where it should be")
        return name, offset, length

    def _packed_table(self, file: int) -> NDArray[np.uint64]:
        """[chunks, 2]: offset and length of each inner chunk of a value file."""
        if file not in self._tables:
            name = value_file_name(self._spec, file)
            count = self.layout.file_rows // self.layout.chunk_rows
            start = self._files.length(name) - 16 * count - 4
            if start < 0:
                path = self._files.path(name)
                raise DamagedShardError(f"{path} is too short for a table of {count} chunks")
            table = self._files.range(name, start, 16 * count)
            self._tables[file] = np.frombuffer(table, "<u8").reshape(count, 2)
        return self._tables[file]
