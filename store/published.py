"""Feature caches that others published, into a bank: `.mat` matrices and numbered `.npy` trees.

Nobody knows which code and weights made them, so their identity says `provenance: unknown`, and so
do tables.  Rows are matched to videos by a label file in the same order, because these caches name
none; their layouts are those of BVQA_Benchmark, VIDEVAL and RAPIQUE (`feats_mat`), VSFA, MDTVSFA
and TCSVT-2022-BVQA (`{row}_{extractor}.npy`), SimpleVQA and RQ-VQA (`{video}/feature_{second}...`).
"""

import hashlib
import mmap
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vqbank.store import mat5
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, InvalidFeatureError, in_words
from vqbank.store.files import inside
from vqbank.store.hdf5 import Hdf5File, is_hdf5, open_hdf5
from vqbank.store.incoming import (
    NPY_DTYPES,
    Imported,
    Incoming,
    bank_videos,
    checksums_of,
    lacking_videos,
    npy_feature,
    npy_rows,
)
from vqbank.store.ordinary import open_ordinary
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

USUAL_VARIABLES = ("feats_mat", "features", "feats")
RowsWithoutValues = Literal["stop", "drop", "mean"]
SAME_ORDER = 0.9999
"""Correlation of scores that lie beside features with those of the label file, at least."""
_NUMBERED = re.compile(r"(\d+)_(.+)\.npy")
_PER_SECOND = re.compile(r"(?:feature_)?(\d+)(?:_(\w+?))?(?:_feature)?\.npy")


def import_feats_mat(
    path: Path,
    store: FeatureStore,
    *,
    name: str,
    ids: Sequence[str],
    note: str = "",
    variable: str | None = None,
    rows_without_values: RowsWithoutValues = "stop",
) -> Imported:
    """Bank a matrix [n, d] of a MATLAB file, version 5 or 7.3: one row per video.

    A matrix [d, n] is turned, and one of n x n is not; a cell array of n matrices [t, d] gives t
    rows per video.  Values that are not finite become the mean of their column over the file, as in
    BVQA_Benchmark; the notes say which, and so does each video's record.

    Args:
        path: the file.
        store: the bank.
        name: the feature becomes `imported.NAME`.
        ids: of the videos, in the order of the matrix.
        note: what is known of where it comes from; part of the key.
        variable: of the file; None: the only one that fits.
        rows_without_values: what happens to videos with a row in which no value is finite: nothing
            is imported, they are left out, or the means stand for them, too.  Records of the
            videos say how many were left out, and tables count them.

    Raises:
        BankError: if the file is damaged or no MATLAB file, no variable or several fit, or the
            bank has other bytes under the same key and ids.
        InvalidFeatureError: naming variable, row and column, if a column or, unless told what to
            do, a row has no finite value at all, or no video is left.
    """
    chosen, rows, cautions = _fitting(path, _mat_variables(path), len(ids), variable)
    dtype = rows[0].dtype.name
    if dtype not in NPY_DTYPES:
        raise InvalidFeatureError(f"{path}: {chosen} holds {dtype}; that is no feature")
    empty = _empty_rows(path, chosen, rows, ids, rows_without_values)
    filled, holes = _without_holes(path, chosen, rows)
    spec = FeatureSpec(
        name=f"imported.{name}",
        shape=filled[0].shape[1:],
        stored_dtype=NPY_DTYPES[dtype],
        identity={
            "source": "imported matrix",
            "provenance": "unknown",
            "note": note,
            "dtype": dtype,
            "not_finite": "mean of the column over the file",
        },
    )
    file_hash = Fingerprint.of(path).sha256
    videos = []
    for row, (video_id, values) in enumerate(zip(ids, filled, strict=True)):
        # A row of a file is its own source: equal rows are no equal videos.
        digest = hashlib.sha256(f"{file_hash} {row}".encode()).hexdigest()
        probe: dict[str, Any] = {"times": "row numbers", "row_of_file": row}
        if row in holes:
            probe["filled_columns"] = holes[row]
        if rows_without_values == "drop" and empty:
            if row in empty:
                continue
            probe["dropped_rows"] = len(empty)
        numbered = partial(_numbered, values)
        videos.append(
            Incoming(
                video_id,
                Fingerprint(values.nbytes, digest),
                probe,
                checksums=partial(checksums_of, spec, numbered),
                feature=numbered,
            )
        )
    notes = [f"{path.name}: {chosen}, {len(videos)} videos x {spec.shape[0]}", *cautions]
    if empty:
        done = "left out" if rows_without_values == "drop" else "filled with the means of columns"
        notes.append(
            f"{len(empty)} of {len(filled)} rows have no finite value and were {done}: "
            f"{', '.join(f'{row + 1} ({ids[row]})' for row in empty)}"
        )
    notes += [
        f"row {row + 1} ({ids[row]}), column {', '.join(str(column + 1) for column in columns)}: "
        "not finite, filled with the mean of the column"
        for row, columns in holes.items()
        if row not in empty
    ]
    return _import(store, spec, videos, source=path, notes=notes)


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


