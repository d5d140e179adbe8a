"""HDF5 files of others, read within bounds and never beyond the file itself.

An HDF5 file may name other files of the machine that it is read on (external storage, external
links, virtual data sets), declare terabytes that it does not hold, and link its parts in circles.
Everything that reads one does it through here.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import VqbankError
from vqbank.store.ordinary import open_ordinary

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FREE_BYTES = 2**26
"""The bytes that a file may unfold to, however short it is: fill values take no room in it."""
MOST_GROWTH = 20
"""How many times its length a longer file may unfold to.  Features in MATLAB's files of version 7.3
unfold less than twice."""
_HEAP = b"GCOL\x01"
_HEAP_HEAD_BYTES = 16
MOST_ENTRIES = 10_000
"""The most entries of all groups that are looked into; circles have no end."""


class Hdf5File:
    """An open file, which counts what was read of it.

    Whatever damaged bytes lead h5py to, it raises; who reads says which file is damaged.
    """

    def __init__(
        self, file: h5py.File, name: object, size_bytes: int, error: type[VqbankError]
    ) -> None:
        self.file = file
        self.name = name
        self._size_bytes = size_bytes
        self._error = error
        self._left_bytes = max(FREE_BYTES, MOST_GROWTH * size_bytes)
        self._left_entries = MOST_ENTRIES

    def entries(self, group: h5py.Group) -> Iterator[tuple[str, Any]]:
        """Names and objects of a group.

        Raises:
            VqbankError: as `entry`, or if all groups together have more than `MOST_ENTRIES`.
        """
        for name in group:
            self._left_entries -= 1
            if self._left_entries < 0:
                raise self._error(
                    f"{self.name} has more than {MOST_ENTRIES:,} entries, or groups that hold "
                    "themselves"
                )
            yield name, self.entry(group, name)

    def entry(self, group: h5py.Group, path: str) -> Any:
        """What a group has under a name, or names with `/` between them; itself, not elsewhere.

        Raises:
            VqbankError: if it is a link, lies in another file, or declares more than the file can
                hold.
            KeyError: if there is no such entry.
        """
        found: Any = group
        for name in path.split("/"):
            link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
            if isinstance(link, h5py.ExternalLink):
                raise self._error(
                    f"{self.name}: {path} is an external link, to {link.path!r} of another file, "
                    f"{link.filename!r}; no other file is read"
                )
            if isinstance(link, h5py.SoftLink):
                raise self._error(f"{self.name}: {path} is a symbolic link; none is followed")
            found = found[name]
        return self._own(found)

    def at(self, reference: Any) -> Any:
        """What a reference leads to.

        Raises:
            VqbankError: as `entry`.
            ValueError: if it leads nowhere.
        """
        return self._own(self.file[reference])

    def array(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """All of a data set of numbers or references.

        Raises:
            VqbankError: if the file would unfold to more than it may.
        """
        self._count(dataset.name, _bytes(dataset.shape or (), dataset.dtype.itemsize))
        return np.asarray(dataset[()])

    def texts(self, dataset: h5py.Dataset) -> list[str]:
        """All of a one-dimensional data set of UTF-8.

        Raises:
            VqbankError: as `array`: several texts may be the same bytes of the file.
        """
        found: list[str] = []
        # A text is no longer than the file, so that no more is read at a time than may be.
        step = max(1, min(4096, FREE_BYTES // max(1, self._size_bytes)))
        length = 0
        for start in range(0, len(dataset), step):
            some = dataset.asstr()[start : start + step].tolist()
            length += sum(map(len, some))
            if length > self._size_bytes:
                raise self._error(
                    f"{self.name}: the texts of {dataset.name} are longer than the file"
                )
            found += some
        return found

    def attribute(self, item: Any, name: str) -> Any:
        """An attribute; None where there is none.

        Raises:
            VqbankError: if it is longer than the file.
        """
        if name not in item.attrs:
            return None
        identity = item.attrs.get_id(name)
        if _bytes(identity.shape or (), identity.dtype.itemsize) > self._size_bytes:
            raise self._error(f"{self.name}: the attribute {name} is longer than the file")
        return item.attrs[name]

    def _own(self, item: Any) -> Any:
        if not isinstance(item, h5py.Dataset):
            return item
        if item.external:
            other = ", ".join(repr(name) for name, _, _ in item.external)
            raise self._error(
                f"{self.name}: {item.name} has external storage: its values lie in another file, "
                f"{other}, and no other file is read"
            )
        if item.is_virtual:
            raise self._error(
                f"{self.name}: {item.name} is a virtual data set: its values lie in other data "
                "sets or files, and no other file is read"
            )
        stored = item.id.get_storage_size()
        if stored > self._size_bytes:
            raise self._error(
                f"{self.name}: {item.name} should take {stored:,} bytes, and the file has "
                f"{self._size_bytes:,}; it is cut off or damaged"
            )
        itemsize = item.dtype.itemsize
        declared = max(_bytes(item.shape or (), itemsize), _bytes(item.chunks or (), itemsize))
        if declared > max(FREE_BYTES, MOST_GROWTH * stored):
            raise self._error(
                f"{self.name}: {item.name} would unfold from {stored:,} bytes to {declared:,}; "
                "no feature does, so it is not read"
            )
        return item

    def _count(self, what: str, count: int) -> None:
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise self._error(
                f"{self.name} ({self._size_bytes:,} bytes) would unfold to more than "
                f"{max(FREE_BYTES, MOST_GROWTH * self._size_bytes):,} bytes, at {what}"
            )


def is_hdf5(start: bytes) -> bool:
    """Whether a file that begins so is HDF5, perhaps behind a block of the user's."""
    return any(start[at : at + 8] == SIGNATURE for at in (0, 512, 1024, 2048))


@contextmanager
def open_hdf5(
    path: Path, error: type[VqbankError], content: bytes | None = None
) -> Iterator[Hdf5File]:
    """Open a file for reading.

    Args:
        path: of the file.
        error: the class of errors for what is refused.
        content: of the file, where it was read already.

    Raises:
        VqbankError: of this class, if HDF5's own library would never come back from the file.
    """
    size_bytes = path.stat().st_size if content is None else len(content)
    _refuse_endless_heaps(path, error, content)
    with h5py.File(path if content is None else BytesIO(content), "r") as file:
        yield Hdf5File(file, path, size_bytes, error)


def _refuse_endless_heaps(path: Path, error: type[VqbankError], content: bytes | None) -> None:
    """Look through the heaps that hold texts: a part of no length is one that the library repeats.

    (HDF5 2.0.0, H5HG__cache_heap_deserialize; the layout is that of its file format, III.E.)
    """
    file: bytes | mmap.mmap | None = content
    if file is None:
        with open_ordinary(path) as opened:
            file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    start = file.find(_HEAP)
    while start >= 0:
        head = file[start : start + _HEAP_HEAD_BYTES]
        stop = start + int.from_bytes(head[8:], "little")
        place = start + _HEAP_HEAD_BYTES
        while place + _HEAP_HEAD_BYTES <= stop <= len(file):
            index = int.from_bytes(file[place : place + 2], "little")
            length = int.from_bytes(file[place + 8 : place + 16], "little")
            step = _HEAP_HEAD_BYTES + length + -length % 8 if index else length
            if step == 0:
                raise error(f"{path} is damaged: its heap at byte {start} has no end")
            place += step
        start = file.find(_HEAP, start + 1)


def _bytes(shape: tuple[int, ...], itemsize: int) -> int:
    count = itemsize
    for length in shape:
        count *= int(length)
    return count
