"""The nouns: a video, the identity of a feature, a feature.

Shape letters, the same everywhere: n videos, t rows of one video, f frames of a clip, b clips in a
batch, d width, h w pixels.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.errors import InvalidFeatureError, unknown_name
from vqbank.store.ordinary import open_ordinary

StoredDtype = Literal["float16", "float32", "bfloat16", "uint8", "int16", "int32"]
Part = str
"""`train`, `validation`, `test`, or `test-NAME`: a further test part of a data set, which is a test
set of its own, such as LSVQ's `test-1080p`."""
PARTS = ("train", "validation", "test", "test-NAME")
"""For messages."""
FURTHER_TEST = "test-"

FINGERPRINT_BLOCKS = 8
FINGERPRINT_BLOCK_BYTES = 16 * 1024
KEY_DIGITS = 12
AXES = 16
ROW_BYTES = 2**28
"""The most bytes of one row in one array: a clip of 32 frames of 1920 x 1080 as u8 has 190 MiB."""


def is_part(text: str) -> bool:
    """Whether a part of a data set may be called so."""
    return bool(re.fullmatch(r"train|validation|test|test-[\w.+-]{1,64}", text))


@dataclass(frozen=True, slots=True)
class Video:
    """One row of a manifest."""

    id: str
    """`dataset/relative-path`; unique, and what features are kept under."""
    path: Path
    mos: float | None = None
    """Mean opinion score on the data set's own scale; None where it is not known."""
    scene: str | None = None
    """Videos of one scene never stand on two sides of a split."""
    part: Part | None = None
    """The official part of the data set, where it has one."""
    std: float | None = None
    """Standard deviation of the ratings behind `mos`."""
    n_ratings: int | None = None
    """How many people rated the video."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which file a feature was made from."""

    length: int
    """Length of the file in bytes."""
    sha256: str
    """SHA-256 of the length and 8 blocks of 16 KiB from first to last: 128 KiB of any file."""

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """The fingerprint of the file at `path`.

        Raises:
            OSError: if the file cannot be read.
        """
        with open_ordinary(path) as file:
            length = file.seek(0, 2)
            digest = hashlib.sha256(str(length).encode())
            last = max(0, length - FINGERPRINT_BLOCK_BYTES)
            for block in range(FINGERPRINT_BLOCKS):
                file.seek(last * block // (FINGERPRINT_BLOCKS - 1))
                digest.update(file.read(FINGERPRINT_BLOCK_BYTES))
        return cls(length, digest.hexdigest())


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


@dataclass(frozen=True, slots=True)
class SideSpec:
    """A further array with one entry per row, such as the offsets of fragments."""

    name: str
    shape: tuple[int, ...]
    dtype: StoredDtype


_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NAME = re.compile(rf"{_PLAIN.pattern}\.{_PLAIN.pattern}")


@dataclass(frozen=True)
class FeatureSpec:
    """The identity of one output of one extractor: everything that changes its numbers."""

    name: str
    """`extractor.output`, lower case."""
    shape: tuple[int, ...]
    """The shape of one row."""
    stored_dtype: StoredDtype
    identity: Mapping[str, Any]
    """Extractor parameters, its version, weights sha256, decoder: JSON values only."""
    side: tuple[SideSpec, ...] = ()
    publisher: str = ""
    """Who published the weights.  Like the next two, not part of the key."""
    licence: str = ""
    trained_on: tuple[str, ...] = ()
    """Data sets that the weights have seen."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidFeatureError(
                f"feature name {self.name!r} is not of the form extractor.output "
                "in lower-case letters, digits, '-' and '_'"
            )
        for dtype in (self.stored_dtype, *(side.dtype for side in self.side)):
            if dtype not in get_args(StoredDtype):
                raise InvalidFeatureError(
                    f"{self.name}: {unknown_name('stored dtype', dtype, get_args(StoredDtype))}"
                )
        for shape, dtype in (
            (self.shape, self.stored_dtype),
            *((side.shape, side.dtype) for side in self.side),
        ):
            size = math.prod(shape) * storage_dtype(dtype).itemsize
            if len(shape) > AXES or any(axis < 0 for axis in shape) or size > ROW_BYTES:
                raise InvalidFeatureError(
                    f"{self.name}: a row of shape {_few(shape)} in {dtype}; a row has at most "
                    f"{AXES} axes and {ROW_BYTES} bytes"
                )
        for side in self.side:  # side names become folders
            if not _PLAIN.fullmatch(side.name):
                raise InvalidFeatureError(
                    f"{self.name}: side array {side.name!r} is not a name in lower-case letters, "
                    "digits, '-' and '_'"
                )
        canonical_json(dict(self.identity))  # a value that JSON cannot hold has no stable key

    @cached_property
    def key(self) -> str:
        """`name@hash`: equal keys mean equal numbers."""
        hashed = {
            "name": self.name,
            "shape": list(self.shape),
            "stored_dtype": self.stored_dtype,
            "identity": dict(self.identity),
            "side": [[side.name, list(side.shape), side.dtype] for side in self.side],
        }
        digest = hashlib.sha256(canonical_json(hashed).encode()).hexdigest()
        return f"{self.name}@{digest[:KEY_DIGITS]}"

    @property
    def uses_random_weights(self) -> bool:
        """Whether these numbers come from weights that nobody trained."""
        return str(self.identity.get("weights")).startswith("random")

    @property
    def row_bytes(self) -> int:
        """Size of one stored row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.storage_dtype.itemsize

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype on disk, little-endian; bfloat16 is kept as its uint16 bits."""
        return storage_dtype(self.stored_dtype)

    def to_json(self) -> str:
        """What stands in `spec.json`: the same bytes from every writer."""
        return canonical_json(
            {
                "name": self.name,
                "shape": list(self.shape),
                "stored_dtype": self.stored_dtype,
                "identity": dict(self.identity),
                "side": [[side.name, list(side.shape), side.dtype] for side in self.side],
                "publisher": self.publisher,
                "licence": self.licence,
                "trained_on": list(self.trained_on),
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "FeatureSpec":
        """The spec that `to_json` wrote.

        Raises:
            ValueError: if the text is no such JSON; a `pydantic.ValidationError` names the field.
            RecursionError: if it is nested too deeply.
        """
        read = _SPEC.validate_python(json.loads(text), strict=True)
        side = [_SIDE.validate_python(tuple(entry), strict=True) for entry in read["side"]]
        return cls(
            name=read["name"],
            shape=tuple(read["shape"]),
            stored_dtype=read["stored_dtype"],
            identity=read["identity"],
            side=tuple(SideSpec(n, tuple(s), d) for n, s, d in side),
            publisher=read["publisher"],
            licence=read["licence"],
            trained_on=tuple(read["trained_on"]),
        )

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpec) and self.key == other.key


Axis = Annotated[int, Field(ge=0, lt=2**31)]


class _Spec(TypedDict):
    """What stands in `spec.json`."""

    name: str
    shape: list[Axis]
    stored_dtype: str
    identity: dict[str, Any]
    side: list[Annotated[list[Any], Field(min_length=3, max_length=3)]]
    publisher: str
    licence: str
    trained_on: list[str]


_SPEC: TypeAdapter[Any] = TypeAdapter(_Spec)
_SIDE: TypeAdapter[Any] = TypeAdapter(tuple[str, list[Axis], str])


def _few(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= AXES else f"({shape[0]}, ... {len(shape)} axes)"


def storage_dtype(stored: StoredDtype) -> np.dtype[Any]:
    """The little-endian NumPy dtype in which `stored` lies on disk."""
    return np.dtype("uint16" if stored == "bfloat16" else stored).newbyteorder("<")


@dataclass(frozen=True, eq=False)
class Feature:
    """One output for one video: rows in the order of sampling, mostly that of time."""

    values: NDArray[Any]
    """[t, *shape]: the rows, finite."""
    pts_seconds: NDArray[np.float64]
    """[t]: presentation time of the first frame of each row's clip."""
    frame_index: NDArray[np.int64]
    """[t]: index, in presentation order, of that frame."""
    side: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Further arrays [t, ...] by name."""

    def __post_init__(self) -> None:
        rows = len(self.values)
        if rows == 0:
            raise InvalidFeatureError("feature has no rows")
        lengths = {
            "pts_seconds": len(self.pts_seconds),
            "frame_index": len(self.frame_index),
            **{name: len(array) for name, array in self.side.items()},
        }
        for name, length in lengths.items():
            if length != rows:
                raise InvalidFeatureError(f"{name} has {length} entries for {rows} rows")
        if self.values.dtype.kind == "f":
            finite = _finite_rows(self.values)
            if not finite.all():
                row = int(np.argmin(finite))
                raise InvalidFeatureError(
                    f"row {row} (frame {self.frame_index[row]}, "
                    f"{self.pts_seconds[row]:.3f} s) is not finite"
                )


def to_stored(values: NDArray[Any], dtype: StoredDtype) -> NDArray[Any]:
    """Cast finite rows to how they are stored.

    Raises:
        InvalidFeatureError: where a finite number became infinite, an integer did not fit, or
            float16 would lose more than 2^-11 of a row's largest value; names the row and what to
            do.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
        rounded = (
            bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
        )  # to nearest, ties to even
        stored = (rounded >> np.uint64(16)).astype("<u2")
        _refuse_overflow(values, from_stored(stored, dtype), dtype)
        return stored
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, storage_dtype(dtype))
        if stored.dtype != values.dtype:  # a Feature's own values are finite
            _refuse_overflow(values, stored, dtype)
            if dtype == "float16":
                _refuse_underflow(values, stored)
        return stored
    if values.dtype.kind == "f" and not np.array_equal(values, np.trunc(values)):
        raise InvalidFeatureError(f"values that are not whole numbers do not fit {dtype}")
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise InvalidFeatureError(
            f"values from {values.min()} to {values.max()} do not fit {dtype} "
            f"({limits.min} to {limits.max})"
        )
    return np.ascontiguousarray(values, storage_dtype(dtype))


