"""A feature as a tree of `.npy` files, and back; also the trees of others, a file per video."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vqbank.store.bank import FeatureStore
from vqbank.store.documents import MOST_JSON_BYTES, file_bytes, json_value
from vqbank.store.errors import BankError, InvalidFeatureError, naming
from vqbank.store.exchange.exported import (
    EXCHANGE_VERSION,
    array_layout,
    as_bank_error,
    banked,
    check_header,
    checked_feature,
    chosen_specs,
    exported_record,
    facts_of,
    provenances,
)
from vqbank.store.exchange.incoming import (
    Imported,
    Incoming,
    bank_videos,
    checksums_of,
    lacking_videos,
    npy_array,
    npy_feature,
    npy_tree_spec,
)
from vqbank.store.files import inside, new_folder
from vqbank.store.layout import ROW_NUMBERS, VideoRecord, array_names
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, canonical_json

NPY_FORMAT = "vqbank-npy"
NAME_CHARACTERS = 200
"""The most characters of a quoted id in a file name: file systems take 255 bytes, and `.npy` and a
number are added."""


def export_npy(store: FeatureStore, spec: FeatureSpec, folder: Path) -> None:
    """Write a feature as a tree of `.npy` files, one of each array for each video.

    `values/FILE`, `pts_seconds/FILE`, `frame_index/FILE` and `side/NAME/FILE` hold the stored rows
    (bfloat16 as uint16 bits); `index.json` holds the spec and for each video, in the order of their
    ids, `id`, `file`, `rows`, `fingerprint`, `probe` and `crc32c` in the order of
    `vqbank.store.layout.array_names`.  FILE is the id, percent-encoded; where that is empty, too
    long, or differs from another by case alone, it is cut and numbered.  The folder appears whole
    or not at all.

    Raises:
        BankError: if `folder` is not empty.
        MissingFeatureError: if the bank has no such feature.
        DamagedShardError: if rows have changed since they were committed.
    """
    (spec,) = chosen_specs(store, [spec])
    ids = store.video_ids(spec)
    with new_folder(folder) as unfinished:
        for name in array_names(spec):
            (unfinished / name).mkdir(parents=True)
        videos = []
        for file, (shard, place) in zip(_file_names(ids), banked(store, spec), strict=True):
            for name in array_names(spec):
                with naming(unfinished / name / file):
                    np.save(unfinished / name / file, shard.stored(place, name))
            record = shard.video(place)
            videos.append(
                {
                    "id": record.id,
                    "file": file,
                    "rows": record.row_count,
                    **facts_of(record),
                    "crc32c": list(record.crc32c),
                }
            )
        index = {
            "format": NPY_FORMAT,
            "version": EXCHANGE_VERSION,
            "spec": json.loads(spec.to_json()),
            "provenance": provenances(store, spec),
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
    with as_bank_error(path):
        text = file_bytes(path, BankError, most_bytes=MOST_JSON_BYTES)
        index = json_value(text, path, BankError)
        if not isinstance(index, dict) or index.get("format") != NPY_FORMAT:
            return None
        check_header(path, index, NPY_FORMAT)
        return index


def _indexed_videos(
    folder: Path, index: Mapping[str, Any]
) -> tuple[FeatureSpec, list[Incoming], list[Any]]:
    with as_bank_error(folder / "index.json"):
        spec = FeatureSpec.from_json(json.dumps(index["spec"]))
        videos = [_indexed_video(folder, spec, video) for video in index["videos"]]
        return spec, videos, index["provenance"]


def _indexed_video(folder: Path, spec: FeatureSpec, video: Mapping[str, Any]) -> Incoming:
    file = video["file"]
    if not _FILE_NAME.fullmatch(file):
        raise BankError(f"{folder / 'index.json'} names {file!r}, which vqbank would not")
    record = exported_record(video["id"], (0, video["rows"]), video["crc32c"], video)
    return Incoming(
        record.id,
        record.fingerprint,
        record.probe,
        checksums=lambda: record.crc32c,
        feature=partial(_indexed_feature, folder, file, spec, record),
    )


def _indexed_feature(folder: Path, file: str, spec: FeatureSpec, record: VideoRecord) -> Feature:
    arrays = {}
    for name, (dtype, shape) in array_layout(spec).items():
        path = inside(folder, folder / name / file)
        with as_bank_error(path):
            array = npy_array(path)
        if (array.dtype, array.shape) != (dtype, (record.row_count, *shape)):
            raise BankError(
                f"{path} is {array.dtype} {array.shape}, "
                f"not {dtype} {(record.row_count, *shape)} as it was exported"
            )
        arrays[name] = array
    return checked_feature(folder, spec, record, arrays)


def _foreign_videos(
    folder: Path, name: str, provenance_note: str
) -> tuple[FeatureSpec, list[Incoming]]:
    paths = [inside(folder, path) for path in sorted(folder.rglob("*.npy"))]
    if not paths:
        raise BankError(f"{folder} has no .npy files")
    spec = npy_tree_spec(f"imported.{name}", paths, provenance_note)
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
        {"times": ROW_NUMBERS},
        checksums=partial(checksums_of, spec, partial(npy_feature, path)),
        feature=partial(npy_feature, path),
    )
