"""The files of one committed shard: none is read that has another length than was committed."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.checksums import crc32c
from vqbank.store.commits import CommittedFile
from vqbank.store.errors import DamagedShardError, naming
from vqbank.store.files import content, inside, opened


class ShardFiles:
    """What the commit record of a shard names, by its name there, such as `values/c/0/0`."""

    def __init__(self, root: Path, folder: Path, committed: Mapping[str, CommittedFile]) -> None:
        """Look at nothing yet.

        Args:
            root: The bank.
            folder: The shard's.
            committed: Length and checksum of every file, from the commit record.
        """
        self.root = root
        self.folder = folder
        self.committed = committed
        self.is_local = isinstance(folder, Path)

    def path(self, name: str) -> Path:
        """The path of a file, whose length is still what was committed.

        Raises:
            DamagedShardError: if it is missing, of another length or reached by a link.
        """
        path = inside(self.root, self.folder / name)
        expected = self.committed[name]["bytes"] if name in self.committed else None
        try:
            length = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedShardError(f"{path} is missing, though it was committed") from error
        except OSError as error:
            raise DamagedShardError(f"{path} cannot be read ({error.strerror})") from error
        if length != expected:
            raise DamagedShardError(f"{path} has {length} bytes, {expected} were committed")
        return path

    def length(self, name: str) -> int:
        """How many bytes of a file were committed; 0 for a file that was not."""
        return self.committed[name]["bytes"] if name in self.committed else 0

    def array(self, name: str, dtype: np.dtype[Any], count: int | None = None) -> NDArray[Any]:
        """All numbers of an array that lies in one chunk, compared with its checksum.

        Args:
            name: Of the array.
            dtype: Of its numbers.
            count: How many there are, where that is known.

        Raises:
            DamagedShardError: if they are not what was committed.
        """
        file = next((file for file in self.committed if file.startswith(f"{name}/c/")), None)
        if file is None:
            raise DamagedShardError(f"{self.folder}: its commit record names no array {name}")
        entry = self.committed[file]
        if count is not None and entry["bytes"] != count * dtype.itemsize:
            raise DamagedShardError(
                f"{self.folder / file} has {entry['bytes']} bytes, where {count} numbers of "
                f"{dtype.itemsize} bytes belong"
            )
        stored = content(self.root, self.path(file), limit=None)
        if crc32c(stored) != entry["crc32c"]:
            raise DamagedShardError(f"{self.folder / file} has changed since it was committed")
        return np.frombuffer(stored, dtype)

    def range(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of a file, unchecked.

        Raises:
            DamagedShardError: if there are fewer.
        """
        path = self.path(name)
        if self.is_local:
            with opened(self.root, path) as file, naming(path):
                file.seek(start)
                found: bytes = file.read(length)
        else:
            remote: Any = path
            found = remote.fs.cat_file(remote.path, start=start, end=start + length)
        if len(found) != length:
            raise DamagedShardError(f"{path} ended early")
        return found

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes of a file from `start` on, unchecked.

        Raises:
            DamagedShardError: if there are fewer.
        """
        if not self.is_local:
            out[:] = np.frombuffer(self.range(name, start, out.nbytes), np.uint8)
            return
        path = self.path(name)
        with opened(self.root, path) as file, naming(path):
            file.seek(start)
            got = file.readinto(out.data)
        if got != out.nbytes:
            raise DamagedShardError(f"{path} ended early")

    def map(self, name: str) -> mmap.mmap:
        """A private memory map of a file: nothing that is written to it reaches the file.

        Heads lend its memory to torch, which has no read-only tensors.
        """
        path = self.path(name)
        with naming(path), opened(self.root, path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
