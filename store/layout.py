"""How the bytes of a shard lie: what its writer and its readers must agree on.

`docs/store-format.md` describes every byte.
"""

from dataclasses import dataclass

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from vqbank.store.records import Count
from vqbank.store.schema import FeatureSpec, Fingerprint

FILE_BYTES = 128 * 2**20
"""A value file holds at most this much, unless one row is larger."""
CHUNK_BYTES = (64 * 2**10, 2**20)
"""Inner chunks lie between these, about 64 rows each; only generic Zarr readers see them."""
INDEX_COLUMNS = ("row_start", "row_count", "id_start", "id_bytes", "record_start", "record_bytes")
"""First columns of a shard's index; a checksum for each of `array_names` follows."""
COMPRESSED_DTYPES = ("uint8", "int16")
"""Pixels and residuals shrink; activations do not (1.0 to 1.3 times), and lose the memory map."""


ROW_NUMBERS = "row numbers"
"""What `VideoFacts.times` says of imported rows that came without times."""


@with_config(ConfigDict(extra="allow", strict=True))
class VideoFacts(TypedDict, total=False):
    """What stands in a shard of a video beside its rows: JSON values, each where it is known.

    Extraction writes what `extractors.video.Probe.record` says, of which the first five are read
    again, and then `shortfall`.  Who imports has seen no video, and writes the others.
    """

    frames: Count
    """Frames that the file presents."""
    header_frames: Count
    """Frames according to the header; 0 where it says nothing."""
    video_streams: Count
    """Video streams of the file, of which one was read."""
    width: Count
    """Pixels, as displayed."""
    height: Count
    """Pixels, as displayed."""
    shortfall: Count
    """Frames that decoding gave less than was announced; the last one stands for them."""
    times: str
    """ROW_NUMBERS where `pts_seconds` and `frame_index` are row numbers and no times."""
    row_of_file: Count
    """The row of the imported matrix, from 0."""
    filled_columns: list[Count]
    """Columns, from 0, that had no finite value in a row and hold the mean over the file there."""
    dropped_rows: Count
    """Rows of the imported file that were left out, as no value of theirs was finite."""


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """What a shard knows of one of its videos."""

    id: str
    row_start: int
    row_count: int
    crc32c: tuple[int, ...]
    """Checksums of the video's bytes in each array, in the order of `array_names`."""
    fingerprint: Fingerprint
    probe: VideoFacts
    """What was learnt before and while decoding, or what an import says of the rows."""

    @property
    def has_times(self) -> bool:
        """Whether times and frames of its rows are known; imports may have row numbers."""
        return self.probe.get("times") != ROW_NUMBERS


def array_names(spec: FeatureSpec) -> tuple[str, ...]:
    """The arrays with one entry per row, in the order of the index's checksums."""
    return ("values", "pts_seconds", "frame_index", *(f"side/{side.name}" for side in spec.side))


def value_file_name(spec: FeatureSpec, number: int) -> str:
    """The name of value file `number` in its shard: that of a chunk of a Zarr array."""
    return "/".join(["values", "c", str(number), *("0" for _ in spec.shape)])


def rows_per_chunk(row_bytes: int) -> int:
    """Rows of an inner chunk: 64 rows rounded up to a power of two in bytes, within CHUNK_BYTES."""
    smallest, largest = CHUNK_BYTES
    wanted = 1 << max(0, 64 * row_bytes - 1).bit_length()
    return max(1, min(max(wanted, smallest), largest) // max(1, row_bytes))


def rows_per_file(row_bytes: int) -> int:
    """Rows of a full value file: a multiple of `rows_per_chunk`."""
    chunk = rows_per_chunk(row_bytes)
    return max(1, FILE_BYTES // max(1, row_bytes) // chunk) * chunk
