"""Banks in and out: one HDF5 file, trees of `.npy` files, a folder that can be published.

What is exported is the stored bytes with their CRC-32C, so that an import is the same feature under
the same key, bit for bit; bfloat16 is exported as its uint16 bits.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.catalogue import FILE as CATALOGUE_FILE
from vqbank.store.documents import MOST_JSON_BYTES, file_bytes, json_value
from vqbank.store.errors import (
    BankError,
    DamagedShardError,
    InvalidFeatureError,
    VqbankError,
    in_words,
    naming,
)
from vqbank.store.files import content, crc32c, create_exclusively, discard, inside, sync_folder
from vqbank.store.hdf5 import Hdf5File, open_hdf5
from vqbank.store.incoming import (
    NPY_DTYPES,
    Imported,
    Incoming,
    bank_videos,
    checksums_of,
    lacking_videos,
    npy_array,
    npy_feature,
    npy_rows,
)
from vqbank.store.records import FORMAT_VERSION, read_mark, records
from vqbank.store.schema import (
    Feature,
    FeatureSpec,
    Fingerprint,
    canonical_json,
    from_stored,
    storage_dtype,
)
from vqbank.store.shard import Shard, VideoRecord, array_names, committed_shards

HDF5_FORMAT = "vqbank-hdf5"
NPY_FORMAT = "vqbank-npy"
EXCHANGE_VERSION = 1
HDF5_VERSIONS = ("v108", "v110")
"""Read by HDF5 1.10 and later; before 1.8 a spec of more than 64 KiB fits no attribute."""
BLOCK_BYTES = 2**20
NAME_CHARACTERS = 200
"""Of a quoted id in a file name; file systems take 255 bytes, `.npy` and a number are added."""
NON_COMMERCIAL = re.compile(
    r"\bNC\b|non-?\s?commercial|research[\s-]+(only|use|purpose)|academic|S-Lab", re.IGNORECASE
)
"""Creative Commons' NC, usual wordings, and the S-Lab licence (its clause 4)."""


def export_hdf5(store: FeatureStore, specs: Iterable[FeatureSpec], path: Path) -> None:
    """Write features of a bank to one HDF5 file, video by video in the order of their ids.

    The file has attributes `format` and `version` and for each feature a group named by its key:

    - attribute `spec`: what stands in `spec.json`
    - `values` [rows, *shape], `pts_seconds` [rows], `frame_index` [rows], `side/NAME` [rows, ...]
      as stored; bfloat16 as uint16 bits, which the attribute `logical_dtype` says
    - `index` [n, 2]: row_start and row_count of each video
    - `ids` [n]: UTF-8
    - `records` [n]: JSON of fingerprint and probe
    - `crc32c` [n, arrays]: of the video's bytes in each array that its attribute `columns` names
    - `provenance`: JSON of what the commits of these rows recorded, each once

    Equal features give equal bytes.  The file is there whole or not at all.

    Raises:
        BankError: if `path` is there already, cannot be written, or a video id cannot be kept in
            HDF5.
        MissingFeatureError: if the bank has no such feature.
        DamagedShardError: if rows have changed since they were committed.
    """
    if path.exists():
        raise BankError(f"{path} is there already; remove it, or give another name")
    chosen = _chosen(store, specs)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with h5py.File(temporary, "x", libver=HDF5_VERSIONS) as file:
            file.attrs["format"] = HDF5_FORMAT
            file.attrs["version"] = EXCHANGE_VERSION
            for spec in chosen:
                _export_group(store, spec, file.create_group(spec.key))
        with naming(path), temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.rename(path)
    except VqbankError:
        raise
    except (
        OSError,
        RuntimeError,
    ) as error:  # a full disk is either, depending on when HDF5 sees it
        raise BankError(f"{path} cannot be written: {in_words(error)}") from error
    finally:
        discard(temporary)
    sync_folder(path.parent)


def import_hdf5(path: Path, store: FeatureStore) -> list[Imported]:
    """Bank what `export_hdf5` wrote.

    Videos that are banked with equal bytes are skipped.  Whether any is banked with other bytes is
    looked at before anything is committed.  Running it again goes on where it stopped.

    Raises:
        BankError: naming the file, if it is no such file, cut short, of a newer format, or a
            video's bytes are not those that were exported; naming the videos, if the bank has other
            bytes for them under the same key.
        InvalidFeatureError: if rows are not finite.
    """
    with _open_hdf5(path) as file:
        store.refresh()
        groups = _groups(path, file)
        unbanked = {
            spec: lacking_videos(store, spec, _group_videos(path, file, group, spec), source=path)
            for spec, group in groups.items()
        }
        return [
            bank_videos(
                store, spec, *unbanked[spec], source=path, original=_provenance(path, file, group)
            )
            for spec, group in groups.items()
        ]


