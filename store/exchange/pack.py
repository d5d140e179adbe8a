"""A folder that can be published: a bank of chosen features, with a card and checksums."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqbank.store.bank import FeatureStore
from vqbank.store.catalogue import FILE as CATALOGUE_FILE
from vqbank.store.checksums import crc32c
from vqbank.store.commits import read_mark, records
from vqbank.store.errors import BankError, DamagedShardError, naming
from vqbank.store.exchange.exported import banked, chosen_specs
from vqbank.store.files import content, copy_file, create_exclusively, new_folder, sync_folder
from vqbank.store.records import FORMAT_VERSION
from vqbank.store.schema import FeatureSpec
from vqbank.store.shard import Shard, committed_shards

BLOCK_BYTES = 2**20
NON_COMMERCIAL = re.compile(
    r"\bNC\b|non-?\s?commercial|research[\s-]+(only|use|purpose)|academic|S-Lab", re.IGNORECASE
)
"""Creative Commons' NC, usual wordings, and the S-Lab licence (its clause 4)."""


def pack(store: FeatureStore, specs: Iterable[FeatureSpec], folder: Path, *, title: str) -> None:
    """Make a folder that can be published: a bank of these features alone.

    Shards that nobody reads any more stay behind; the others are copied byte for byte, their commit
    records last and as they are (they name hosts and devices).  `CARD.md` says what it is,
    `SHA256SUMS` is for `sha256sum -c`.  Every file is read again and compared with its commit
    record, and the packed bank must give every video from the same rows.  The folder appears whole
    or not at all.

    Args:
        store: The bank.
        specs: The features to take.
        folder: New or empty.
        title: Of the card.

    Raises:
        BankError: if `folder` is not empty, or the bank changed meanwhile.
        MissingFeatureError: if the bank has no such feature.
        DamagedShardError: if a file is not what its commit record says.
    """
    store.refresh()
    chosen = chosen_specs(store, specs)
    with new_folder(folder) as unfinished:
        packed = FeatureStore.create(unfinished)
        shards = {spec: _live_shards(store, spec) for spec in chosen}
        for spec in chosen:
            _copy_feature(store.path / spec.key, unfinished / spec.key, shards[spec])
        for spec in chosen:
            if _rows_read(packed, spec) != _rows_read(store, spec):
                raise BankError(
                    f"{store.path}: {spec.key} changed while it was packed; pack it again"
                )
            # Whoever opens the bank makes it anew.
            (unfinished / spec.key / CATALOGUE_FILE).unlink(missing_ok=True)
        card = _card(store, shards, title=title)
        with naming(unfinished / "CARD.md"):
            (unfinished / "CARD.md").write_text(card, encoding="utf-8")
        committed = {
            f"{spec.key}/shards/{shard.id}/{name}": (entry["bytes"], entry["crc32c"])
            for spec in chosen
            for shard in shards[spec]
            for name, entry in shard.record["files"].items()
        }
        sums = _sha256sums(unfinished, committed, bank=store.path)
        with naming(unfinished / "SHA256SUMS"):
            (unfinished / "SHA256SUMS").write_text(sums, encoding="utf-8")


def _live_shards(store: FeatureStore, spec: FeatureSpec) -> list[Shard]:
    """Shards with rows that are read, and those whose records hide rows of them."""
    kept = {shard.id for shard, _ in banked(store, spec)}
    shards = {shard.id: shard for shard in committed_shards(store.path / spec.key, spec)}
    while True:
        hiding = {
            shard.id
            for shard in shards.values()
            if any(entry["shard"] in kept for entry in shard.record["supersedes"])
        }
        if hiding <= kept:
            return [shards[shard_id] for shard_id in sorted(kept)]
        kept |= hiding


