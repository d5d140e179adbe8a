"""Copying the features of banks into another, checked."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from vqbank.store.bank import FeatureStore, writing
from vqbank.store.checksums import MISSING, damage
from vqbank.store.commits import bad_videos, read_commit, read_mark, records
from vqbank.store.errors import BankError, ChangedVideoError, DamagedShardError
from vqbank.store.files import (
    content,
    copy_file,
    create_exclusively,
    create_together,
    files_below,
    inside,
    is_there,
    listed,
    sync_files,
    sync_folder,
)
from vqbank.store.layout import VideoRecord
from vqbank.store.ledger import ROOM
from vqbank.store.prune import removable
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard import Shard, committed_shards


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A video that two banks had under one key."""

    key: str
    video: str
    same: bool
    """Whether the checksums of all its arrays agree."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging did."""

    shards: int
    """How many shards were copied."""
    present: int
    """How many shards the target had already."""
    size: int
    """How many bytes were copied."""
    duplicates: tuple[Duplicate, ...]
    """Videos that two of the banks had in different shards; the first that was committed wins."""


def merge(target: FeatureStore, sources: Sequence[FeatureStore]) -> MergeReport:
    """Copy everything that counts in some banks into another.

    It comes to the same as copying the folders, and checks first that every folder is what its key
    says and that no id stands for two files.  A spec file that is there is kept: what is not in the
    key, such as the publisher, may be written otherwise in the source.

    Shards are copied whole and compared with their checksums, then the marks of their bad rows, and
    the commit records last, what supersedes rows first.  Shards that `prune` would remove stay
    behind.  If it is killed, run it again: what is there is not copied again.

    Args:
        target: The bank that grows.
        sources: Banks that stay as they are.

    Raises:
        BankError: if a folder's name is not its key, or the target cannot be written.
        ChangedVideoError: if a video's rows were made from different files; nothing is copied then.
        DamagedShardError: if a file of a source is damaged and its rows are not marked bad.
    """
    for store in (target, *sources):
        store.refresh()
    for source in sources:
        if source.path.resolve() == target.path.resolve():
            raise BankError(f"{source.path} cannot be merged into itself")
    duplicates = tuple(_duplicates([target, *sources]))

    copied = present = size = 0
    with writing(target.path):
        for source in sources:
            for spec in source.specs():
                shards, old, added = _merge_feature(target, source, spec)
                copied, present, size = copied + shards, present + old, size + added
            _merge_ledgers(target.path, source.path)
    target.refresh()
    return MergeReport(copied, present, size, duplicates)


def _duplicates(stores: Sequence[FeatureStore]) -> Iterator[Duplicate]:
    known: dict[tuple[str, str], tuple[FeatureStore, str, VideoRecord]] = {}
    for store in stores:
        for spec in store.specs():
            for shard, places in store.winners(spec).items():
                for video, place in places.items():
                    record = shard.video(place)
                    other, other_shard, first = known.setdefault(
                        (spec.key, video), (store, shard.id, record)
                    )
                    if other_shard == shard.id:
                        continue
                    if first.fingerprint != record.fingerprint:
                        raise ChangedVideoError(
                            f"{video}: its {spec.key} in {other.path} was made from a file of "
                            f"{first.fingerprint.length} bytes "
                            f"({first.fingerprint.sha256[:12]}), in {store.path} from one of "
                            f"{record.fingerprint.length} bytes "
                            f"({record.fingerprint.sha256[:12]}); these banks cannot be merged"
                        )
                    same = (first.row_count, first.crc32c) == (record.row_count, record.crc32c)
                    yield Duplicate(spec.key, video, same)