def export_npy(store: FeatureStore, spec: FeatureSpec, folder: Path) -> None:
    """Write a feature as a tree of `.npy` files, one of each array for each video.

    `values/FILE`, `pts_seconds/FILE`, `frame_index/FILE` and `side/NAME/FILE` hold the stored rows
    (bfloat16 as uint16 bits); `index.json` holds the spec and for each video, in the order of their
    ids, `id`, `file`, `rows`, `fingerprint`, `probe` and `crc32c` in the order of
    `vqbank.store.shard.array_names`.  FILE is the id, percent-encoded; where that is empty, too
    long, or differs from another by case alone, it is cut and numbered.  The folder appears whole
    or not at all.

    Raises:
        BankError: if `folder` is not empty.
        MissingFeatureError: if the bank has no such feature.
        DamagedShardError: if rows have changed since they were committed.
    """
    (spec,) = _chosen(store, [spec])
    ids = store.video_ids(spec)
    with _new_folder(folder) as unfinished:
        for name in array_names(spec):
            (unfinished / name).mkdir(parents=True)
        videos = []
        for file, (shard, place) in zip(_file_names(ids), _winners(store, spec), strict=True):
            for name in array_names(spec):
                with naming(unfinished / name / file):
                    np.save(unfinished / name / file, shard.stored(place, name))
            record = shard.video(place)
            videos.append(
                {
                    "id": record.id,
                    "file": file,
                    "rows": record.row_count,
                    **_facts(record),
                    "crc32c": list(record.crc32c),
                }
            )
        index = {
            "format": NPY_FORMAT,
            "version": EXCHANGE_VERSION,
            "spec": json.loads(spec.to_json()),
            "provenance": _provenances(store, spec),
            "videos": videos,
        }
        with naming(unfinished / "index.json"):
            (unfinished / "index.json").write_text(canonical_json(index), encoding="utf-8")


def import_npy(folder: Path, store: FeatureStore, *, name: str, provenance_note: str) -> Imported:
    """Bank a tree of `.npy` files: one that `export_npy` wrote, or anybody's.

    Our own comes back under its own key.  Any other tree has one file per video, `[t, ...]` or one
    row `[d]` or `[1, d]`; ids are relative paths without `.npy`.  float64 is stored as float32,
    int64 and uint16 as int32, int8 as int16.  It has no times: pts_seconds and frame_index are row
    numbers, and the probe record says so; fingerprints are those of the `.npy` files.

    Args:
        folder: The tree.
        store: The bank.
        name: A foreign tree becomes `imported.NAME`.  Trees of equal name, note, row shape and
            dtype share a key.
        provenance_note: What is known of where a foreign tree comes from; part of its key.

    Raises:
        BankError: if the folder is not there or has no `.npy` file, its index is damaged or of a
            newer format, or the bank has other bytes under the same key and ids.
        InvalidFeatureError: naming the file, and the row where there is one: an object array, a
            dtype that is not offered, a number that is not finite, two files that do not agree.
    """
    if not folder.is_dir():
        raise BankError(f"{folder} is no folder; give the root of a tree of .npy files")
    store.refresh()
    index = _npy_index(folder)
    if index is not None:
        spec, videos, original = _indexed_videos(folder, index)
    else:
        spec, videos = _foreign_videos(folder, name, provenance_note)
        original = []
    unbanked = lacking_videos(store, spec, videos, source=folder)
    return bank_videos(store, spec, *unbanked, source=folder, original=original)


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
    chosen = _chosen(store, specs)
    with _new_folder(folder) as unfinished:
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


# What several of them share.


def _chosen(store: FeatureStore, specs: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """As the bank has them, by key, each once."""
    return [store.resolve(key) for key in sorted({spec.key for spec in specs})]


def _winners(store: FeatureStore, spec: FeatureSpec) -> Iterator[tuple[Shard, int]]:
    """Shard and place of every video, in the order of their ids."""
    for found in store.find(spec, store.video_ids(spec)):
        if found is not None:
            yield found


def _provenances(store: FeatureStore, spec: FeatureSpec) -> list[Any]:
    """What the commits of all rows recorded, each once."""
    shards = {shard.id: shard for shard, _ in _winners(store, spec)}
    distinct = {canonical_json(shard.record["provenance"]) for shard in shards.values()}
    return [json.loads(text) for text in sorted(distinct)]


def _facts(record: VideoRecord) -> dict[str, Any]:
    return {"fingerprint": asdict(record.fingerprint), "probe": dict(record.probe)}


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends and vanishes if it fails."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BankError(f"{folder} is there and not empty; give a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)
    sync_folder(folder.parent)


