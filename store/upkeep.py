"""Keeping a bank over years: verify, diff, compact, prune, merge.

Nothing here changes a file that is committed.  New shards are written as ever, their commit record
last; whatever is removed has lost its commit record first.
"""

import heapq
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.bank import FeatureStore
from store.errors import BankError, ChangedVideoError, DamagedShardError
from store.schema import FeatureSpec, StoredDtype, canonical_json, from_stored, storage_dtype
from store.shard import (
    Shard,
    ShardWriter,
    VideoRecord,
    array_names,
    bad_videos,
    committed_shards,
    crc32c,
    create_exclusively,
    mark_bad,
    named_rows,
    read_sealed,
    sync_folder,
)

SHARD_BYTES = 2**30
"""A compacted shard is closed once it holds this much."""
BLOCK_BYTES = 4 * 2**20
"""Files are checked and copied, and rows compared, in blocks of this size."""
MAPPED_SHARDS = 256
"""Compacting holds at most this many shards mapped: a map holds a file, of which 1024 are usual."""
CHANGED = "has changed since it was committed"
MISSING = "is missing, though it was committed"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was committed."""

    key: str
    """Of the feature."""
    shard: str
    """Its id; empty where the damage is not in a shard."""
    file: str
    """Relative to the feature's folder."""
    videos: tuple[str, ...] | None
    """Whose rows cannot be relied on; None for all of a shard whose index or commit is damaged."""
    what: str
    """The finding, to be read after the file's name."""


def verify(store: FeatureStore, specs: Iterable[FeatureSpec] | None = None) -> Iterator[Problem]:
    """Read everything that is committed and live, and yield what is not as it was committed.

    Checked are commit records, length and CRC-32C of every file, the CRC-32C of every array of
    every video, and that values are finite.  Rows that are superseded or marked bad are passed
    over, and so are shards without a commit record.

    Args:
        store: The bank.
        specs: Which features; all if None.

    Raises:
        BankError: if a newer vqbank wrote a record.
    """
    if specs is None:
        folders = [path for path in sorted(store.path.glob("*@*")) if path.is_dir()]
    else:
        folders = [store.path / spec.key for spec in specs]
    for folder in folders:
        try:
            spec = store._read_spec(folder / "spec.json")
        except FileNotFoundError:
            if (folder / "commits").is_dir():
                what = "is missing: copy it from another bank that has this feature"
                yield Problem(folder.name, "", "spec.json", None, what)
        except BankError as error:
            yield Problem(folder.name, "", "spec.json", None, str(error))
        else:
            yield from _verify_feature(folder, spec)


def mark(store: FeatureStore, problems: Iterable[Problem]) -> None:
    """Let the rows that problems name count as missing, so that extracting again repairs them.

    A damaged commit record, or mark of bad rows, is moved aside to `.NAME.damaged`: its shard no
    longer counts, and what only this record superseded counts again.

    Args:
        store: The bank.
        problems: From `verify`.

    Raises:
        BankError: if the bank cannot be written.
    """
    rows: dict[tuple[str, str], set[str]] = {}
    whole: set[tuple[str, str]] = set()
    with _writing(store.path):
        for problem in problems:
            path = store.path / problem.key / problem.file
            if path.parent.name in ("commits", "bad"):
                with suppress(FileNotFoundError):  # somebody else has moved it
                    path.replace(path.with_name(f".{path.name}.damaged"))
                sync_folder(path.parent)
            elif problem.shard and problem.videos is None:
                whole.add((problem.key, problem.shard))
            elif problem.shard:
                rows.setdefault((problem.key, problem.shard), set()).update(problem.videos or ())
        for key, shard in whole:
            mark_bad(store.path / key, shard, None)
        for (key, shard), found in rows.items():
            mark_bad(store.path / key, shard, sorted(found))
    store.refresh()


