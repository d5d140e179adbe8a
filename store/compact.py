"""Many small shards into few, while others read and write.

Nothing that is committed is changed: new shards are written as ever, their commit record last.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbank.store.bank import FeatureStore, writing
from vqbank.store.commits import NamedRows, bad_videos, mark_bad, records
from vqbank.store.errors import BankError, DamagedShardError
from vqbank.store.layout import array_names
from vqbank.store.schema import FeatureSpec, canonical_json, storage_dtype
from vqbank.store.shard import Shard, committed_shards
from vqbank.store.shard_writer import ShardWriter
from vqbank.store.verify import Problem, unreadable

SHARD_BYTES = 2**30
"""A compacted shard is closed once it holds this much."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting a feature did."""

    key: str
    written: tuple[str, ...]
    """Ids of the shards that were written."""
    replaced: tuple[str, ...]
    """Ids of shards whose rows now lie in the new ones."""
    videos: int
    """How many videos were copied."""
    left: tuple[Problem, ...]
    """Shards that stay as they are, because a row of theirs is damaged."""


def compact(
    store: FeatureStore,
    spec: FeatureSpec,
    *,
    shard_bytes: int = SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
    durable: bool = True,
) -> Compaction:
    """Copy the winning rows of small shards into few large ones, in the order of video ids.

    Old files stay where they are, so that whoever reads them reads on; `prune` removes them later.
    A new shard supersedes every other committed copy of the videos that it holds itself, and no
    other row.  So every commit on its own leaves each video with rows, whatever is killed, written,
    compacted or pruned at the same time; of two compactions at once the first to commit wins.
    Superseded, bad and duplicate rows are not copied.  A shard with a damaged winning row is left.

    Args:
        store: The bank.
        spec: Which feature.
        shard_bytes: A shard with less than this in winning rows is small; a new one is closed once
            it holds this much.
        provenance: Software and host of this run; what the copied shards recorded is kept beside
            it, as `rows_from`.
        durable: Whether to wait until the bytes have reached the disk.

    Raises:
        BankError: if the bank cannot be written, or old shards were pruned meanwhile: run it again.
        DamagedShardError: if a commit record or index is damaged: run `verify` first.
    """
    folder = store.path / spec.key
    with writing(store.path):
        store.refresh()
        listed = {path.stem for path in records(folder, "commits")}
        winners = store.winners(spec)
        sources, left = _sources(winners, shard_bytes)
        if len(sources) < 2 and all(len(winners[s]) == len(s) for s in sources.values()):
            return Compaction(spec.key, (), (), 0, left)
        rows = sorted(
            (video, shard.id, place)
            for shard in sources.values()
            for video, place in winners[shard].items()
        )
        recorded = dict(provenance or {}, rows_from=_provenances(sources.values()))
        replacing = _Replacing(folder, spec, sources, listed)
        written: list[str] = []
        waiting = iter(rows)
        try:
            while replacing.videos < len(rows):
                copied: dict[str, str] = {}
                with store.writer(spec, provenance=recorded, durable=durable) as writer:
                    for video, source, place in waiting:
                        writer.copy(sources[source], place)
                        copied[video] = source
                        if writer.payload_bytes >= shard_bytes:
                            break
                    replacing.commit(writer, copied)
                written.append(writer.id)
        except DamagedShardError as error:
            if all((folder / "commits" / f"{source}.json").exists() for source in sources):
                raise
            raise BankError(
                f"{folder}: old shards were pruned while they were compacted; run it again"
            ) from error
    store.refresh()
    return Compaction(spec.key, tuple(written), tuple(sources), len(rows), left)


def _row_bytes(spec: FeatureSpec) -> int:
    """Bytes of one row in all arrays, as a writer counts them."""
    dtypes = [storage_dtype(side.dtype).itemsize * math.prod(side.shape) for side in spec.side]
    return spec.row_bytes + 16 + sum(dtypes)  # 16: pts_seconds and frame_index


class _Replacing:
    """New shards in the place of old ones: each supersedes only what it holds itself."""

    def __init__(
        self, folder: Path, spec: FeatureSpec, sources: Mapping[str, Shard], listed: set[str]
    ) -> None:
        """Nothing is replaced yet.

        Args:
            folder: The feature's.
            spec: Of the feature.
            sources: Old shards by id.
            listed: Ids of all shards that were committed when their rows were chosen.
        """
        self.videos = 0
        """How many videos have been committed so far."""
        self._folder = folder
        self._spec = spec
        self._sources = sources
        self._listed = listed
        self._ids: dict[str, frozenset[str]] = {}

    def commit(self, writer: ShardWriter, copied: Mapping[str, str]) -> None:
        """Commit a new shard.

        Args:
            writer: Which holds the copies.
            copied: The old shard's id by video id.
        """
        # What was committed meanwhile and supersedes rows that were copied is newer than the copy.
        shards = [
            shard
            for shard in committed_shards(self._folder, self._spec)
            if shard.id in self._listed
            or all(entry["shard"] not in self._sources for entry in shard.record["supersedes"])
        ]
        # Rows that were found bad while they were copied are bad in the copy too.  Marks are read
        # after commits: rows that repair a marked one are not superseded then.
        bad = bad_videos(self._folder)
        late = [
            video
            for video, source in copied.items()
            if (source, video) in bad or (source, None) in bad
        ]
        if late:
            mark_bad(self._folder, writer.id, late)
        writer.commit(supersedes=self._supersedes(shards, copied.keys() - set(late)))
        self.videos += len(copied)

    def _supersedes(self, shards: Sequence[Shard], videos: set[str]) -> list[NamedRows]:
        """Every committed copy of these videos in these shards."""
        entries: list[NamedRows] = []
        for shard in shards:
            if shard.id not in self._ids:
                try:
                    self._ids[shard.id] = frozenset(shard.ids())
                except DamagedShardError:
                    self._ids[shard.id] = frozenset()  # superseded or marked bad as a whole
            common = self._ids[shard.id] & videos
            if common:
                named: Any = "all" if common == self._ids[shard.id] else sorted(common)
                entries.append({"shard": shard.id, "videos": named})
        return entries


def _sources(
    winners: Mapping[Shard, Mapping[str, int]], shard_bytes: int
) -> tuple[dict[str, Shard], tuple[Problem, ...]]:
    """The small shards by id, without those that have a damaged winning row."""
    sources, left = {}, []
    for shard, places in winners.items():
        rows = sum(shard.span(place)[1] for place in places.values())
        if rows * _row_bytes(shard.spec) >= shard_bytes:
            continue
        damage = {
            video: what
            for video, place in places.items()
            for name in array_names(shard.spec)
            for what in [unreadable(shard, place, name)]
            if what is not None
        }
        if damage:
            what = f"was left as it is: {next(iter(damage.values()))}"
            file = f"shards/{shard.id}"
            left.append(Problem(shard.spec.key, shard.id, file, tuple(damage), what))
        else:
            sources[shard.id] = shard
    return sources, tuple(left)


def _provenances(shards: Iterable[Shard]) -> list[Any]:
    """What the commits of these shards recorded of who computed their rows, each once.

    Without what this took, which was of each shard.
    """
    found: dict[str, Any] = {}
    for shard in shards:
        recorded = shard.record["provenance"]
        for entry in recorded.get("rows_from", [recorded]):
            who = {name: value for name, value in entry.items() if name != "network_seconds"}
            found[canonical_json(who)] = who
    return [found[text] for text in sorted(found)]