def refuse_pickle(path: Path) -> None:
    """MaxVQA keeps features as pickles, whose opening runs what is in them.

    Raises:
        BankError: if the file is a pickle, or a torch file around one.
    """
    with open_ordinary(path) as file:
        start = file.read(4)
    if start[:1] == b"\x80" or (start == b"PK\x03\x04" and path.suffix in (".pkl", ".pt", ".pth")):
        raise BankError(
            f"{path} is a pickle, and opening one runs whatever it holds; if you trust it, write "
            "one .npy file for each video from it and import that folder"
        )


def _import(
    store: FeatureStore,
    spec: FeatureSpec,
    videos: Sequence[Incoming],
    *,
    source: Path,
    notes: Sequence[str],
) -> Imported:
    store.refresh()
    lacking, skipped = lacking_videos(store, spec, videos, source=source)
    done = bank_videos(store, spec, lacking, skipped, source=source, original=[])
    return Imported(done.spec, done.banked, done.skipped, tuple(notes))


def _numbered(values: NDArray[Any]) -> Feature:
    numbers = np.arange(len(values))
    return Feature(values, numbers.astype("f8"), numbers)


# MATLAB files.


def _mat_variables(path: Path) -> dict[str, list[NDArray[Any]] | NDArray[Any]]:
    """Numeric matrices, in MATLAB's order of axes, and cell arrays of such, by name."""
    refuse_pickle(path)
    try:
        with open_ordinary(path) as file:
            start = file.read(2056)
            if start.startswith(b"MATLAB ") and not is_hdf5(start):
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                return dict(_version_5_variables(mat5.variables(path, content, BankError)))
        if not is_hdf5(start):
            raise BankError(f"{path} is no MATLAB file of version 5 or 7.3")
        with open_hdf5(path, BankError) as hdf5:
            return dict(_hdf5_variables(hdf5))
    except BankError:
        raise
    except MemoryError as error:
        raise BankError(f"{path} asks for more memory than there is; it may be damaged") from error
    except Exception as error:  # the readers raise whatever damaged bytes lead them to
        raise BankError(f"{path} is damaged, or no MATLAB file: {in_words(error)}") from error


def _version_5_variables(
    read: Mapping[str, Any],
) -> Iterator[tuple[str, list[NDArray[Any]] | NDArray[Any]]]:
    for name, value in read.items():
        if not isinstance(value, np.ndarray) or value.dtype.names is not None:
            continue
        if value.dtype.kind in "iufb" and value.ndim == 2:
            yield name, value
        elif value.dtype.kind == "O" and all(_is_matrix(cell) for cell in value.flat):
            yield name, list(value.flat)


def _hdf5_variables(file: Hdf5File) -> Iterator[tuple[str, list[NDArray[Any]] | NDArray[Any]]]:
    for name, item in file.entries(file.file):
        if name.startswith("#") or not isinstance(item, h5py.Dataset):
            continue
        if item.dtype.kind in "iufb" and item.ndim == 2:
            yield name, file.array(item).T  # MATLAB's columns are HDF5's rows
        elif item.dtype.kind == "O":
            cells = [file.at(reference) for reference in file.array(item).ravel()]
            if all(
                isinstance(cell, h5py.Dataset) and cell.dtype.kind in "iuf" and cell.ndim == 2
                for cell in cells
            ):
                yield name, [file.array(cell).T for cell in cells]


