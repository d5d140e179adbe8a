"""Removing what a bank no longer needs; whatever goes has lost its commit record first."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqbank.store.bank import FeatureStore, is_key, writing
from vqbank.store.commits import read_commit, read_mark, records
from vqbank.store.errors import DamagedShardError
from vqbank.store.files import links_below, links_in, listed, sync_folder
from vqbank.store.ledger import ROOM as LEDGER
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard import Shard, committed_shards

LINK = "a symbolic link; what it points to stays"


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that a bank no longer needs."""

    path: Path
    """A file, or the folder of a shard."""
    size: int
    """What goes, in bytes."""
    why: str
    commit: Path | None = None
    """The shard's commit record, which goes first."""


def prune(
    store: FeatureStore, *, dry_run: bool = True, older_than_seconds: float = 86400.0
) -> list[Removal]:
    """Remove what nobody reads: orphans, shards none of whose rows win, unfinished writes.

    A shard goes when none of its rows wins and removing it brings back no row that it superseded:
    its commit record first, then, as the orphan that it is now, its files.

    Symbolic links go too, whatever they point to stays; what else a feature with links in it no
    longer needs is told, and removed, when this is called again.

    Args:
        store: The bank.
        dry_run: Whether only to say what would be removed.
        older_than_seconds: What has changed since is kept.  This must be longer than a writer may
            pause between two writes, and than a reader keeps a bank open.

    Returns:
        What was, or would be, removed, in this order.

    Raises:
        BankError: if the bank cannot be written.
        DamagedShardError: if a commit record or index is damaged: run `verify` first.
    """
    before = time.time() - older_than_seconds
    store.refresh()
    with writing(store.path):
        removals = [_file(path, "unfinished write") for path in _unfinished(store.path, before)]
        removals += [Removal(path, 0, LINK) for path in links_in(store.path, store.path)]
        removals += [Removal(path, 0, LINK) for path in links_below(store.path / LEDGER)]
        for folder in listed(store.path, store.path):
            if is_key(folder.name) and not folder.is_symlink():
                removals += _of_feature(store, folder, before)
        if not dry_run:
            _remove(removals)
    store.refresh()
    return removals


def _of_feature(store: FeatureStore, folder: Path, before: float) -> Iterator[Removal]:
    links = [Removal(path, 0, LINK) for path in links_below(folder)]
    yield from links
    if links or not (folder / "spec.json").exists():
        return  # what else may go can be told once the links have gone
    spec = store.read_spec(folder / "spec.json")
    # Shards are listed before commits: what is committed in between is no orphan.
    present = {path.name for path in listed(store.path, folder / "shards")}
    shards = list(committed_shards(folder, spec))
    for shard in removable(store, spec, shards, before):
        commit = folder / "commits" / f"{shard.id}.json"
        size = sum(entry["bytes"] for entry in shard.record["files"].values()) + _size(commit)
        yield Removal(shard.folder, size, "no row of it is read", commit)
    for name in sorted(present - {path.stem for path in records(folder, "commits")}):
        path = folder / "shards" / name
        if _last_change(path) <= before:
            yield Removal(path, _size(path), "never committed")
    for room in ("", "commits", "bad", "tail"):
        for path in _unfinished(folder / room, before):
            yield _file(path, "unfinished write")
    committed = {shard.id for shard in shards}
    for path in records(folder, "bad"):
        with suppress(FileNotFoundError):  # somebody else prunes too
            gone = read_mark(store.path, path)["shard"] not in committed | present
            if gone and _last_change(path) <= before:
                yield _file(path, "marks rows of a shard that is gone")


def removable(
    store: FeatureStore, spec: FeatureSpec, shards: Sequence[Shard], before: float
) -> Iterator[Shard]:
    """Shards that can go one after the other, each without changing which rows win."""
    # The catalogue is not older than `shards`: what came in between wins, and is not among them.
    winning = {shard.id for shard in store.winners(spec)}
    kept = {shard.id: shard for shard in shards}
    hides: dict[str, dict[str, Any]] = {}
    idle_since = {shard.id: float(shard.record["time"]) for shard in shards}
    for shard in shards:
        for entry in shard.record["supersedes"]:
            hides.setdefault(entry["shard"], {})[shard.id] = entry["videos"]
            since = idle_since.get(entry["shard"], 0.0)
            idle_since[entry["shard"]] = max(since, float(shard.record["time"]))

    def needed(shard: Shard) -> bool:
        """Whether a row that it superseded would come back."""
        for entry in shard.record["supersedes"]:
            old = kept.get(entry["shard"])
            if old is None:
                continue
            others = [v for by, v in hides[old.id].items() if by != shard.id and by in kept]
            if "all" in others:
                continue
            try:
                videos = set(old.ids()) if entry["videos"] == "all" else set(entry["videos"])
            except DamagedShardError:  # it goes first, when it goes
                return True
            if not videos <= {video for other in others for video in other}:
                return True
        return False

    waiting = [
        shard
        for shard in sorted(shards, key=lambda shard: shard.order)
        if shard.id not in winning and idle_since[shard.id] <= before
    ]
    progress = True
    while progress:
        progress = False
        for shard in list(waiting):
            if not needed(shard):
                yield kept.pop(shard.id)
                waiting.remove(shard)
                progress = True


def _unfinished(folder: Path, before: float) -> list[Path]:
    """Files under a temporary name, and damaged records that were moved aside."""
    found = [path for pattern in (".*.tmp", ".*.damaged") for path in folder.glob(pattern)]
    files = (path for path in found if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if _last_change(path) <= before)


def _file(path: Path, why: str) -> Removal:
    return Removal(path, _size(path), why)


def _last_change(path: Path) -> float:
    """When a file, or the newest in a folder, changed last; a copy that keeps old dates is new."""
    states = _states(path)
    with suppress(FileNotFoundError):  # somebody else removes it too
        states.append(path.lstat())
    return max((max(state.st_mtime, state.st_ctime) for state in states), default=0.0)


def _size(path: Path) -> int:
    return sum(state.st_size for state in _states(path))


def _states(path: Path) -> list[os.stat_result]:
    """The states of a file, or of every file in a folder."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    states = []
    for file in inside if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # somebody else removes it too
            states.append(file.lstat())
    return states


def _remove(removals: Sequence[Removal]) -> None:
    """May be killed at any moment, and run beside itself."""
    commits = [removal.commit for removal in removals if removal.commit is not None]
    for commit in commits:
        with suppress(FileNotFoundError):  # somebody else has removed it
            if read_commit(commit.parents[2], commit)["supersedes"]:
                sync_folder(commit.parent)  # what it superseded has surely gone before it
            commit.unlink()
    for folder in {commit.parent for commit in commits}:
        sync_folder(folder)  # files go only when their records surely have
    for removal in removals:
        if removal.path.is_symlink() or not removal.path.is_dir():
            removal.path.unlink(missing_ok=True)
        elif not (removal.path.parents[1] / "commits" / f"{removal.path.name}.json").exists():
            _remove_folder(removal.path)


def _remove_folder(path: Path) -> None:
    """Links in it, also those to folders, go as links."""
    for folder, folders, names in os.walk(path, topdown=False):
        for name in [*names, *(name for name in folders if Path(folder, name).is_symlink())]:
            Path(folder, name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            Path(folder).rmdir()