def _verify_feature(folder: Path, spec: FeatureSpec) -> Iterator[Problem]:
    shards: list[Shard] = []
    marks: list[dict[str, Any]] = []
    for path in [*_records(folder, "commits"), *_records(folder, "bad")]:
        room = path.parent.name
        try:
            if room == "bad":
                marks.append(read_sealed(path))
            else:
                shards.append(Shard(folder, path, spec))
        except FileNotFoundError:
            continue  # pruned since it was listed
        except DamagedShardError as error:
            stem = path.stem if room == "commits" else ""
            yield Problem(spec.key, stem, f"{room}/{path.name}", None, str(error))
    superseded = (entry for shard in shards for entry in shard.record["supersedes"])
    hidden = named_rows([*marks, *superseded])
    shards.reverse()
    while shards:
        shard = shards.pop()  # what it has mapped and read goes with it
        if (shard.id, None) in hidden:
            continue
        for problem in _verify_shard(shard, hidden):
            if not (folder / "commits" / f"{shard.id}.json").exists():
                break  # pruned while it was read
            yield problem


def _verify_shard(shard: Shard, hidden: set[tuple[str, str | None]]) -> Iterator[Problem]:
    folder = f"shards/{shard.id}"
    if not shard.folder.is_dir():
        yield Problem(shard.spec.key, shard.id, folder, None, MISSING)
        return

    files = shard.record["files"]
    checked = ((name, _damage(shard.folder / name, entry)) for name, entry in files.items())
    damaged = {name: what for name, what in checked if what is not None}
    try:
        ids = list(shard.ids())
    except (DamagedShardError, OSError) as error:
        for name, what in damaged.items() or [("index", str(error))]:
            yield Problem(shard.spec.key, shard.id, f"{folder}/{name}", None, what)
        return

    live = {place for place, video in enumerate(ids) if (shard.id, video) not in hidden}
    named: set[int] = set()
    for name, what in damaged.items():
        places = live & _affected(shard, name, damaged)
        if places:
            videos = tuple(ids[place] for place in sorted(places))
            yield Problem(shard.spec.key, shard.id, f"{folder}/{name}", videos, what)
        named |= places
    for place in sorted(live - named):
        for name in array_names(shard.spec):
            error_text = _unreadable(shard, place, name) or _not_finite(shard, place, name)
            if error_text is not None:
                file = f"{folder}/{name}"
                yield Problem(shard.spec.key, shard.id, file, (ids[place],), error_text)


def _affected(shard: Shard, name: str, damaged: Mapping[str, str]) -> set[int]:
    """Places of the videos that a damaged file may have spoilt."""
    every = set(range(len(shard)))
    if not name.startswith("values/c/") or "values/zarr.json" in damaged:
        return every
    limit = shard._layout.file_rows
    first = int(name.split("/")[2]) * limit
    spans = shard.index[:, :2]
    inside = (spans[:, 0] < first + limit) & (spans.sum(axis=1) > first)
    within = set(np.flatnonzero(inside).tolist())
    if damaged[name] != CHANGED:
        # Rows that are compressed are only read where every file is there.
        return within if shard._layout.codecs == ["bytes"] else every
    failing = {place for place in within if _unreadable(shard, place, "values") is not None}
    # Damage outside all rows, in what only other Zarr readers look at, is nobody's in particular.
    return failing or within


def _unreadable(shard: Shard, place: int, name: str) -> str | None:
    """Why an array of a video cannot be read, if it cannot."""
    try:
        shard.stored(place, name)
    except (BankError, OSError, ValueError, RuntimeError) as error:  # the last two from zarr, zstd
        return str(error)
    return None


def _not_finite(shard: Shard, place: int, name: str) -> str | None:
    if name != "values":
        return None
    values = shard.values(place)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return f"{shard.video(place).id}: row {int(np.argmin(finite))} is not finite"


def _damage(path: Path, entry: Mapping[str, int]) -> str | None:
    """What is wrong with a committed file, if anything is."""
    block = np.empty(BLOCK_BYTES, np.uint8)
    checksum = 0
    try:
        with path.open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            if length != entry["bytes"]:
                return f"has {length} bytes, {entry['bytes']} were committed"
            while count := file.readinto(block.data):
                checksum = crc32c(block[:count], checksum)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if checksum == entry["crc32c"] else CHANGED


