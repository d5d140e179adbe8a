"""Matrices of features that others published as MATLAB files: one row, or cell, per video.

Nobody knows which code and weights made them, so their identity says `provenance: unknown`, and so
do tables.  Rows are matched to videos by a label file in the same order, because these files name
none; `feats_mat` is what BVQA_Benchmark, VIDEVAL and RAPIQUE call it.
"""

import hashlib
import mmap
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
from vqbank.store.exchange.incoming import (
    NPY_DTYPES,
    Imported,
    Incoming,
    checksums_of,
    import_videos,
    numbered_feature,
    refuse_pickle,
)
from vqbank.store.hdf5 import Hdf5File, is_hdf5, open_hdf5
from vqbank.store.layout import ROW_NUMBERS, VideoFacts
from vqbank.store.ordinary import open_ordinary
from vqbank.store.schema import FeatureSpec, Fingerprint
from vqbank.store.words import counted

USUAL_VARIABLES = ("feats_mat", "features", "feats")
RowsWithoutValues = Literal["stop", "drop", "mean"]


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
    dropped = empty if rows_without_values == "drop" else []
    videos = list(_row_videos(path, spec, ids, filled, holes, dropped))
    notes = [f"{path.name}: {chosen}, {counted(len(videos), 'video')} x {spec.shape[0]}", *cautions]
    if empty:
        done = "left out" if dropped else "filled with the means of columns"
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
    return import_videos(store, spec, videos, source=path, notes=notes)


def _row_videos(
    path: Path,
    spec: FeatureSpec,
    ids: Sequence[str],
    filled: Sequence[NDArray[Any]],
    holes: Mapping[int, list[int]],
    dropped: Sequence[int],
) -> Iterator[Incoming]:
    """A video for each row of the file that is not dropped."""
    file_hash = Fingerprint.of(path).sha256
    for row, (video_id, values) in enumerate(zip(ids, filled, strict=True)):
        if row in dropped:
            continue
        # A row of a file is its own source: equal rows are no equal videos.
        digest = hashlib.sha256(f"{file_hash} {row}".encode()).hexdigest()
        probe: VideoFacts = {"times": ROW_NUMBERS, "row_of_file": row}
        if row in holes:
            probe["filled_columns"] = holes[row]
        if dropped:
            probe["dropped_rows"] = len(dropped)
        numbered = partial(numbered_feature, values)
        yield Incoming(
            video_id,
            Fingerprint(values.nbytes, digest),
            probe,
            checksums=partial(checksums_of, spec, numbered),
            feature=numbered,
        )


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
    name, cautions = _fitting_name(path, variables, n, variable)
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


def _fitting_name(
    path: Path,
    variables: Mapping[str, list[NDArray[Any]] | NDArray[Any]],
    n: int,
    variable: str | None,
) -> tuple[str, list[str]]:
    """The one variable that has a row for each of n videos, and which others would fit."""
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
    return fits[0], cautions


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