def _merge_feature(
    target: FeatureStore, source: FeatureStore, spec: FeatureSpec
) -> tuple[int, int, int]:
    """Shards copied, shards that were there, and bytes copied."""
    folder, origin = target.path / spec.key, source.path / spec.key
    for path in (folder, *(folder / room for room in ("shards", "commits", "bad", "tail"))):
        inside(target.path, path)
    folder.mkdir(exist_ok=True)
    sync_folder(target.path)
    create_exclusively(folder / "spec.json", content(source.path, origin / "spec.json"))
    shards = list(committed_shards(origin, spec))
    idle = {shard.id for shard in removable(source, spec, shards, math.inf)}
    wanted = [shard for shard in shards if shard.id not in idle]
    commits = {shard.id: folder / "commits" / f"{shard.id}.json" for shard in wanted}
    for room in ("shards", "commits"):
        (folder / room).mkdir(exist_ok=True)

    new = []
    for shard in wanted:
        if not commits[shard.id].exists():
            new.append(shard)
        elif read_commit(target.path, commits[shard.id]) != shard.record:
            raise BankError(f"{commits[shard.id]} and {origin} have two shards of one id")
    marked = {shard for shard, _ in bad_videos(origin)}
    size = sum(_copy_shard(shard, folder, marked=shard.id in marked) for shard in new)
    # Also what was there: another merge, that goes on or was killed, may not have flushed it.
    sync_files(path for shard in new for path in _files_and_folders(folder, shard))
    sync_folder(folder / "shards")
    _copy_marks(origin, folder, {shard.id for shard in new})
    _copy_tail(origin, folder)
    sync_folder(folder)
    for shard_ids in _superseding_first(new):
        names = {shard_id: origin / "commits" / f"{shard_id}.json" for shard_id in shard_ids}
        create_together(
            {commits[shard_id]: content(source.path, path) for shard_id, path in names.items()}
        )
    return len(new), len(wanted) - len(new), size


def _superseding_first(shards: Sequence[Shard]) -> Iterator[list[str]]:
    """Ids, in lists that may count at once: what supersedes rows before the rows themselves.

    Not by time: clocks jump back, and differ between machines.
    """
    order: TopologicalSorter[str] = TopologicalSorter({shard.id: () for shard in shards})
    for shard in shards:
        for entry in shard.record["supersedes"]:
            order.add(entry["shard"], shard.id)
    own = {shard.id for shard in shards}
    try:
        order.prepare()
    except CycleError as error:
        raise DamagedShardError(
            f"{shards[0].folder.parents[1]}: commits supersede each other in a circle: "
            f"{', '.join(error.args[1])}"
        ) from error
    while order.is_active():
        ready = order.get_ready()
        if counting := [shard for shard in ready if shard in own]:
            yield counting
        order.done(*ready)


def _files_and_folders(folder: Path, shard: Shard) -> Iterator[Path]:
    """What a copied shard is made of, as far as it is there: its own folder last."""
    top = folder / "shards" / shard.id
    files = [top / name for name in shard.record["files"]]
    folders = {parent for file in files for parent in file.parents if parent.is_relative_to(top)}
    yield from (path for path in (*files, *folders) if path.exists())


def _copy_shard(shard: Shard, folder: Path, *, marked: bool) -> int:
    """Bytes that had to be copied."""
    copied = 0
    source = shard.folder.parents[2]
    for name, entry in shard.record["files"].items():
        origin, path = shard.folder / name, folder / "shards" / shard.id / name
        committed = (entry["bytes"], entry["crc32c"])
        if is_there(folder.parent, path) and damage(folder.parent, path, committed) is None:
            continue
        what = damage(source, origin, committed)
        if what is not None and not marked:
            raise DamagedShardError(f"{origin} {what}; run `vqbank verify --mark` on its bank")
        if what != MISSING:
            path.parent.mkdir(parents=True, exist_ok=True)
            copied += copy_file(source, origin, path, room=folder, durable=False)
    return copied


def _copy_marks(origin: Path, folder: Path, shards: set[str]) -> None:
    """Copy marks of copied shards alone: a shard that the target had has files of its own."""
    for path in records(origin, "bad"):
        if read_mark(origin.parent, path)["shard"] in shards:
            (folder / "bad").mkdir(exist_ok=True)
            create_exclusively(folder / "bad" / path.name, content(origin.parent, path))


def _copy_tail(origin: Path, folder: Path) -> None:
    for path in files_below(origin.parent, origin / "tail"):
        copy = folder / path.relative_to(origin)
        if not is_there(folder.parent, copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_file(origin.parent, path, copy, room=folder)


def _merge_ledgers(target: Path, source: Path) -> None:
    """Ledgers only grow: of two of one name the longer one is the newer."""
    for path in listed(source, source / ROOM):
        if path.suffix not in (".jsonl", ".txt") or path.name.startswith("."):
            continue
        inside(source, path)
        copy = inside(target, target / ROOM / path.name)
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists() or copy.stat().st_size < path.stat().st_size:
            copy_file(source, path, copy, room=target)