def _finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """[t]: whether each row is finite."""
    rows = values.reshape(len(values), -1)
    if rows.dtype != np.float16 or not rows.size:
        return np.isfinite(rows).all(axis=1)
    # NumPy looks at each half on its own; its bits say the same at once, 10 times quicker.
    bits = np.ascontiguousarray(rows).view(np.uint16)
    finite: NDArray[np.bool_] = (bits & 0x7FFF).max(axis=1) < 0x7C00
    return finite


def _refuse_overflow(values: NDArray[Any], stored: NDArray[Any], dtype: StoredDtype) -> None:
    finite = _finite_rows(stored)
    if not finite.all():
        row = int(np.argmin(finite))
        largest = float(np.abs(values[row]).max())
        raise InvalidFeatureError(
            f"row {row} holds {largest:g}, too large for {dtype}; "
            "set stored_dtype: float32 for this extractor"
        )


def _refuse_underflow(values: NDArray[Any], stored: NDArray[np.float16]) -> None:
    """Below 2^-14 a half loses bits; a row with a larger value errs by at most 2^-11 of it.

    So the error of every row that is kept is known without computing it.
    """
    if not stored.size:
        return
    largest = (stored.reshape(len(stored), -1).view(np.uint16) & 0x7FFF).max(axis=1)
    for row in np.flatnonzero(largest < 0x0400):  # exponent bits all zero
        if np.any(values[row]):
            raise InvalidFeatureError(
                f"row {row} holds nothing above {float(np.abs(values[row]).max()):g}, too small "
                "for float16; set stored_dtype: float32 for this extractor"
            )


def from_stored(stored: NDArray[Any], dtype: StoredDtype) -> NDArray[Any]:
    """What heads compute with: bfloat16 bits become float32, all else stays as stored."""
    if dtype != "bfloat16":
        return stored
    return (stored.astype("<u4") << np.uint32(16)).view("<f4")
