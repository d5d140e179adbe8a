"""MATLAB files of version 5, looked through before SciPy reads them.

SciPy believes what a file says: it makes room for as many characters, cells and structs as are
declared, and follows nesting without end.  So the declarations are compared with the bytes first.
The format: MathWorks, "MAT-File Format", chapter 1.
"""

import io
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

import scipy.io

from vqbank.store.errors import VqbankError, in_words
from vqbank.store.hdf5 import FREE_BYTES, MOST_GROWTH

HEADER_BYTES = 128
_COMPRESSED = 15
_MATRIX = 14
_INT32, _UINT32 = 5, 6
_COMPLEX = 0x800
_DATA = frozenset([1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18])
"""Types of numbers and of text; SciPy takes any other number for an address."""
_CELLS, _STRUCT, _OBJECT, _SPARSE, _FUNCTION, _OPAQUE = 1, 2, 3, 5, 16, 17
_WITH_MATRICES = (_CELLS, _STRUCT, _OBJECT, _FUNCTION, _OPAQUE)
MOST_DEPTH = 16
"""How deep cells and structs may lie in each other; label files have three levels."""
MOST_AXES = 32
MOST_FIELD_CHARACTERS = 1024
MOST_MATRICES = 2_000_000
"""The most matrices of a file: a cell for each of 150,000 videos, in a dozen variables."""


class _Unsound(Exception):
    """Why."""


def variables(path: Path, content: bytes | mmap.mmap, error: type[VqbankError]) -> dict[str, Any]:
    """The variables of a file by name, as SciPy gives them.

    Args:
        path: for messages.
        content: of the file; a map of it is not closed here, as errors may hold parts of it.
        error: the class of errors.

    Raises:
        VqbankError: of this class, if the file is cut off or damaged (with the byte at which the
            variable begins), declares more than its bytes hold, or would unfold to much more.
    """
    view = memoryview(content)
    if len(view) < HEADER_BYTES:
        raise error(f"{path} is cut off: it has {len(view)} bytes, less than a header")
    order = "<" if bytes(view[126:128]) == b"IM" else ">"
    left = [MOST_MATRICES]
    unfolded = 0
    place = HEADER_BYTES
    while place < len(view):
        head = bytes(view[place : place + 8])
        kind, length = struct.unpack(f"{order}II", head) if len(head) == 8 else (0, len(view))
        body = view[place + 8 : place + 8 + length]
        if len(head) < 8 or len(body) < length:
            raise error(
                f"{path} is cut off: it has {len(view)} bytes, and the variable at byte {place} "
                "goes on after them"
            )
        try:
            if kind == _COMPRESSED:
                inner = _unpacked(body, max(FREE_BYTES, MOST_GROWTH * len(view)) - unfolded)
                unfolded += len(inner)
                inner_kind, inner_length, start, _ = _element(inner, 0, order)
                if inner_kind == _MATRIX:
                    _check(inner[start : start + inner_length], order, MOST_DEPTH, left)
            elif kind == _MATRIX:
                _check(body, order, MOST_DEPTH, left)
                length += -length % 8
            else:
                raise _Unsound(f"it is of type {kind}, and no array")
        except (_Unsound, struct.error) as problem:
            raise error(f"{path} is damaged in the variable at byte {place}: {problem}") from None
        except zlib.error as problem:
            raise error(f"{path} is damaged at byte {place}: {problem}") from problem
        place += 8 + length
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        return dict(scipy.io.loadmat(stream, chars_as_strings=True))
    except MemoryError as problem:
        raise error(f"{path} asks for more memory than there is; it may be damaged") from problem
    except Exception as problem:  # SciPy's reader raises whatever damaged bytes lead it to
        raise error(f"{path} is a damaged MATLAB 5 file: {in_words(problem)}") from problem


def _unpacked(body: memoryview, most_bytes: int) -> memoryview:
    unpack = zlib.decompressobj()
    inner = unpack.decompress(body, max(1, most_bytes))
    if not unpack.eof and (unpack.unconsumed_tail or len(inner) >= most_bytes):
        raise _Unsound(f"it would unfold from {len(body):,} bytes to more than {most_bytes:,}")
    if not unpack.eof:
        raise _Unsound("it is cut off")
    return memoryview(inner)