@dataclass(frozen=True, slots=True)
class Difference:
    """One video whose rows are not the same on both sides."""

    key: str
    """Of the feature; of the first where two are compared."""
    video: str
    rows: tuple[int, int]
    """On either side; 0 where the video is missing."""
    arrays: tuple[str, ...] = ()
    """Those whose bytes differ: `values`, `pts_seconds`, `frame_index`, `side/...`."""
    largest: float = math.nan
    """Largest absolute difference of two values; NaN unless shapes are equal."""
    cosine: float = math.nan
    """Of all values as one vector, -1 to 1; NaN unless shapes are equal."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Differences, counted."""

    only_in_one: int
    only_in_two: int
    differing: int
    worst: tuple[Difference, ...]
    """Of another shape first, then by the largest difference."""


def diff(
    one: FeatureStore, two: FeatureStore, specs: Iterable[FeatureSpec] | None = None
) -> Iterator[Difference]:
    """Compare two banks, video by video; nothing is yielded if and only if they are the same bank.

    The same bank has the same videos under the same keys, with equal bytes of every array.  How
    rows are grouped into shards, and commit times, are free.

    Args:
        one: A bank.
        two: Another.
        specs: Which features; those of both banks if None.

    Raises:
        DamagedShardError: naming the video whose bytes have changed since they were committed.
    """
    chosen = [*one.specs(), *two.specs()] if specs is None else list(specs)
    for spec in sorted(set(chosen), key=lambda spec: spec.key):
        yield from _compare((one, spec), (two, spec))


def diff_features(store: FeatureStore, one: FeatureSpec, two: FeatureSpec) -> Iterator[Difference]:
    """Compare two features of one bank, such as two keys of one name, video by video.

    Raises:
        DamagedShardError: naming the video whose bytes have changed since they were committed.
    """
    return _compare((store, one), (store, two))


def summarise(differences: Iterable[Difference], *, worst: int = 10) -> Summary:
    """Count differences and keep the worst."""
    counts = [0, 0, 0]

    def both() -> Iterator[Difference]:
        for difference in differences:
            side = 2 if all(difference.rows) else difference.rows.index(0) ^ 1
            counts[side] += 1
            if side == 2:
                yield difference

    def badness(difference: Difference) -> tuple[float, float]:
        if math.isnan(difference.largest):
            return math.inf, 0.0
        return difference.largest, -difference.cosine

    found = tuple(heapq.nlargest(worst, both(), key=badness))
    return Summary(counts[0], counts[1], counts[2], found)


def _compare(
    one: tuple[FeatureStore, FeatureSpec], two: tuple[FeatureStore, FeatureSpec]
) -> Iterator[Difference]:
    ids = sorted({*one[0].video_ids(one[1]), *two[0].video_ids(two[1])})
    sides = zip(one[0].find(one[1], ids), two[0].find(two[1], ids), strict=True)
    for video, (first, second) in zip(ids, sides, strict=True):
        if first is not None and second is not None:
            yield from _compare_video(video, *first, *second)
            continue
        counts = [0 if found is None else found[0].span(found[1])[1] for found in (first, second)]
        yield Difference(one[1].key, video, (counts[0], counts[1]))


def _compare_video(
    video: str, one: Shard, place_one: int, two: Shard, place_two: int
) -> Iterator[Difference]:
    names = dict.fromkeys([*array_names(one.spec), *array_names(two.spec)])
    known = set(array_names(one.spec)) & set(array_names(two.spec))
    differing = tuple(
        name
        for name in names
        if name not in known
        or not _same_bytes(one.stored(place_one, name), two.stored(place_two, name))
    )
    if not differing:
        return
    rows = (one.span(place_one)[1], two.span(place_two)[1])
    largest, cosine = _distance(
        *(one.stored(place_one, "values"), one.spec.stored_dtype),
        *(two.stored(place_two, "values"), two.spec.stored_dtype),
    )
    yield Difference(one.spec.key, video, rows, differing, largest, cosine)


