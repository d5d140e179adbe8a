"""Where every video of a feature lies: derived from the commit records, and thrown away at will.

A catalogue is kept beside the commits so that a large bank opens at once.  It names the records
that it was made from; where those are not the ones that are there, it is made anew.
"""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.commits import ShardId, bad_videos, record_names, superseded_videos
from vqbank.store.errors import DamagedShardError
from vqbank.store.files import content, unfinished
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard import committed_shards

FILE = "catalogue.npz"
MOST_BYTES = 256 * 2**20
"""The longest catalogue that is read: some millions of videos.  A longer one is made anew."""
WORTH_KEEPING = 256
"""Videos below which making a catalogue is quicker than reading one."""


class _Text(TypedDict):
    records: list[str]
    shards: list[ShardId]


_TEXT: TypeAdapter[Any] = TypeAdapter(_Text)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The winning rows of every video."""

    shards: tuple[str, ...]
    _hashes: NDArray[np.uint64]
    """[n]: hashes of the ids, increasing."""
    _shard: NDArray[np.int32]
    """[n]: number of the video's shard in `shards`."""
    _place: NDArray[np.int32]
    """[n]: place of the video in its shard."""
    _id_start: NDArray[np.int64]
    """[n + 1]: where each id begins in `_ids`, and where the last one ends."""
    _ids: bytes

    @classmethod
    def of(cls, feature_folder: Path, spec: FeatureSpec) -> "Catalogue":
        """The catalogue of a feature as its folder stands now.

        Raises:
            DamagedShardError: if a commit record, or the index of a shard, is not whole.
        """
        records = record_names(feature_folder)
        kept = cls._read(feature_folder / FILE, records)
        if kept is not None:
            return kept
        try:
            made = cls._made(feature_folder, spec)
        except (FileNotFoundError, DamagedShardError):
            if record_names(feature_folder) == records:
                raise
            return cls.of(feature_folder, spec)  # somebody pruned meanwhile: look again
        if len(made) >= WORTH_KEEPING and isinstance(feature_folder, Path):
            made._keep(feature_folder / FILE, records)
        return made

    @classmethod
    def is_wrong(cls, feature_folder: Path, spec: FeatureSpec) -> bool:
        """Whether a catalogue is kept that says something else than the records it was made of.

        Raises:
            DamagedShardError: as `of`.
        """
        records = record_names(feature_folder)
        kept = cls._read(feature_folder / FILE, records)
        if kept is None or kept._packed([]) == cls._made(feature_folder, spec)._packed([]):
            return False
        return record_names(feature_folder) == records  # else somebody committed meanwhile

    def __len__(self) -> int:
        return len(self._hashes)

    def ids(self) -> Iterator[str]:
        """Ids of all videos, in no order that means anything."""
        for start, stop in zip(self._id_start[:-1], self._id_start[1:], strict=True):
            yield self._ids[start:stop].decode()

    def find(self, video_ids: Sequence[str]) -> list[tuple[str, int] | None]:
        """Shard id and place there of each video, None where it has no rows."""
        wanted = [video_id.encode() for video_id in video_ids]
        hashes = np.array([_hash(video_id) for video_id in wanted], np.uint64)
        first = np.searchsorted(self._hashes, hashes).tolist()
        return [
            self._at(number, video_id, int(hash_))
            for number, video_id, hash_ in zip(first, wanted, hashes, strict=True)
        ]

    def _at(self, number: int, video_id: bytes, hash_: int) -> tuple[str, int] | None:
        while number < len(self._hashes) and int(self._hashes[number]) == hash_:
            if self._ids[self._id_start[number] : self._id_start[number + 1]] == video_id:
                return self.shards[self._shard[number]], int(self._place[number])
            number += 1
        return None

    @classmethod
    def _made(cls, feature_folder: Path, spec: FeatureSpec) -> "Catalogue":
        """From the records: superseded and bad rows never win, else the first commit does."""
        shards = sorted(committed_shards(feature_folder, spec), key=lambda shard: shard.order)
        hidden = superseded_videos(shard.record for shard in shards) | bad_videos(feature_folder)
        winners: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            if (shard.id, None) in hidden:
                continue
            for place, video_id in enumerate(shard.ids()):
                if (shard.id, video_id) not in hidden:
                    winners.setdefault(video_id.encode(), (number, place))
        hashed = sorted((_hash(video_id), video_id) for video_id in winners)
        places = [winners[video_id] for _, video_id in hashed]
        lengths = [len(video_id) for _, video_id in hashed]
        return cls(
            shards=tuple(shard.id for shard in shards),
            _hashes=np.array([hash_ for hash_, _ in hashed], np.uint64),
            _shard=np.array([shard for shard, _ in places], np.int32),
            _place=np.array([place for _, place in places], np.int32),
            _id_start=np.cumsum([0, *lengths], dtype=np.int64),
            _ids=b"".join(video_id for _, video_id in hashed),
        )

    @classmethod
    def _read(cls, path: Path, records: Sequence[str]) -> "Catalogue | None":
        """The kept catalogue, if there is a whole one of exactly these records.

        Raises:
            DamagedShardError: if it is a link.
        """
        try:
            if path.stat().st_size > MOST_BYTES:
                return None
            file = io.BytesIO(content(path.parents[1], path, limit=MOST_BYTES))
            with zipfile.ZipFile(file) as packed:
                if any(one.compress_type != zipfile.ZIP_STORED for one in packed.infolist()):
                    return None  # it could unpack to anything
            with np.load(file, allow_pickle=False) as kept:
                text = _TEXT.validate_json(kept["text"].tobytes(), strict=True)
                if text["records"] != list(records):
                    return None
                read = cls(
                    shards=tuple(text["shards"]),
                    _hashes=kept["hashes"],
                    _shard=kept["shard"],
                    _place=kept["place"],
                    _id_start=kept["id_start"],
                    _ids=kept["ids"].tobytes(),
                )
                if not read._is_sound():
                    return None
                for _ in read.ids():
                    pass  # each is UTF-8
                return read
        except FileNotFoundError:
            return None
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, MemoryError,
                NotImplementedError, RuntimeError, zlib.error, struct.error):  # fmt: skip
            return None  # cut or foreign: it is only a copy, made anew from the records

    def _is_sound(self) -> bool:
        """Whether its arrays are of the kinds and lengths that looking up relies on."""
        count = len(self._hashes)
        kinds = {
            (self._hashes.dtype, self._hashes.shape): (np.dtype(np.uint64), (count,)),
            (self._shard.dtype, self._shard.shape): (np.dtype(np.int32), (count,)),
            (self._place.dtype, self._place.shape): (np.dtype(np.int32), (count,)),
            (self._id_start.dtype, self._id_start.shape): (np.dtype(np.int64), (count + 1,)),
        }
        if any(found != wanted for found, wanted in kinds.items()):
            return False
        ends = (int(self._id_start[0]), int(self._id_start[-1]))
        return (
            ends == (0, len(self._ids))
            and bool((np.diff(self._id_start) >= 0).all())
            and bool((self._hashes[1:] >= self._hashes[:-1]).all())
            and bool(((self._shard >= 0) & (self._shard < len(self.shards))).all())
        )

    def _keep(self, path: Path, records: Sequence[str]) -> None:
        """Put it beside the commits; where that is not possible, the next reader makes it anew."""
        with suppress(OSError), unfinished(path) as temporary:  # a read-only file system
            temporary.write_bytes(self._packed(records))
            temporary.replace(path)  # it need not outlast a power cut

    def _packed(self, records: Sequence[str]) -> bytes:
        """The content of the file; the same for the same rows and records."""
        text = json.dumps({"records": list(records), "shards": list(self.shards)})
        packed = io.BytesIO()
        np.savez(
            packed,
            text=np.frombuffer(text.encode(), np.uint8),
            hashes=self._hashes,
            shard=self._shard,
            place=self._place,
            id_start=self._id_start,
            ids=np.frombuffer(self._ids, np.uint8),
        )
        return packed.getvalue()


def _hash(video_id: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(video_id, digest_size=8).digest(), "little")
