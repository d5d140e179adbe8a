"""Is every byte of a bank what was committed?  What is not is named, and can be marked."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqbank.store.bank import FeatureStore, is_key, writing
from vqbank.store.catalogue import FILE as CATALOGUE
from vqbank.store.catalogue import Catalogue
from vqbank.store.checksums import CHANGED, MISSING, damage
from vqbank.store.commits import Mark, mark_bad, named_rows, read_mark, records, superseded_videos
from vqbank.store.errors import BankError, DamagedShardError, in_words
from vqbank.store.files import links_in, listed, set_aside, sync_folder
from vqbank.store.layout import array_names
from vqbank.store.ledger import ROOM as LEDGER
from vqbank.store.ledger import damaged_ledgers
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard import Shard
from vqbank.store.tail import FOLDER as TAIL
from vqbank.store.tail import damaged, set_tail_aside

LINK = "is a symbolic link, which no command follows; `vqbank prune --yes` removes it"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was committed."""

    key: str
    """Key of the feature, or the ledger's room."""
    shard: str
    """Id of the shard; empty where the damage is not in one."""
    file: str
    """Name of the file, relative to the feature's folder."""
    videos: tuple[str, ...] | None
    """Ids of the videos whose rows cannot be relied on; None for all of a shard whose index or
    commit is damaged."""
    what: str
    """The finding, to be read after the file's name."""


def verify(store: FeatureStore, specs: Iterable[FeatureSpec] | None = None) -> Iterator[Problem]:
    """Read everything that is committed and live, and yield what is not as it was committed.

    Checked are commit records, length and CRC-32C of every file, the CRC-32C of every array of
    every video, that values are finite, length and sha256 of every file of a tail, the lines of
    ledgers, and that a catalogue says what the commit records say.  Rows that are superseded or
    marked bad are passed over, and so are shards without a commit record.

    Args:
        store: The bank.
        specs: Which features; all if None.

    Raises:
        BankError: if a newer vqbank wrote a record.
    """
    if specs is None:
        for path in links_in(store.path, store.path):
            yield Problem(path.name, "", "", None, LINK)
        for name, what in damaged_ledgers(store.path):
            yield Problem(LEDGER, "", name, None, what)
        listing = [path for path in listed(store.path, store.path) if not path.is_symlink()]
        folders = [path for path in listing if is_key(path.name) and path.is_dir()]
    else:
        folders = [store.path / spec.key for spec in specs]
    for folder in folders:
        try:
            spec = store.read_spec(folder / "spec.json")
        except FileNotFoundError:
            if (folder / "commits").is_dir():
                what = "is missing: copy it from another bank that has this feature"
                yield Problem(folder.name, "", "spec.json", None, what)
        except BankError as error:
            yield Problem(folder.name, "", "spec.json", None, in_words(error))
        else:
            links = links_in(store.path, folder)
            for path in links:
                yield Problem(spec.key, "", path.name, None, LINK)
            if not links:
                yield from _verify_feature(folder, spec)
                with suppress(FileNotFoundError, DamagedShardError):  # which was named already
                    if Catalogue.is_wrong(folder, spec):
                        what = "says something else than the commit records; remove it"
                        yield Problem(spec.key, "", CATALOGUE, None, what)
                for name, what in damaged(folder / TAIL):
                    yield Problem(spec.key, "", f"{TAIL}/{name}", None, what)


