"""Trees of `.npy` files that others published, numbered by row or by second.

Nobody knows which code and weights made them, so their identity says `provenance: unknown`, and so
do tables.  Their layouts are those of VSFA, MDTVSFA and TCSVT-2022-BVQA (`{row}_{extractor}.npy`,
matched to videos by a label file in the same order), SimpleVQA and RQ-VQA
(`{video}/feature_{second}...`).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, InvalidFeatureError
from vqbank.store.exchange.incoming import (
    Imported,
    Incoming,
    checksums_of,
    import_videos,
    npy_feature,
    npy_rows,
    npy_tree_spec,
    numbered_feature,
)
from vqbank.store.files import inside
from vqbank.store.layout import ROW_NUMBERS
from vqbank.store.schema import Feature, Fingerprint

SAME_ORDER = 0.9999
"""Correlation of scores that lie beside features with those of the label file, at least."""
_NUMBERED = re.compile(r"(\d+)_(.+)\.npy")
_PER_SECOND = re.compile(r"(?:feature_)?(\d+)(?:_(\w+?))?(?:_feature)?\.npy")


def import_numbered_npy(
    folder: Path,
    store: FeatureStore,
    *,
    name: str,
    ids: Sequence[str],
    mos: Sequence[float | None],
    note: str = "",
) -> list[Imported]:
    """Bank `{row}_{extractor}.npy` files [t, d], as VSFA, MDTVSFA and TCSVT-2022-BVQA write them.

    Row numbers may begin at 0 or 1 and must be complete.  Where `{row}_score.npy` lie beside them,
    they must agree with the label file's scores, which shows that the order is the same; the notes
    say how many could be compared.

    Args:
        folder: with the files.
        store: the bank.
        name: the feature becomes `imported.NAME`, or with several extractors
            `imported.NAME-EXTRACTOR`.
        ids: of the videos, by row.
        mos: [n], for the comparison; on any scale.
        note: what is known of where they come from; part of the key.

    Raises:
        BankError: if the folder has no such files, rows are missing, or the scores are those of
            other videos.
        InvalidFeatureError: naming the file that is no plain array of finite numbers.
    """
    kinds: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _files(folder):
        match = _NUMBERED.fullmatch(path.name)
        if match is None:
            raise BankError(f"{path} is not of the form ROW_EXTRACTOR.npy")
        row, kind = int(match[1]), match[2]
        if row in kinds[kind]:
            raise BankError(f"{kinds[kind][row]} and {path} are both of row {row}")
        kinds[kind][row] = path
    ordered = {kind: _in_rows(folder, kind, files, len(ids)) for kind, files in kinds.items()}
    notes = []
    scored = ordered.pop("score", None)
    if scored is None:
        notes.append("no score files: nothing shows that the label file has the same order")
    else:
        compared = _check_scores(folder, scored, ids, mos)
        notes.append(
            f"{compared} of {len(scored)} score files agree with the label file"
            if compared
            else f"{len(scored)} score files could not be compared with the label file: that "
            "takes three scores, not all alike, on both sides; nothing shows that the order is "
            "the same"
        )
    if not ordered:
        raise BankError(f"{folder} has scores and no features")
    imported = []
    for kind, files in sorted(ordered.items()):
        of_files = [(video_id, [path]) for video_id, path in zip(ids, files, strict=True)]
        feature = _feature_name(name, kind, alone=len(ordered) == 1)
        imported.append(
            _import_files(folder, store, feature, of_files, note, notes, one_each=False)
        )
    return imported


def import_per_second_npy(
    folder: Path,
    store: FeatureStore,
    *,
    name: str,
    ids: Mapping[str, str],
    note: str = "",
) -> list[Imported]:
    """Bank `{video}/feature_{k}_{kind}_feature.npy` or `{video}/{k}.npy`, one row each.

    So SimpleVQA and RQ-VQA write the features of a video's seconds; numbers must be complete from
    0 or 1 on.  Axes of length 1 are dropped.

    Args:
        folder: with a folder for each video.
        store: the bank.
        name: the feature becomes `imported.NAME`, or with several kinds `imported.NAME-KIND`.
        ids: of the videos, by the name of their folder; others keep the folder's name.
        note: what is known of where they come from; part of the key.

    Raises:
        BankError: if there are no such files, or a second is missing.
        InvalidFeatureError: naming the file that is no plain array of one finite row.
    """
    kinds: dict[str, dict[str, dict[int, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in _files(folder):
        video = path.parent.relative_to(folder).as_posix()
        match = _PER_SECOND.fullmatch(path.name)
        if match is None or video == ".":
            raise BankError(f"{path} is not of the form VIDEO/feature_SECOND_KIND_feature.npy")
        second, kind = int(match[1]), match[2] or ""
        if second in kinds[kind][video]:
            raise BankError(f"{kinds[kind][video][second]} and {path} are the same second")
        kinds[kind][video][second] = path
    imported = []
    for kind, videos in sorted(kinds.items()):
        of_files = [
            (ids.get(video, video), _in_rows(folder / video, kind, files, len(files)))
            for video, files in sorted(videos.items())
        ]
        feature = _feature_name(name, kind, alone=len(kinds) == 1)
        imported.append(_import_files(folder, store, feature, of_files, note, [], one_each=True))
    return imported


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BankError(f"{folder} is no folder; give the one that holds the .npy files")
    paths = [inside(folder, path) for path in sorted(folder.rglob("*.npy"))]
    if not paths:
        raise BankError(f"{folder} has no .npy files")
    return paths


def _in_rows(folder: Path, kind: str, files: Mapping[int, Path], n: int) -> list[Path]:
    """Files by row, numbered from 0 or from 1; none may be missing."""
    base = 0 if 0 in files else 1
    expected = set(range(base, base + n))
    wrong = sorted(expected ^ files.keys())
    if wrong:
        problem = "is missing" if wrong[0] in expected else "is one too many"
        what = f"{kind} number" if kind else "number"
        raise BankError(
            f"{folder}: {what} {wrong[0]} {problem}: {len(files)} files for {n} rows from {base} on"
        )
    return [files[number] for number in sorted(files)]


def _check_scores(
    folder: Path, files: Sequence[Path], ids: Sequence[str], mos: Sequence[float | None]
) -> int:
    """How many scores agree; 0 where too few are known, or all are alike."""
    known = [row for row, score in enumerate(mos) if score is not None]
    given = np.array([float(npy_rows(files[row]).ravel()[0]) for row in known])
    stated = np.array([mos[row] for row in known], np.float64)
    if len(known) < 3 or given.std() == 0 or stated.std() == 0:
        return 0
    slope, offset = np.polyfit(given, stated, 1)  # VSFA keeps scores as they are, others scaled
    correlation = float(np.corrcoef(given, stated)[0, 1])
    if correlation < SAME_ORDER:
        worst = known[int(np.argmax(np.abs(slope * given + offset - stated)))]
        raise BankError(
            f"{folder}: the scores beside the features are those of other rows than the label "
            f"file's (correlation {correlation:.4f}; {files[worst].name} against {ids[worst]})"
        )
    return len(known)


def _feature_name(name: str, kind: str, *, alone: bool) -> str:
    short = re.sub(r"[^a-z0-9_-]+", "-", kind.lower()).strip("-_")
    return f"imported.{name}" if alone or not short else f"imported.{name}-{short}"


def _import_files(
    folder: Path,
    store: FeatureStore,
    feature: str,
    videos: Sequence[tuple[str, Sequence[Path]]],
    note: str,
    notes: Sequence[str],
    *,
    one_each: bool,
) -> Imported:
    """Each video's rows are those of its one file, or with `one_each` one row from each file."""
    rows_of = _one_row if one_each else npy_rows
    every = (path for _, paths in videos for path in paths)
    spec = npy_tree_spec(feature, every, note, rows_of=rows_of)
    incoming = []
    for video_id, paths in videos:
        read = partial(_joined, paths) if one_each else partial(npy_feature, paths[0])
        files = [Fingerprint.of(path) for path in paths]
        digest = hashlib.sha256(" ".join(file.sha256 for file in files).encode()).hexdigest()
        incoming.append(
            Incoming(
                video_id,
                Fingerprint(sum(file.length for file in files), digest),
                {"times": ROW_NUMBERS},
                checksums=partial(checksums_of, spec, read),
                feature=read,
            )
        )
    return import_videos(store, spec, incoming, source=folder, notes=notes)


def _one_row(path: Path) -> NDArray[Any]:
    rows = npy_rows(path)
    if len(rows) != 1:
        raise InvalidFeatureError(f"{path} has shape {rows.shape}; one row is expected in a file")
    return rows.reshape(1, -1)


def _joined(paths: Sequence[Path]) -> Feature:
    return numbered_feature(np.concatenate([_one_row(path) for path in paths]))