def _is_matrix(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and cell.ndim == 2 and cell.dtype.kind in "iuf"


def _fitting(
    path: Path,
    variables: Mapping[str, list[NDArray[Any]] | NDArray[Any]],
    n: int,
    variable: str | None,
) -> tuple[str, list[NDArray[Any]], list[str]]:
    """Name, [t, d] of each video, and what could have been read otherwise."""
    shapes = {
        name: f"{len(value)} cells"
        if isinstance(value, list)
        else f"{value.shape[0]} x {value.shape[1]}"
        for name, value in variables.items()
    }
    seen = ", ".join(f"{name} ({shape})" for name, shape in shapes.items()) or "no matrix"
    cautions = []
    if variable is not None:
        if variable not in variables:
            raise BankError(f"{path} has no matrix {variable!r}; it has {seen}")
        fits = [variable]
    else:
        fits = [name for name, value in variables.items() if n in _lengths(value)]
        wide = [name for name in fits if _width(variables[name], n) > 1]
        usual = [name for name in USUAL_VARIABLES if name in fits]
        others = [name for name in wide if name not in usual[:1]]
        if usual and others:
            cautions.append(
                f"{' and '.join(others)} would fit, too; {usual[0]} was taken for its name, and "
                "--variable takes another"
            )
        fits = usual[:1] or wide or fits
    if len(fits) != 1 or n not in _lengths(variables[fits[0]]):
        which = "no variable has" if len(fits) < 2 else f"{' and '.join(fits)} all have"
        raise BankError(
            f"{path}: {which} a row for each of the {n} labels; it has {seen}. Give the label "
            "file that belongs to it, or name one by --variable"
        )
    (name,) = fits
    value = variables[name]
    if isinstance(value, list):
        widths = {cell.shape[1] for cell in value}
        if len(widths) > 1:
            raise BankError(f"{path}: cells of {name} have {sorted(widths)} columns, not one width")
        return name, [np.ascontiguousarray(cell) for cell in value], cautions
    turned = value.shape[0] != n
    if turned:
        cautions.append(f"{name} has videos in its columns and was turned")
    elif value.shape[1] == n:
        cautions.append(
            f"{name} is {n} x {n}, so nothing shows whether its rows or its columns are the "
            "videos; rows were taken"
        )
    matrix = np.ascontiguousarray(value.T if turned else value)
    return name, list(matrix[:, None]), cautions


def _lengths(value: list[NDArray[Any]] | NDArray[Any]) -> tuple[int, ...]:
    return (len(value),) if isinstance(value, list) else value.shape


def _width(value: list[NDArray[Any]] | NDArray[Any], n: int) -> int:
    if isinstance(value, list):
        return int(value[0].shape[1])
    return int(value.shape[1] if value.shape[0] == n else value.shape[0])


def _empty_rows(
    path: Path,
    name: str,
    rows: Sequence[NDArray[Any]],
    ids: Sequence[str],
    what: RowsWithoutValues,
) -> list[int]:
    """Videos with a row in which no value is finite, by their number."""
    found = [
        number
        for number, values in enumerate(rows)
        if values.dtype.kind == "f" and not np.isfinite(values).any(axis=1).all()
    ]
    if found and (what == "stop" or len(found) == len(rows)):
        first = found[0]
        raise InvalidFeatureError(
            f"{path}: row {first + 1} of {name} has no finite value ({ids[first]}); of {len(rows)} "
            f"videos, {len(found)} have such rows. --rows-without-values drop leaves them out, "
            "mean fills them with the means of columns"
        )
    return found


def _without_holes(
    path: Path, name: str, rows: Sequence[NDArray[Any]]
) -> tuple[list[NDArray[Any]], dict[int, list[int]]]:
    """Means of columns in place of what is not finite; by row the columns that were filled."""
    flat = np.concatenate(rows)
    if flat.dtype.kind != "f":
        return list(rows), {}
    finite = np.isfinite(flat)
    if not finite.any(axis=0).all():
        place = int(np.argmin(finite.any(axis=0)))
        raise InvalidFeatureError(f"{path}: column {place + 1} of {name} has no finite value")
    means = np.where(finite, flat, 0).sum(axis=0) / finite.sum(axis=0)
    filled, holes = [], {}
    for number, values in enumerate(rows):
        good = np.isfinite(values)
        filled.append(np.where(good, values, means.astype(values.dtype)))
        if not good.all():
            holes[number] = np.flatnonzero(~good.all(axis=0)).tolist()
    return filled, holes


# Trees of numbered .npy files.


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
    first_path = videos[0][1][0]
    first = _rows_of(first_path, one_each=one_each)
    for _, paths in videos:
        for path in paths:
            rows = _rows_of(path, one_each=one_each)
            if (rows.dtype.name, rows.shape[1:]) != (first.dtype.name, first.shape[1:]):
                raise InvalidFeatureError(
                    f"{first_path} has {first.dtype.name} rows of shape {first.shape[1:]}, {path} "
                    f"{rows.dtype.name} rows of shape {rows.shape[1:]}"
                )
    spec = FeatureSpec(
        name=feature,
        shape=first.shape[1:],
        stored_dtype=NPY_DTYPES[first.dtype.name],
        identity={
            "source": "imported npy tree",
            "provenance": "unknown",
            "note": note,
            "dtype": first.dtype.name,
        },
    )
    incoming = []
    for video_id, paths in videos:
        read = partial(_joined, paths) if one_each else partial(npy_feature, paths[0])
        files = [Fingerprint.of(path) for path in paths]
        digest = hashlib.sha256(" ".join(file.sha256 for file in files).encode()).hexdigest()
        incoming.append(
            Incoming(
                video_id,
                Fingerprint(sum(file.length for file in files), digest),
                {"times": "row numbers"},
                checksums=partial(checksums_of, spec, read),
                feature=read,
            )
        )
    return _import(store, spec, incoming, source=folder, notes=notes)


def _rows_of(path: Path, *, one_each: bool) -> NDArray[Any]:
    rows = npy_rows(path)
    if not one_each:
        return rows
    if len(rows) != 1:
        raise InvalidFeatureError(f"{path} has shape {rows.shape}; one row is expected in a file")
    return rows.reshape(1, -1)


def _joined(paths: Sequence[Path]) -> Feature:
    return _numbered(np.concatenate([_rows_of(path, one_each=True) for path in paths]))