def _same_bytes(one: NDArray[Any], two: NDArray[Any]) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    first, second = (np.ascontiguousarray(array).reshape(-1) for array in (one, two))
    return np.array_equal(first.view(np.uint8), second.view(np.uint8))


def _distance(
    one: NDArray[Any], dtype_one: StoredDtype, two: NDArray[Any], dtype_two: StoredDtype
) -> tuple[float, float]:
    """Largest absolute difference and cosine of two arrays as stored."""
    if one.shape != two.shape:
        return math.nan, math.nan
    largest = product = square_one = square_two = 0.0
    step = max(1, BLOCK_BYTES // (8 * max(1, math.prod(one.shape[1:]))))
    for start in range(0, len(one), step):
        a = from_stored(one[start : start + step], dtype_one).astype(np.float64).reshape(-1)
        b = from_stored(two[start : start + step], dtype_two).astype(np.float64).reshape(-1)
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
        product += float(a @ b)
        square_one += float(a @ a)
        square_two += float(b @ b)
    if square_one == 0 or square_two == 0:
        return largest, 1.0 if square_one == square_two else 0.0
    return largest, product / math.sqrt(square_one) / math.sqrt(square_two)


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting a feature did."""

    key: str
    written: tuple[str, ...]
    """Ids of new shards."""
    replaced: tuple[str, ...]
    """Ids of shards whose rows now lie in the new ones."""
    videos: int
    """Copied."""
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
    with _writing(store.path):
        store.refresh()
        listed = {path.stem for path in _records(folder, "commits")}
        winners = _winners(store, spec)
        sources, left = _sources(winners, shard_bytes)
        if len(sources) < 2 and all(len(winners[s]) == len(s) for s in sources.values()):
            return Compaction(spec.key, (), (), 0, left)
        rows = sorted(
            (video, shard.id, place)
            for shard in sources.values()
            for video, place in winners[shard].items()
        )
        recorded = dict(provenance or {}, rows_from=_provenances(sources.values()))
        copying = _Copying(store, spec, sources, listed, recorded, durable=durable)
        try:
            for video, source, place in rows:
                copying.copy(video, source, place)
                if copying.payload_bytes >= shard_bytes:
                    copying.commit(folder)
            copying.commit(folder)
        except DamagedShardError as error:
            if all((folder / "commits" / f"{source}.json").exists() for source in sources):
                raise
            raise BankError(
                f"{folder}: old shards were pruned while they were compacted; run it again"
            ) from error
        finally:
            copying.abandon()
    store.refresh()
    return Compaction(spec.key, tuple(copying.written), tuple(sources), len(rows), left)


class _Copying:
    """Rows of old shards on their way into new ones."""

    def __init__(
        self,
        store: FeatureStore,
        spec: FeatureSpec,
        sources: Mapping[str, Shard],
        listed: set[str],
        provenance: Mapping[str, Any],
        *,
        durable: bool,
    ) -> None:
        self.written: list[str] = []
        self._store = store
        self._spec = spec
        self._sources = sources
        self._listed = listed
        self._provenance = provenance
        self._durable = durable
        self._writer: ShardWriter | None = None
        self._held: dict[str, str] = {}
        self._mapped: dict[str, Shard] = {}
        self._ids: dict[str, frozenset[str]] = {}

    @property
    def payload_bytes(self) -> int:
        return 0 if self._writer is None else self._writer.payload_bytes

    def copy(self, video: str, source: str, place: int) -> None:
        if self._writer is None:
            self._writer = self._store.writer(
                self._spec, provenance=self._provenance, durable=self._durable
            )
        self._writer.copy(self._sources[source], place)
        self._held[video] = source
        self._mapped[source] = self._sources[source]
        if len(self._mapped) >= MAPPED_SHARDS:
            for shard in self._mapped.values():
                _unmap(shard)
            self._mapped.clear()

    def commit(self, folder: Path) -> None:
        """Commit what was copied since the last commit."""
        if self._writer is None:
            return
        # What was committed meanwhile and supersedes rows that were copied is newer than the copy.
        shards = [
            shard
            for shard in committed_shards(folder, self._spec)
            if shard.id in self._listed
            or all(entry["shard"] not in self._sources for entry in shard.record["supersedes"])
        ]
        # Rows that were found bad while they were copied are bad in the copy too.  Marks are read
        # after commits: rows that repair a marked one are not superseded then.
        bad = bad_videos(folder)
        late = [
            video
            for video, source in self._held.items()
            if (source, video) in bad or (source, None) in bad
        ]
        if late:
            mark_bad(folder, self._writer.id, late)
        self._writer.commit(supersedes=self._supersedes(shards, self._held.keys() - set(late)))
        self.written.append(self._writer.id)
        self._writer = None
        self._held.clear()

    def abandon(self) -> None:
        """Remove what was written and not committed."""
        if self._writer is not None:
            self._writer.abandon()

    def _supersedes(self, shards: Sequence[Shard], videos: set[str]) -> list[dict[str, Any]]:
        """Every committed copy of these videos in these shards."""
        entries: list[dict[str, Any]] = []
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


def _winners(store: FeatureStore, spec: FeatureSpec) -> dict[Shard, dict[str, int]]:
    """Place of every video by the shard that wins it."""
    winners: dict[Shard, dict[str, int]] = {}
    ids = store.video_ids(spec)
    for video, found in zip(ids, store.find(spec, ids), strict=True):
        if found is not None:
            shard, place = found
            winners.setdefault(shard, {})[video] = place
    return winners


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
            for what in [_unreadable(shard, place, name)]
            if what is not None
        }
        _unmap(shard)
        if damage:
            what = f"was left as it is: {next(iter(damage.values()))}"
            file = f"shards/{shard.id}"
            left.append(Problem(shard.spec.key, shard.id, file, tuple(damage), what))
        else:
            sources[shard.id] = shard
    return sources, tuple(left)


def _row_bytes(spec: FeatureSpec) -> int:
    """Of one row in all arrays, as a writer counts them."""
    dtypes = [storage_dtype(side.dtype).itemsize * math.prod(side.shape) for side in spec.side]
    return spec.row_bytes + 16 + sum(dtypes)  # 16: pts_seconds and frame_index


def _unmap(shard: Shard) -> None:
    """Let go of its value files; they are mapped again when they are read again."""
    for name in ("_maps", "_mappings"):
        shard.__dict__.pop(name, None)


def _provenances(shards: Iterable[Shard]) -> list[Any]:
    """What the commits of these shards recorded of who computed their rows, each once."""
    found: dict[str, Any] = {}
    for shard in shards:
        recorded = shard.record["provenance"]
        for entry in recorded.get("rows_from", [recorded]):
            found[canonical_json(entry)] = entry
    return [found[text] for text in sorted(found)]


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that a bank no longer needs."""

    path: Path
    """A file, or the folder of a shard."""
    size: int
    """In bytes."""
    why: str
    commit: Path | None = None
    """The shard's commit record, which goes first."""


def prune(
    store: FeatureStore, *, dry_run: bool = True, older_than_seconds: float = 86400.0
) -> list[Removal]:
    """Remove what nobody reads: orphans, shards none of whose rows win, unfinished writes.

    A shard goes when none of its rows wins and removing it brings back no row that it superseded:
    its commit record first, then, as the orphan that it is now, its files.

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
    with _writing(store.path):
        removals = [_file(path, "unfinished write") for path in _unfinished(store.path, before)]
        for spec in store.specs():
            folder = store.path / spec.key
            # Shards are listed before commits: what is committed in between is no orphan.
            present = {path.name for path in (folder / "shards").glob("*")}
            shards = list(committed_shards(folder, spec))
            for shard in _removable(store, spec, shards, before):
                commit = folder / "commits" / f"{shard.id}.json"
                size = _size(shard.folder) + _size(commit)
                removals.append(Removal(shard.folder, size, "no row of it is read", commit))
            for name in sorted(present - {path.stem for path in _records(folder, "commits")}):
                path = folder / "shards" / name
                if _last_change(path) <= before:
                    removals.append(Removal(path, _size(path), "never committed"))
            for room in ("", "commits", "bad"):
                unfinished = _unfinished(folder / room, before)
                removals += [_file(path, "unfinished write") for path in unfinished]
            committed = {shard.id for shard in shards}
            for path in _records(folder, "bad"):
                with suppress(FileNotFoundError):  # somebody else prunes too
                    gone = read_sealed(path)["shard"] not in committed | present
                    if gone and _last_change(path) <= before:
                        removals.append(_file(path, "marks rows of a shard that is gone"))
        if not dry_run:
            _remove(removals)
    store.refresh()
    return removals


def _removable(
    store: FeatureStore, spec: FeatureSpec, shards: Sequence[Shard], before: float
) -> Iterator[Shard]:
    """Shards that can go one after the other, each without changing which rows win."""
    # The catalogue is not older than `shards`: what came in between wins, and is not among them.
    winning = {shard.id for shard in _winners(store, spec)}
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
    return sorted(path for path in found if path.is_file() and _last_change(path) <= before)


def _file(path: Path, why: str) -> Removal:
    return Removal(path, _size(path), why)


def _last_change(path: Path) -> float:
    """Of a file, or of the newest file in a folder; a copy that keeps old dates is new too."""
    states = _states(path) or [path.stat()]
    return max(max(state.st_mtime, state.st_ctime) for state in states)


def _size(path: Path) -> int:
    return sum(state.st_size for state in _states(path))


def _states(path: Path) -> list[os.stat_result]:
    """Of a file, or of every file in a folder."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    states = []
    for file in inside if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # somebody else removes it too
            states.append(file.stat())
    return states


def _remove(removals: Sequence[Removal]) -> None:
    """May be killed at any moment, and run beside itself."""
    commits = [removal.commit for removal in removals if removal.commit is not None]
    for commit in commits:
        with suppress(FileNotFoundError):  # somebody else has removed it
            if read_sealed(commit)["supersedes"]:
                sync_folder(commit.parent)  # what it superseded has surely gone before it
            commit.unlink()
    for folder in {commit.parent for commit in commits}:
        sync_folder(folder)  # files go only when their records surely have
    for removal in removals:
        if not removal.path.is_dir():
            removal.path.unlink(missing_ok=True)
        elif not (removal.path.parents[1] / "commits" / f"{removal.path.name}.json").exists():
            _remove_folder(removal.path)


def _remove_folder(path: Path) -> None:
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            Path(folder, name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            Path(folder).rmdir()


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
    """Copied."""
    present: int
    """Shards that the target had already."""
    size: int
    """Bytes copied."""
    duplicates: tuple[Duplicate, ...]
    """Videos that two of the banks had in different shards; the first that was committed wins."""


def merge(target: FeatureStore, sources: Sequence[FeatureStore]) -> MergeReport:
    """Copy everything that counts in some banks into another.

    It comes to the same as copying the folders, and checks first that every folder is what its key
    says and that no id stands for two files.  A spec file that is there is kept: what is not in the
    key, such as the publisher, may be written otherwise in the source.

    Shards are copied whole and compared with their checksums, then the marks of their bad rows, and
    the commit records last, newest first.  Shards that `prune` would remove stay behind.  If it is
    killed, run it again: what is there is not copied again.

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
    with _writing(target.path):
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
            for shard, places in _winners(store, spec).items():
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
    folder.mkdir(exist_ok=True)
    sync_folder(target.path)
    create_exclusively(folder / "spec.json", (origin / "spec.json").read_bytes())
    shards = list(committed_shards(origin, spec))
    idle = {shard.id for shard in _removable(source, spec, shards, math.inf)}
    wanted = [shard for shard in shards if shard.id not in idle]
    commits = {shard.id: folder / "commits" / f"{shard.id}.json" for shard in wanted}
    for room in ("shards", "commits"):
        (folder / room).mkdir(exist_ok=True)

    new = []
    for shard in wanted:
        if not commits[shard.id].exists():
            new.append(shard)
        elif read_sealed(commits[shard.id]) != shard.record:
            raise BankError(f"{commits[shard.id]} and {origin} have two shards of one id")
    marked = {shard for shard, _ in bad_videos(origin)}
    size = sum(_copy_shard(shard, folder, marked=shard.id in marked) for shard in new)
    sync_folder(folder / "shards")
    _copy_marks(origin, folder, {shard.id for shard in new})
    _copy_tail(origin, folder)
    sync_folder(folder)
    # The newest first: what supersedes rows counts before the rows that it supersedes.
    for shard in sorted(new, key=lambda shard: shard.order, reverse=True):
        content = (origin / "commits" / commits[shard.id].name).read_bytes()
        create_exclusively(commits[shard.id], content)
    return len(new), len(wanted) - len(new), size


def _copy_shard(shard: Shard, folder: Path, *, marked: bool) -> int:
    """Bytes that had to be copied."""
    copied = 0
    for name, entry in shard.record["files"].items():
        origin, path = shard.folder / name, folder / "shards" / shard.id / name
        if path.exists() and _damage(path, entry) is None:
            continue
        what = _damage(origin, entry)
        if what is not None and not marked:
            raise DamagedShardError(f"{origin} {what}; run `vqbank verify --mark` on its bank")
        if what != MISSING:
            path.parent.mkdir(parents=True, exist_ok=True)
            copied += _copy_file(origin, path, folder)
    for inner, _, _ in os.walk(folder / "shards" / shard.id, topdown=False):
        sync_folder(Path(inner))
    return copied


def _copy_file(origin: Path, path: Path, room: Path) -> int:
    """Put a whole copy under its name; gives its length.

    Another merge may be copying the same file: the name always stands for a whole one.
    """
    temporary = room / f".{path.name}.{secrets.token_hex(8)}.tmp"
    block = np.empty(BLOCK_BYTES, np.uint8)
    length = 0
    try:
        with origin.open("rb", buffering=0) as source, temporary.open("xb", buffering=0) as file:
            while count := source.readinto(block.data):
                file.write(block[:count].data)
                length += count
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return length


def _copy_marks(origin: Path, folder: Path, shards: set[str]) -> None:
    """Of the shards that are copied alone: a shard that the target had has files of its own."""
    for path in _records(origin, "bad"):
        if read_sealed(path)["shard"] in shards:
            (folder / "bad").mkdir(exist_ok=True)
            create_exclusively(folder / "bad" / path.name, path.read_bytes())


def _copy_tail(origin: Path, folder: Path) -> None:
    for path in sorted((origin / "tail").rglob("*")):
        copy = folder / path.relative_to(origin)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(path, copy, folder)


def _merge_ledgers(target: Path, source: Path) -> None:
    """Ledgers only grow: of two of one name the longer one is the newer."""
    for path in sorted((source / "ledger").glob("*.jsonl")):
        copy = target / "ledger" / path.name
        copy.parent.mkdir(exist_ok=True)
        if not copy.exists() or copy.stat().st_size < path.stat().st_size:
            _copy_file(path, copy, target)


def _records(folder: Path, room: str) -> list[Path]:
    """Commit records, or marks of bad rows."""
    found = (folder / room).glob("*.json")
    return sorted(path for path in found if not path.name.startswith("."))


@contextmanager
def _writing(bank: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BankError(
            f"{bank} cannot be written ({error.strerror}: {error.filename or 'disk'}); what was "
            "committed is safe, run the same command again once it can be"
        ) from error
