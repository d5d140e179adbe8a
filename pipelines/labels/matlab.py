"""MATLAB files to sheets: version 5 by SciPy, version 7.3 by HDF5; cells, structs, matrices."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.labels.sheet import Sheet
from vqbank.store import mat5
from vqbank.store.errors import ManifestError, in_words
from vqbank.store.hdf5 import Hdf5File, is_hdf5, open_hdf5

_DEPTH = 8
"""Structs nested deeper than this are no label file."""
Value = list[str] | NDArray[Any]


def is_matlab(content: bytes) -> bool:
    """Whether a file begins as MATLAB's files of version 5 or 7.3 do."""
    return content.startswith(b"MATLAB ") or is_hdf5(content)


def sheet(path: Path, content: bytes) -> Sheet:
    """The variables of a file as columns and matrices.

    Names of struct fields stand alone where they are unique, else after the struct's, with a dot.

    Raises:
        ManifestError: if the file is cut off, damaged or holds no table.
    """
    version = "7.3" if is_hdf5(content) else "5"
    found = dict(_version_73(path, content) if version == "7.3" else _version_5(path, content))
    short = [name.rpartition(".")[2] for name in found]
    variables = {
        last if short.count(last) == 1 else name: value
        for (name, value), last in zip(found.items(), short, strict=True)
    }
    texts = {name: value for name, value in variables.items() if isinstance(value, list)}
    vectors = {
        name: [_text(number) for number in value]
        for name, value in variables.items()
        if not isinstance(value, list) and value.ndim == 1
    }
    matrices = {
        name: value
        for name, value in variables.items()
        if not isinstance(value, list) and value.ndim == 2
    }
    # Rows are videos; sizes, formats and frame counts of the whole set are of other lengths.
    lengths = {name: len(value) for name, value in texts.items() if len(value) > 1}
    if not lengths:
        raise ManifestError(
            f"{path}: a MATLAB file without a list of names; it has "
            f"{_listed(variables) or 'nothing'}"
        )
    return Sheet(
        path=path,
        seen=f"MATLAB {version} file with {_listed(variables)}",
        columns={**texts, **vectors},
        has_header=True,
        head_place=str(path),
        row_place=lambda row: f"{path}: row {row + 1}",
        cell_place=lambda row, column: f"{path}: {column}({row + 1})",
        matrices=matrices,
    )


def _listed(variables: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{name} [{len(value)}]"
        if isinstance(value, list)
        else f"{name} [{' x '.join(map(str, value.shape))}]"
        for name, value in variables.items()
    )


def _text(number: Any) -> str:
    if isinstance(number, np.floating) and float(number).is_integer():
        return str(int(number))
    return repr(number.item())


def _version_5(path: Path, content: bytes) -> Iterator[tuple[str, Value]]:
    for name, value in mat5.variables(path, content, ManifestError).items():
        if not name.startswith("__"):
            yield from _from_scipy(path, name, value, _DEPTH)


def _from_scipy(path: Path, name: str, value: Any, depth: int) -> Iterator[tuple[str, Value]]:
    if depth == 0:
        raise ManifestError(f"{path}: {name} is nested more than {_DEPTH} deep")
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.names is not None:
        for field in value.dtype.names:
            inner = value[field].ravel()
            if inner.size == 1:
                yield from _from_scipy(path, f"{name}.{field}", inner[0], depth - 1)
            else:
                yield from _from_scipy(path, f"{name}.{field}", inner, depth - 1)
    elif value.dtype.kind == "O":
        yield from _cells(name, [_one(cell) for cell in value.ravel()])
    elif value.dtype.kind == "U":
        yield name, [text.rstrip() for text in value.ravel().tolist()]
    elif value.dtype.kind in "iufb":
        yield name, value.ravel() if min(value.shape, default=0) <= 1 else value


def _one(cell: Any) -> str | float | None:
    """The text or number in a cell; None for anything else."""
    if isinstance(cell, np.ndarray) and cell.size == 1 and cell.dtype.names is None:
        item = cell.ravel()[0]
        if isinstance(item, np.ndarray):
            return _one(item)
        if cell.dtype.kind == "U":
            return str(item)
        return float(item) if cell.dtype.kind in "iufb" else None
    return "" if isinstance(cell, np.ndarray) and cell.size == 0 else None


def _cells(name: str, cells: list[str | float | None]) -> Iterator[tuple[str, Value]]:
    if cells and all(isinstance(cell, str) for cell in cells):
        yield name, [str(cell) for cell in cells]
    elif cells and all(isinstance(cell, float) for cell in cells):
        yield name, np.array(cells, np.float64)


def _version_73(path: Path, content: bytes) -> Iterator[tuple[str, Value]]:
    try:
        with open_hdf5(path, ManifestError, content) as file:
            for name, item in file.entries(file.file):
                if name != "#refs#" and name != "#subsystem#":
                    yield from _from_hdf5(path, file, name, item, _DEPTH)
    except ManifestError:
        raise
    except MemoryError as error:
        raise ManifestError(f"{path} asks for more memory than there is; it is damaged") from error
    except Exception as error:  # HDF5's reader raises whatever damaged bytes lead it to
        raise ManifestError(f"{path} is a damaged MATLAB 7.3 file: {in_words(error)}") from error


def _from_hdf5(
    path: Path, file: Hdf5File, name: str, item: Any, depth: int
) -> Iterator[tuple[str, Value]]:
    if depth == 0:
        raise ManifestError(f"{path}: {name} is nested more than {_DEPTH} deep")
    if isinstance(item, h5py.Group):
        for field, inner in file.entries(item):
            yield from _from_hdf5(path, file, f"{name}.{field}", inner, depth - 1)
    elif not isinstance(item, h5py.Dataset):
        return  # a type that has a name
    elif item.dtype.kind == "O":
        yield from _cells(name, [_deref(file, cell) for cell in file.array(item).ravel()])
    elif file.attribute(item, "MATLAB_class") == b"char":
        yield name, [] if "MATLAB_empty" in item.attrs else _lines(file.array(item))
    elif item.dtype.kind in "iufb":
        value = file.array(item).T  # MATLAB's columns are HDF5's rows
        yield name, value.ravel() if min(value.shape, default=0) <= 1 else value


def _deref(file: Hdf5File, reference: Any) -> str | float | None:
    item = file.at(reference)
    if not isinstance(item, h5py.Dataset):
        return None
    if file.attribute(item, "MATLAB_class") == b"char":
        return "" if "MATLAB_empty" in item.attrs else "".join(_lines(file.array(item)))
    if item.size == 1 and item.dtype.kind in "iufb":
        return float(file.array(item).ravel()[0])
    return None


def _lines(codes: NDArray[Any]) -> list[str]:
    """UTF-16 codes [length, lines] as texts."""
    return [
        line.astype("<u2").tobytes().decode("utf-16-le").rstrip() for line in np.atleast_2d(codes).T
    ]
