"""Data sets of VMAF: Python modules, of which only literals are read and nothing is run."""

import ast
import io
import keyword
import re
import statistics
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqbank.pipelines.labels.sheet import Sheet
from vqbank.store.errors import ManifestError

SCORES = ("dmos", "mos", "groundtruth", "os")
VIDEOS = "dis_videos"
MOST_CHARACTERS = 2**24
"""Of all literals; the largest data set of VMAF has some 100,000."""
MOST_DEPTH = 50
MOST_OPERATORS = 100
"""Between two commas; a path is made of three or four parts."""
MOST_TOKENS = 400_000
"""A thousand videos with a hundred raw scores each have half as many."""
MOST_BITS = 256
"""Of a whole number."""
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
    _refuse_deep(path, text)
    try:
        module = ast.parse(text)
    except SyntaxError as error:
        raise ManifestError(f"{path}:{error.lineno}: this is no Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ManifestError(f"{path}: this is no Python: {error}") from error
    known: dict[str, Any] = {}
    literals = _Literals(path, known)
    videos: list[ast.expr] | None = None
    rows: list[Any] = []
    for statement in module.body:
        name, value = _assigned(statement)
        if name == VIDEOS and videos is None:
            if not isinstance(value, ast.List):
                raise ManifestError(f"{_at(path, value or statement)}: {VIDEOS} is no list")
            videos = value.elts
            rows = [literals.value(video) for video in videos]
            continue
        names = [part for part in ast.walk(statement) if isinstance(part, ast.Name)]
        if any(used.id == VIDEOS for used in names):
            raise ManifestError(
                f"{_at(path, statement)}: `{_source(statement)}` would have to be run, nothing is; "
                f"write all videos into one `{VIDEOS} = [...]`"
            )
        for used in names:  # what may have changed is known no longer
            if isinstance(used.ctx, ast.Store) or isinstance(known.get(used.id), list | dict):
                known.pop(used.id, None)
        if name is not None and value is not None and name != "ref_videos":
            try:
                known[name] = literals.value(value)
            except TooLargeError:
                raise
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


class _Literals:
    """Values of expressions, which together come to no more characters than a data set has."""

    def __init__(self, path: Path, known: Mapping[str, Any]) -> None:
        self.path = path
        self.known = known
        self.characters = 0

    def value(self, node: ast.expr) -> Any:
        """Of constants, lists, dictionaries, known names, `+` of strings and plain f-strings."""
        match node:
            case ast.Constant(value=int() as number) if number.bit_length() > MOST_BITS:
                raise ManifestError(f"{_at(self.path, node)}: a number of too many digits")
            case ast.Constant():
                return self._counted(node, node.value)
            case ast.Name() if node.id in self.known:
                return self._counted(node, self.known[node.id])
            case ast.List() | ast.Tuple():
                return [self.value(item) for item in node.elts]
            case ast.Dict() if None not in node.keys:  # a None is `**`
                return {
                    str(self.value(key)): self.value(value)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if key is not None
                }
            case ast.UnaryOp(
                op=ast.USub(), operand=ast.Constant(value=int() | float() as number)
            ) if not isinstance(number, int) or number.bit_length() <= MOST_BITS:
                return -number
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                one, two = self.value(left), self.value(right)
                if isinstance(one, str) and isinstance(two, str):
                    return self._counted(node, one + two)
            case ast.JoinedStr():
                return "".join(str(self.value(value)) for value in node.values)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self.value(value)
        raise ManifestError(
            f"{_at(self.path, node)}: `{_source(node)}` would have to be run, and nothing is; "
            "write it as a literal"
        )

    def _counted(self, node: ast.expr, value: Any) -> Any:
        self.characters += _characters(value)
        if self.characters > MOST_CHARACTERS:
            raise TooLargeError(
                f"{_at(self.path, node)}: the literals up to here come to more than "
                f"{MOST_CHARACTERS:,} characters; write the values themselves"
            )
        return value


class TooLargeError(ManifestError):
    """Told wherever it happens: no variable is worth gigabytes, needed or not."""


def _characters(value: Any) -> int:
    """Of a value; lists and dictionaries that a name stands for count with all that they hold."""
    if isinstance(value, list):
        return 8 + sum(map(_characters, value))
    if isinstance(value, dict):
        return 8 + sum(len(key) + _characters(one) for key, one in value.items())
    return len(value) if isinstance(value, str | bytes) else 1


def _refuse_deep(path: Path, text: str) -> None:
    """Python's parser and compiler end in errors without a line where expressions nest too deep.

    Raises:
        ManifestError: with the line of a statement with more operators or open brackets than any
            data set has.
    """
    operators = depth = branches = 0
    try:
        for number, token in enumerate(tokenize.generate_tokens(io.StringIO(text).readline)):
            if number > MOST_TOKENS:
                raise ManifestError(
                    f"{path}:{token.start[0]}: more than {MOST_TOKENS:,} words and marks; this is "
                    "no data set of VMAF"
                )
            if token.type == tokenize.NEWLINE:
                operators = 0
            elif token.type == tokenize.OP:
                depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.string, 0)
                # Items of a list are beside each other, and no item of a data set is long.
                operators = 0 if token.string == "," else operators + 1
            elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
                operators += 1
                branches += token.string == "elif"
            if depth > MOST_DEPTH or operators > MOST_OPERATORS or branches > MOST_OPERATORS:
                raise ManifestError(
                    f"{path}:{token.start[0]}:{token.start[1] + 1}: an expression nested more than "
                    f"{MOST_DEPTH} deep, or of more than {MOST_OPERATORS} operators; write it as a "
                    "literal"
                )
    except (tokenize.TokenError, SyntaxError):
        return  # the parser says more


def _source(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:60]


def _at(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path}:{node.lineno}:{node.col_offset + 1}"
