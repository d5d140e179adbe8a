"""Data sets of VMAF: Python modules, of which only literals are read and nothing is run."""

import ast
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.labels.sheet import Sheet
from store.errors import ManifestError

SCORES = ("dmos", "mos", "groundtruth", "os")
VIDEOS = "dis_videos"
_ASSIGNED = re.compile(rf"^\s*{VIDEOS}\s*(?::[^=\n]*|\+)?=(?!=)", re.MULTILINE)


def is_vmaf(text: str) -> bool:
    """Whether a text assigns `dis_videos`, as the data sets of VMAF do."""
    return _ASSIGNED.search(text) is not None


def sheet(path: Path, text: str) -> Sheet:
    """The distorted videos: path, content_id, score; raw scores (`os`) become mean and deviation.

    One statement must hold them all; where another one names them, videos would be missing.

    Raises:
        ManifestError: with line and column of what is no literal, or of a second statement.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise ManifestError(f"{path}:{line}: this is no Python: {error}") from error
    known: dict[str, Any] = {}
    videos: list[ast.expr] | None = None
    rows: list[Any] = []
    for statement in module.body:
        name, value = _assigned(statement)
        if name == VIDEOS and videos is None:
            if not isinstance(value, ast.List):
                raise ManifestError(f"{_at(path, value or statement)}: {VIDEOS} is no list")
            videos = value.elts
            rows = [_literal(path, video, known) for video in videos]
            continue
        names = [part for part in ast.walk(statement) if isinstance(part, ast.Name)]
        if any(used.id == VIDEOS for used in names):
            line = ast.unparse(statement).splitlines()[0]
            raise ManifestError(
                f"{_at(path, statement)}: `{line[:60]}` would have to be run, nothing is; write "
                f"all videos into one `{VIDEOS} = [...]`"
            )
        for used in names:  # what may have changed is known no longer
            if isinstance(used.ctx, ast.Store) or isinstance(known.get(used.id), list | dict):
                known.pop(used.id, None)
        if name is not None and value is not None and name != "ref_videos":
            try:
                known[name] = _literal(path, value, known)
            except ManifestError:
                continue  # a variable that nothing needs; one that is needed says so where it is
    if videos is None:
        raise ManifestError(f"{path}: no statement of the module's own gives {VIDEOS} a list")
    for node, row in zip(videos, rows, strict=True):
        if not isinstance(row, dict) or "path" not in row or not set(SCORES) & set(row):
            raise ManifestError(
                f"{_at(path, node)}: a distorted video has a path and one of {', '.join(SCORES)}"
            )
    scores = [name for name in SCORES if any(name in row for row in rows)]
    columns: dict[str, list[str]] = {"path": [str(row["path"]) for row in rows]}
    if rows and all("content_id" in row for row in rows):
        columns["content_id"] = [str(row["content_id"]) for row in rows]
    if rows and all("train_or_test" in row for row in rows):
        columns["train_or_test"] = [str(row["train_or_test"]) for row in rows]
    for score in scores:
        if score != "os":
            columns[_NAMES.get(score, score)] = [str(row.get(score, "")) for row in rows]
    if "os" in scores:
        columns.update(_raw_scores(path, videos, rows, has_mean=len(scores) > 1))
    return Sheet(
        path=path,
        seen="a Python module as VMAF's data sets are",
        columns=columns,
        has_header=True,
        head_place=str(path),
        row_place=lambda row: _at(path, videos[row]),
        cell_place=lambda row, column: f"{_at(path, videos[row])} ({column})",
    )


def _assigned(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Name and value of `NAME = ...` and `NAME: type = ...`; nothing for other statements."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=annotated):
            return name, annotated
    return None, None


_NAMES = {"groundtruth": "score"}


def _raw_scores(
    path: Path, nodes: list[ast.expr], rows: list[Mapping[str, Any]], *, has_mean: bool
) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {"mos": [], "std": [], "n_ratings": []}
    for node, row in zip(nodes, rows, strict=True):
        given = row.get("os", [])
        raw = list(given.values()) if isinstance(given, dict) else given
        if not isinstance(raw, list | tuple) or not raw:
            raise ManifestError(f"{_at(path, node)}: `os` is no list of scores")
        if not all(isinstance(score, int | float) for score in raw):
            raise ManifestError(f"{_at(path, node)}: `os` holds what is no number")
        columns["mos"].append(repr(float(statistics.fmean(raw))))
        columns["std"].append(repr(float(statistics.stdev(raw))) if len(raw) > 1 else "")
        columns["n_ratings"].append(str(len(raw)))
    if has_mean:
        del columns["mos"]
    return columns


def _literal(path: Path, node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of constants, lists, dictionaries, known names, `+` of strings, plain f-strings."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in known:
            return known[node.id]
        case ast.List() | ast.Tuple():
            return [_literal(path, item, known) for item in node.elts]
        case ast.Dict() if None not in node.keys:  # a None is `**`
            return {
                str(_literal(path, key, known)): _literal(path, value, known)
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
            }
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            one, two = _literal(path, left, known), _literal(path, right, known)
            if isinstance(one, str) and isinstance(two, str):
                return one + two
        case ast.JoinedStr():
            return "".join(str(_literal(path, value, known)) for value in node.values)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _literal(path, value, known)
    raise ManifestError(
        f"{_at(path, node)}: `{ast.unparse(node)[:60]}` would have to be run, and nothing is; "
        "write it as a literal"
    )


def _at(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path}:{node.lineno}:{node.col_offset + 1}"
