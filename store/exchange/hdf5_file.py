"""Features of a bank in one HDF5 file, and back."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, VqbankError, in_words
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
from vqbank.store.exchange.incoming import Imported, Incoming, bank_videos, lacking_videos
from vqbank.store.files import put_in_place, unfinished
from vqbank.store.hdf5 import Hdf5File, open_hdf5
from vqbank.store.layout import VideoRecord, array_names
from vqbank.store.schema import Feature, FeatureSpec, canonical_json

HDF5_FORMAT = "vqbank-hdf5"
HDF5_VERSIONS = ("v108", "v110")
"""Read by HDF5 1.10 and later; before 1.8 a spec of more than 64 KiB fits no attribute."""


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
    chosen = chosen_specs(store, specs)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished(path) as temporary:
            with h5py.File(temporary, "x", libver=HDF5_VERSIONS) as file:
                file.attrs["format"] = HDF5_FORMAT
                file.attrs["version"] = EXCHANGE_VERSION
                for spec in chosen:
                    _export_group(store, spec, file.create_group(spec.key))
            put_in_place(temporary, path)
    except VqbankError:
        raise
    except (OSError, RuntimeError) as error:  # a full disk is either, as HDF5 happens to see it
        raise BankError(f"{path} cannot be written: {in_words(error)}") from error


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


def _export_group(store: FeatureStore, spec: FeatureSpec, group: Any) -> None:
    winners = list(banked(store, spec))
    videos = [shard.video(place) for shard, place in winners]
    for video in videos:
        if "\0" in video.id:
            raise BankError(f"video id {video.id!r} holds a zero character: HDF5 has no such text")
    counts = [video.row_count for video in videos]
    stops = np.cumsum([0, *counts], dtype=np.int64).tolist()
    columns = array_names(spec)
    logical = {"values": spec.stored_dtype} | {f"side/{s.name}": s.dtype for s in spec.side}

    group.attrs["spec"] = spec.to_json()
    for name, (dtype, shape) in array_layout(spec).items():
        dataset = group.create_dataset(name, (stops[-1], *shape), dtype)
        dataset.attrs["logical_dtype"] = logical.get(name, dtype.name)
    spans = np.array([stops[:-1], counts], "<i8").T
    group.create_dataset("index", data=spans).attrs["columns"] = ["row_start", "row_count"]
    checksums = np.array([video.crc32c for video in videos], "<u4").reshape(-1, len(columns))
    group.create_dataset("crc32c", data=checksums).attrs["columns"] = columns
    for name, texts in {
        "ids": [video.id for video in videos],
        "records": [canonical_json(facts_of(video)) for video in videos],
        "provenance": [canonical_json(commit) for commit in provenances(store, spec)],
    }.items():
        group.create_dataset(name, len(texts), h5py.string_dtype())[:] = texts

    arrays = {name: group[name] for name in columns}
    for (shard, place), (start, stop) in zip(winners, pairwise(stops), strict=True):
        for name, dataset in arrays.items():
            dataset[start:stop] = shard.stored(place, name)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Hdf5File]:
    with ExitStack() as opened:
        with as_bank_error(path):
            file = opened.enter_context(open_hdf5(path, BankError))
            header = {name: file.attribute(file.file, name) for name in ("format", "version")}
            check_header(path, header, HDF5_FORMAT)
        yield file


def _groups(path: Path, file: Hdf5File) -> dict[FeatureSpec, Any]:
    with as_bank_error(path):
        groups = {}
        for name, group in file.entries(file.file):
            spec = FeatureSpec.from_json(file.attribute(group, "spec"))
            if spec.key != name:
                raise BankError(f"{path}: group {name} holds {spec.key}; it was changed")
            groups[spec] = group
        return groups


def _group_videos(path: Path, file: Hdf5File, group: Any, spec: FeatureSpec) -> list[Incoming]:
    """Every video of a group; shapes, dtypes and row ranges are checked, rows are not read."""
    with as_bank_error(path):
        index = file.array(file.entry(group, "index"))
        starts = np.cumsum([0, *index[:, 1]], dtype=np.int64)
        if not np.array_equal(index[:, 0], starts[:-1]) or (index[:, 1] < 1).any():
            raise BankError(f"{path}: the index of {spec.key} is not of rows one after the other")
        arrays = {name: file.entry(group, name) for name in array_names(spec)}
        for name, (dtype, shape) in array_layout(spec).items():
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
            _group_video(
                path, arrays, spec, exported_record(video_id, span, own, json.loads(facts))
            )
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
    with as_bank_error(path):
        read = {name: dataset[rows] for name, dataset in arrays.items()}
    return checked_feature(path, spec, record, read)


def _provenance(path: Path, file: Hdf5File, group: Any) -> list[Any]:
    with as_bank_error(path):
        return [json.loads(text) for text in file.texts(file.entry(group, "provenance"))]