@contextmanager
def _as_bank_error(source: Path) -> Iterator[None]:
    """What HDF5, NumPy and JSON say of a file that is not as it should be, as one error."""
    try:
        yield
    except BankError:
        raise
    except (
        OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
        MemoryError, ArithmeticError,
    ) as error:  # fmt: skip
        raise BankError(
            f"{source} is damaged, or no file that vqbank exported: {in_words(error)}"
        ) from error


def _check_header(source: Path, found: Mapping[str, Any], expected: str) -> None:
    if found.get("format") != expected:
        raise BankError(f"{source} is no export of vqbank: it is not marked as {expected!r}")
    if found["version"] > EXCHANGE_VERSION:
        raise BankError(
            f"{source} is of export version {found['version']}, this vqbank reads up to "
            f"{EXCHANGE_VERSION}; install a newer vqbank"
        )


def _checked_feature(
    source: Path, spec: FeatureSpec, record: VideoRecord, arrays: Mapping[str, NDArray[Any]]
) -> Feature:
    """Stored arrays of one video as a feature, if they are the bytes that were exported."""
    for name, expected in zip(array_names(spec), record.crc32c, strict=True):
        if crc32c(arrays[name]) != expected:
            raise BankError(
                f"{source}: {record.id}: {name} of {spec.key} has changed since it was exported; "
                "export it again, or copy the file again"
            )
    try:
        return Feature(
            values=from_stored(arrays["values"], spec.stored_dtype),
            pts_seconds=arrays["pts_seconds"],
            frame_index=arrays["frame_index"],
            side={s.name: from_stored(arrays[f"side/{s.name}"], s.dtype) for s in spec.side},
        )
    except InvalidFeatureError as error:
        raise InvalidFeatureError(f"{source}: {record.id}: {error}") from error