def mark(store: FeatureStore, problems: Iterable[Problem]) -> None:
    """Let the rows that problems name count as missing, so that extracting again repairs them.

    A damaged commit record, or mark of bad rows, is moved aside to `.NAME.damaged`: its shard no
    longer counts, and what only this record superseded counts again.  So is a damaged file of a
    tail, which the next extraction writes anew; a wrong catalogue is removed.

    Args:
        store: The bank.
        problems: From `verify`.

    Raises:
        BankError: if the bank cannot be written.
    """
    rows: dict[tuple[str, str], set[str]] = {}
    whole: set[tuple[str, str]] = set()
    with writing(store.path):
        for problem in problems:
            path = store.path / problem.key / problem.file
            if problem.key == LEDGER or not problem.file:
                continue  # nothing that is read as a feature: `prune` removes links
            if problem.file == CATALOGUE:
                path.unlink(missing_ok=True)
            elif path.parent.name in ("commits", "bad"):
                set_aside(path)
                sync_folder(path.parent)
            elif path.parent.name == TAIL:
                set_tail_aside(path.parent, path.name)
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
    marks: list[Mark] = []
    for path in [*records(folder, "commits"), *records(folder, "bad")]:
        room = path.parent.name
        try:
            if room == "bad":
                marks.append(read_mark(folder.parent, path))
            else:
                shards.append(Shard(folder, path, spec))
        except FileNotFoundError:
            continue  # pruned since it was listed
        except (DamagedShardError, OSError) as error:
            stem = path.stem if room == "commits" else ""
            yield Problem(spec.key, stem, f"{room}/{path.name}", None, in_words(error))
    hidden = superseded_videos(shard.record for shard in shards) | named_rows(marks)
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
    if shard.folder.is_symlink():
        yield Problem(shard.spec.key, shard.id, folder, None, LINK)
        return
    if not shard.folder.is_dir():
        yield Problem(shard.spec.key, shard.id, folder, None, MISSING)
        return

    files = shard.record["files"]
    root = shard.folder.parents[2]
    damaged = {
        name: what
        for name, entry in files.items()
        for what in [damage(root, shard.folder / name, (entry["bytes"], entry["crc32c"]))]
        if what is not None
    }
    try:
        ids = list(shard.ids())
    except (DamagedShardError, OSError) as error:
        for name, what in damaged.items() or [("index", in_words(error))]:
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
        unknown = _unknown(shard, place)
        if unknown is not None:
            yield Problem(shard.spec.key, shard.id, f"{folder}/index_text", (ids[place],), unknown)
            continue
        for name in array_names(shard.spec):
            error_text = unreadable(shard, place, name) or _not_finite(shard, place, name)
            if error_text is not None:
                file = f"{folder}/{name}"
                yield Problem(shard.spec.key, shard.id, file, (ids[place],), error_text)


def _affected(shard: Shard, name: str, damaged: Mapping[str, str]) -> set[int]:
    """Places of the videos that a damaged file may have spoilt."""
    every = set(range(len(shard)))
    number = name.removeprefix("values/c/").split("/")[0]
    if not name.startswith("values/c/") or not number.isdecimal() or "values/zarr.json" in damaged:
        return every
    try:
        limit = shard.value_files.layout.file_rows
    except BankError:
        return every
    first = int(number) * limit
    if first >= shard.record["rows"]:
        return set()
    spans = shard.index[:, :2]
    inside = (spans[:, 0] < first + limit) & (spans.sum(axis=1) > first)
    within = set(np.flatnonzero(inside).tolist())
    if damaged[name] != CHANGED:
        return within
    failing = {place for place in within if unreadable(shard, place, "values") is not None}
    # Damage outside all rows, in what only other Zarr readers look at, is nobody's in particular.
    return failing or within


def _unknown(shard: Shard, place: int) -> str | None:
    """Why the record of a video cannot be read, if it cannot."""
    try:
        shard.video(place)
    except DamagedShardError as error:
        return str(error)
    return None


def unreadable(shard: Shard, place: int, name: str) -> str | None:
    """Why an array of a video cannot be read, if it cannot."""
    try:
        shard.stored(place, name)
    except (BankError, OSError) as error:
        return in_words(error)
    return None


def _not_finite(shard: Shard, place: int, name: str) -> str | None:
    if name != "values":
        return None
    values = shard.values(place)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return f"{shard.video(place).id}: row {int(np.argmin(finite))} is not finite"