def _copy_feature(source: Path, target: Path, shards: Sequence[Shard]) -> None:
    """Copy shards in the order that the format asks for: files, then commit records."""
    target.mkdir()
    create_exclusively(target / "spec.json", content(source.parent, source / "spec.json"))
    ids = {shard.id for shard in shards}
    for shard in shards:
        for name in shard.record["files"]:
            origin, path = shard.folder / name, target / "shards" / shard.id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                copy_file(source.parent, origin, path, room=target)
            except FileNotFoundError as error:
                raise DamagedShardError(f"{origin} is missing, though it was committed") from error
    folders = [path for path in target.rglob("*") if path.is_dir()]
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        sync_folder(folder)
    for room, chosen in {
        "bad": [
            path
            for path in records(source, "bad")
            if read_mark(source.parent, path)["shard"] in ids
        ],
        "commits": [source / "commits" / f"{shard_id}.json" for shard_id in sorted(ids)],
    }.items():
        (target / room).mkdir()
        sync_folder(target)
        for record in chosen:
            create_exclusively(target / room / record.name, content(source.parent, record))


def _rows_read(store: FeatureStore, spec: FeatureSpec) -> list[tuple[str, str, int]]:
    """Where each video is read from."""
    ids = store.video_ids(spec)
    winners = zip(ids, banked(store, spec), strict=True)
    return [(video_id, shard.id, place) for video_id, (shard, place) in winners]


def _sha256sums(folder: Path, committed: Mapping[str, tuple[int, int]], *, bank: Path) -> str:
    """A line for each file; those that were committed must still have their length and CRC-32C."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest = hashlib.sha256()
        length = checksum = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                length += len(block)
                checksum = crc32c(block, checksum)
        if committed.get(name, (length, checksum)) != (length, checksum):
            raise DamagedShardError(
                f"{bank / name} has changed since it was committed; run `vqbank verify --mark`, "
                "extract again, `vqbank compact`, then pack again"
            )
        lines.append(f"{digest.hexdigest()}  {name}\n")
    return "".join(lines)


def _card(store: FeatureStore, shards: Mapping[FeatureSpec, Sequence[Shard]], *, title: str) -> str:
    """What a person reads before using a packed bank."""
    features = "\n".join(_card_feature(store, spec, parts) for spec, parts in shards.items())
    software = sorted(
        {
            line
            for parts in shards.values()
            for shard in parts
            for line in _software(shard.record["provenance"])
        }
    )
    return f"""# {" ".join(title.split())}

Frozen video-quality features, one row per clip, without the videos: a bank of vqbank, format
version {FORMAT_VERSION}.  `vqbank ls` lists it, and every shard opens in any Zarr v3 reader.
`sha256sum -c SHA256SUMS` checks the files.  The whole identity of each feature stands in its
`spec.json`.

## Features

{features}
## Software of the commits

{chr(10).join(f"- {line}" for line in software) or "- not recorded"}
"""


def _card_feature(store: FeatureStore, spec: FeatureSpec, shards: Sequence[Shard]) -> str:
    counts = [shard.span(place)[1] for shard, place in banked(store, spec)]
    size = sum(entry["bytes"] for shard in shards for entry in shard.record["files"].values())
    warnings = []
    if spec.uses_random_weights:
        warnings.append("RANDOM WEIGHTS: nobody trained this network; for tests only.")
    if NON_COMMERCIAL.search(spec.licence):
        warnings.append(f"NO COMMERCIAL USE under the licence of the weights ({spec.licence}).")
    lines = [
        f"### `{spec.key}`\n",
        *(f"> **{warning}**\n" for warning in warnings),
        f"- rows: {spec.stored_dtype} of shape {spec.shape}",
        *(f"- with each row: {side.name}, {side.dtype} {side.shape}" for side in spec.side),
        f"- videos: {len(counts)}, rows: {sum(counts)}, bytes: {size}",
        f"- weights published by: {spec.publisher or 'not stated'}",
        f"- licence of the weights: {spec.licence or 'not stated'}",
        f"- trained on: {', '.join(spec.trained_on) or 'not stated'}",
    ]
    return "\n".join(lines) + "\n"


def _software(provenance: Mapping[str, Any]) -> Iterator[str]:
    """`name version` of a commit, and of the commits that it was imported from."""
    for name, number in provenance.get("software", {}).items():
        yield f"{name} {number}"
    for original in provenance.get("original", []):
        yield from _software(original)