def _element(view: memoryview, place: int, order: str) -> tuple[int, int, int, int]:
    """Type and length of a data element, where its data begin and where the next one stands."""
    word, length = struct.unpack_from(f"{order}II", view, place)
    if word >> 16:  # a small element: both in one word, and up to four bytes in the next
        kind, length = word & 0xFFFF, word >> 16
        if length > 4:
            raise _Unsound(f"a small element of {length} bytes")
        return kind, length, place + 4, place + 8
    start = place + 8
    if start + length > len(view):
        raise _Unsound(f"an element of {length} bytes where {len(view) - start} are left")
    return word, length, start, start + length + -length % 8


def _check(view: memoryview, order: str, depth: int, left: list[int]) -> None:
    """Compare what an array says of itself with its bytes."""
    left[0] -= 1
    if left[0] < 0:
        raise _Unsound(f"more than {MOST_MATRICES:,} arrays")
    if depth == 0:
        raise _Unsound(f"arrays nested more than {MOST_DEPTH} deep")
    if len(view) == 0:  # an empty cell
        return
    inner, length, start, place = _element(view, 0, order)
    if (inner, length) != (_UINT32, 8):
        raise _Unsound("an array without flags")
    (flags,) = struct.unpack_from(f"{order}I", view, start)
    kind = flags & 0xFF
    if not 0 < kind <= _OPAQUE:
        raise _Unsound(f"an array of class {kind}")
    count = 1
    if kind != _OPAQUE:
        inner, length, start, place = _element(view, place, order)
        if inner != _INT32 or length % 4 or not 2 <= length // 4 <= MOST_AXES:
            raise _Unsound(f"an array with a shape of {length} bytes")
        shape = struct.unpack_from(f"{order}{length // 4}i", view, start)
        for size in shape:
            count *= size
        room = len(view) - place
        least = 8 if kind == _CELLS else 1  # even an empty cell has a head
        if min(shape, default=0) < 0 or (kind != _SPARSE and count * least > room):
            raise _Unsound(f"an array of {' x '.join(map(str, shape))} in {room} bytes")
    parts: list[tuple[int, int, int]] = []
    while place + 8 <= len(view):
        inner, length, start, place = _element(view, place, order)
        if inner == _MATRIX and kind in _WITH_MATRICES:
            _check(view[start : start + length], order, depth - 1, left)
        elif inner not in _DATA:
            raise _Unsound(f"an array with data of type {inner}")
        parts.append((inner, length, start))
    wanted = _parts(view, order, kind, count, parts, is_complex=bool(flags & _COMPLEX))
    if [inner == _MATRIX for inner, _, _ in parts] != wanted:
        raise _Unsound(f"an array of class {kind} with other parts than it should have")


def _parts(
    view: memoryview,
    order: str,
    kind: int,
    count: int,
    parts: list[tuple[int, int, int]],
    *,
    is_complex: bool,
) -> list[bool]:
    """For each part that an array should have, whether that is an array itself.

    SciPy reads on, into whatever follows, where one is lacking.
    """
    if kind in (_STRUCT, _OBJECT):
        texts = 3 if kind == _STRUCT else 4  # the name, of an object the class, then two of fields
        if len(parts) < texts:
            return [False] * texts
        _, length, start = parts[texts - 2]
        (characters,) = struct.unpack_from(f"{order}i", view, start) if length == 4 else (0,)
        if not 0 < characters <= MOST_FIELD_CHARACTERS:
            raise _Unsound(f"a struct with names of {characters} characters")
        fields = parts[texts - 1][1] // characters
        return [False] * texts + [True] * (min(count * fields, len(parts)))
    if kind == _CELLS:
        return [False] + [True] * count
    if kind == _FUNCTION:
        return [False, True]
    if kind == _OPAQUE:
        return [False] * 3 + [True] * (len(parts) - 3)
    return [False] * (1 + (3 if kind == _SPARSE else 1) + is_complex)