def _array_layout(spec: FeatureSpec) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Stored dtype and row shape of each of `array_names`."""
    return {
        "values": (spec.storage_dtype, spec.shape),
        "pts_seconds": (np.dtype("<f8"), ()),
        "frame_index": (np.dtype("<i8"), ()),
        **{f"side/{side.name}": (storage_dtype(side.dtype), side.shape) for side in spec.side},
    }


# HDF5.


def _export_group(store: FeatureStore, spec: FeatureSpec, group: Any) -> None:
    winners = list(_winners(store, spec))
    videos = [shard.video(place) for shard, place in winners]
    for video in videos:
        if "\0" in video.id:
            raise BankError(f"video id {video.id!r} holds a zero character: HDF5 has no such text")
    counts = [video.row_count for video in videos]
    stops = np.cumsum([0, *counts], dtype=np.int64).tolist()
    columns = array_names(spec)
    logical = {"values": spec.stored_dtype} | {f"side/{s.name}": s.dtype for s in spec.side}

    group.attrs["spec"] = spec.to_json()
    for name, (dtype, shape) in _array_layout(spec).items():
        dataset = group.create_dataset(name, (stops[-1], *shape), dtype)
        dataset.attrs["logical_dtype"] = logical.get(name, dtype.name)
    spans = np.array([stops[:-1], counts], "<i8").T
    group.create_dataset("index", data=spans).attrs["columns"] = ["row_start", "row_count"]
    checksums = np.array([video.crc32c for video in videos], "<u4").reshape(-1, len(columns))
    group.create_dataset("crc32c", data=checksums).attrs["columns"] = columns
    for name, texts in {
        "ids": [video.id for video in videos],
        "records": [canonical_json(_facts(video)) for video in videos],
        "provenance": [canonical_json(commit) for commit in _provenances(store, spec)],
    }.items():
        group.create_dataset(name, len(texts), h5py.string_dtype())[:] = texts

    arrays = {name: group[name] for name in columns}
    for (shard, place), (start, stop) in zip(winners, pairwise(stops), strict=True):
        for name, dataset in arrays.items():
            dataset[start:stop] = shard.stored(place, name)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Hdf5File]:
    with ExitStack() as opened:
        with _as_bank_error(path):
            file = opened.enter_context(open_hdf5(path, BankError))
            header = {name: file.attribute(file.file, name) for name in ("format", "version")}
            _check_header(path, header, HDF5_FORMAT)
        yield file


def _groups(path: Path, file: Hdf5File) -> dict[FeatureSpec, Any]:
    with _as_bank_error(path):
        groups = {}
        for name, group in file.entries(file.file):
            spec = FeatureSpec.from_json(file.attribute(group, "spec"))
            if spec.key != name:
                raise BankError(f"{path}: group {name} holds {spec.key}; it was changed")
            groups[spec] = group
        return groups


def _group_videos(path: Path, file: Hdf5File, group: Any, spec: FeatureSpec) -> list[Incoming]:
    """Every video of a group; shapes, dtypes and row ranges are checked, rows are not read."""
    with _as_bank_error(path):
        index = file.array(file.entry(group, "index"))
        starts = np.cumsum([0, *index[:, 1]], dtype=np.int64)
        if not np.array_equal(index[:, 0], starts[:-1]) or (index[:, 1] < 1).any():
            raise BankError(f"{path}: the index of {spec.key} is not of rows one after the other")
        arrays = {name: file.entry(group, name) for name in array_names(spec)}
        for name, (dtype, shape) in _array_layout(spec).items():
            dataset = arrays[name]
            if (dataset.dtype, dataset.shape) != (dtype, (starts[-1], *shape)):
                raise BankError(
                    f"{path}: {name} of {spec.key} is {dataset.dtype} {dataset.shape}, "
                    f"not {dtype} {(int(starts[-1]), *shape)}"
                )
        ids, records = (file.texts(file.entry(group, name)) for name in ("ids", "records"))
        checksums = file.array(file.entry(group, "crc32c")).tolist()
        columns = zip(index.tolist(), checksums, ids, records, strict=True)
        return [
            _group_video(path, arrays, spec, _record(video_id, span, own, json.loads(facts)))
            for span, own, video_id, facts in columns
        ]


def _group_video(
    path: Path, arrays: Mapping[str, Any], spec: FeatureSpec, record: VideoRecord
) -> Incoming:
    return Incoming(
        record.id,
        record.fingerprint,
        record.probe,
        checksums=lambda: record.crc32c,
        feature=partial(_group_feature, path, arrays, spec, record),
    )


def _group_feature(
    path: Path, arrays: Mapping[str, Any], spec: FeatureSpec, record: VideoRecord
) -> Feature:
    rows = slice(record.row_start, record.row_start + record.row_count)
    with _as_bank_error(path):
        read = {name: dataset[rows] for name, dataset in arrays.items()}
    return _checked_feature(path, spec, record, read)


def _record(
    video_id: str, span: Sequence[int], checksums: Sequence[int], facts: Mapping[str, Any]
) -> VideoRecord:
    return VideoRecord(
        id=video_id,
        row_start=span[0],
        row_count=span[1],
        crc32c=tuple(checksums),
        fingerprint=Fingerprint(**facts["fingerprint"]),
        probe=facts["probe"],
    )


def _provenance(path: Path, file: Hdf5File, group: Any) -> list[Any]:
    with _as_bank_error(path):
        return [json.loads(text) for text in file.texts(file.entry(group, "provenance"))]


# Trees of .npy files.

_FILE_NAME = re.compile(r"[A-Za-z0-9_.~%-]+\.npy")


def _file_names(ids: Iterable[str]) -> Iterator[str]:
    """A file name for each id: no two alike, even where case does not count; none leaves."""
    taken = set()
    for number, video_id in enumerate(ids):
        name = quote(video_id, safe="")
        if name.startswith("."):  # would be hidden
            name = f"%2E{name[1:]}"
        if not name or len(name) > NAME_CHARACTERS or name.casefold() in taken:
            name = f"{name[:NAME_CHARACTERS]}%n{number}"  # no percent-encoding looks like that
        taken.add(name.casefold())
        yield f"{name}.npy"


def _npy_index(folder: Path) -> dict[str, Any] | None:
    """What `export_npy` wrote beside the arrays; None for a foreign tree."""
    path = inside(folder, folder / "index.json")
    if not path.exists():
        return None
    with _as_bank_error(path):
        text = file_bytes(path, BankError, most_bytes=MOST_JSON_BYTES)
        index = json_value(text, path, BankError)
        if not isinstance(index, dict) or index.get("format") != NPY_FORMAT:
            return None
        _check_header(path, index, NPY_FORMAT)
        return index


def _indexed_videos(
    folder: Path, index: Mapping[str, Any]
) -> tuple[FeatureSpec, list[Incoming], list[Any]]:
    with _as_bank_error(folder / "index.json"):
        spec = FeatureSpec.from_json(json.dumps(index["spec"]))
        videos = [_indexed_video(folder, spec, video) for video in index["videos"]]
        return spec, videos, index["provenance"]


def _indexed_video(folder: Path, spec: FeatureSpec, video: Mapping[str, Any]) -> Incoming:
    file = video["file"]
    if not _FILE_NAME.fullmatch(file):
        raise BankError(f"{folder / 'index.json'} names {file!r}, which vqbank would not")
    record = _record(video["id"], (0, video["rows"]), video["crc32c"], video)
    return Incoming(
        record.id,
        record.fingerprint,
        record.probe,
        checksums=lambda: record.crc32c,
        feature=partial(_indexed_feature, folder, file, spec, record),
    )


def _indexed_feature(folder: Path, file: str, spec: FeatureSpec, record: VideoRecord) -> Feature:
    arrays = {}
    for name, (dtype, shape) in _array_layout(spec).items():
        path = inside(folder, folder / name / file)
        with _as_bank_error(path):
            array = npy_array(path)
        if (array.dtype, array.shape) != (dtype, (record.row_count, *shape)):
            raise BankError(
                f"{path} is {array.dtype} {array.shape}, "
                f"not {dtype} {(record.row_count, *shape)} as it was exported"
            )
        arrays[name] = array
    return _checked_feature(folder, spec, record, arrays)


def _foreign_videos(
    folder: Path, name: str, provenance_note: str
) -> tuple[FeatureSpec, list[Incoming]]:
    paths = [inside(folder, path) for path in sorted(folder.rglob("*.npy"))]
    if not paths:
        raise BankError(f"{folder} has no .npy files")
    first = npy_rows(paths[0])
    for path in paths[1:]:
        rows = npy_rows(path)
        if (rows.dtype.name, rows.shape[1:]) != (first.dtype.name, first.shape[1:]):
            raise InvalidFeatureError(
                f"{paths[0]} has {first.dtype.name} rows of shape {first.shape[1:]}, {path} has "
                f"{rows.dtype.name} rows of shape {rows.shape[1:]}; all files of a tree must "
                "agree (a one-dimensional array is one row)"
            )
    spec = FeatureSpec(
        name=f"imported.{name}",
        shape=first.shape[1:],
        stored_dtype=NPY_DTYPES[first.dtype.name],
        identity={
            "source": "imported npy tree",
            "provenance": "unknown",
            "note": provenance_note,
            "dtype": first.dtype.name,
        },
    )
    return spec, [_foreign_video(folder, path, spec) for path in paths]


def _foreign_video(folder: Path, path: Path, spec: FeatureSpec) -> Incoming:
    video_id = path.relative_to(folder).as_posix().removesuffix(".npy")
    try:
        video_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidFeatureError(f"{str(path)!r}: its name is not UTF-8; rename it") from error
    return Incoming(
        video_id,
        Fingerprint.of(path),
        {"times": "row numbers"},
        checksums=partial(checksums_of, spec, partial(npy_feature, path)),
        feature=partial(npy_feature, path),
    )


# A folder to publish.


def _live_shards(store: FeatureStore, spec: FeatureSpec) -> list[Shard]:
    """Shards with rows that are read, and those whose records hide rows of them."""
    kept = {shard.id for shard, _ in _winners(store, spec)}
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
    """In the order that the format asks for: files, then commit records."""
    target.mkdir()
    create_exclusively(target / "spec.json", content(source.parent, source / "spec.json"))
    ids = {shard.id for shard in shards}
    for shard in shards:
        for name in shard.record["files"]:
            path = inside(source.parent, shard.folder / name)
            _copy(path, target / "shards" / shard.id / name)
    folders = [path for path in target.rglob("*") if path.is_dir()]
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        sync_folder(folder)
    for room, chosen in {
        "bad": [path for path in records(source, "bad") if read_mark(source, path)["shard"] in ids],
        "commits": [source / "commits" / f"{shard_id}.json" for shard_id in sorted(ids)],
    }.items():
        (target / room).mkdir()
        sync_folder(target)
        for record in chosen:
            create_exclusively(target / room / record.name, content(source.parent, record))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target, follow_symlinks=False)
    except FileNotFoundError as error:
        raise DamagedShardError(f"{source} is missing, though it was committed") from error
    with naming(target), target.open("rb") as file:
        os.fsync(file.fileno())


def _rows_read(store: FeatureStore, spec: FeatureSpec) -> list[tuple[str, str, int]]:
    """Where each video is read from."""
    ids = store.video_ids(spec)
    winners = zip(ids, _winners(store, spec), strict=True)
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
    counts = [shard.span(place)[1] for shard, place in _winners(store, spec)]
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
