"""What the columns of a sheet mean: by their names, or by what their numbers can be.

Sources of the names: the label files of the data sets themselves, and of FAST-VQA, DOVER, VSFA,
MDTVSFA, SimpleVQA, MinimalisticVQA, RQ-VQA, VIDEVAL, KonVid-150k, pyiqa.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.labels.label import IndexMeaning, Label, Labels, Orders, parts_of
from vqbank.pipelines.labels.scenes import scenes_by_name
from vqbank.pipelines.labels.sheet import Sheet, is_number
from vqbank.store.errors import ManifestError, unknown_name
from vqbank.store.schema import FURTHER_TEST, Part, is_part

# Column names are compared in lower case, letters and digits only.
FILE_NAMES = (
    "path", "filepath", "videopath", "filename", "filenames", "file", "videoname", "videonames",
    "videolist", "vidnames", "video", "videofile", "name", "names", "imagename", "imgname",
    "distname",
)  # fmt: skip
IDS = ("flickrid", "vid", "videoid", "id")
"""Names without a file: taken where no column names files."""
SCORES = (
    "mos", "score", "scores", "mosfull", "videoscore", "unbiasedmos", "realignmentmos",
    "meanopinionscore",
)  # fmt: skip
SIDE_SCORES = re.compile(r"(?!mos(?:std|sd|stddev|var)$)(?:d?mos.*|.*mos)")
"""Scores that are taken only where there is no other or `--score` names them: parts of videos
(LSVQ, YouTube-UGC), differences to a reference, and what a newer column corrects (CVD2014's
original MOS, LIVE-Qualcomm's biased one)."""
STD = (
    "std",
    "stdfull",
    "mosstd",
    "stdmos",
    "scorestd",
    "sd",
    "mossd",
    "stddev",
    "stdev",
    "standarddeviation",
)
RATINGS = (
    "nratings", "numratings", "ratings", "nvotes", "numvotes", "votes", "ratingcount", "ctotal",
    "numberofratings", "xsubjects", "nsubjects", "numsubjects",
)  # fmt: skip
SCENES = (
    "scene", "sceneid", "contentid", "content", "videocontent", "contentname", "reference",
    "referenceid", "referencename", "refid", "refids", "ref", "refname", "refvideo", "sourceid",
    "sourcevideo", "videonumber",
)  # fmt: skip
"""`Video Number` is the source in Waterloo IVC 4K's csv."""
PARTS = ("part", "set", "subset", "split", "officialsplit", "trainortest", "istest")
PART_WORDS: Mapping[str, Part] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
IS_TEST: Mapping[str, Part] = {
    "true": "test", "1": "test", "1.0": "test", "false": "train", "0": "train", "0.0": "train",
}  # fmt: skip
EVERY_SCORE = "\0"
"""In place of a column, which nobody can call so: the first of those that are scores by name."""
MAXWELL = frozenset(["o", "aall", "tall"])
"""MaxWell's csv: overall, aesthetic and technical scores, and no column of names."""
SCORE_OF_NO_NAME = "o"
FIXED_CELLS = 50
MISSING = ("", "nan", "na", "n/a")
"""No number, in columns that nobody has to use.  The score itself may be empty, and no more."""


def interpret(sheet: Sheet, *, score: str | None = None) -> Labels:
    """The labels in a sheet.

    Args:
        sheet: as read.
        score: the column that becomes `mos`; None: the one that the names of the columns tell.

    Raises:
        ManifestError: if the columns fit no layout or two, or a cell is not what its column says.
    """
    if len(sheet) == 0:
        raise ManifestError(f"{sheet.path} rates no videos: {sheet.seen} and no rows")
    return _with_header(sheet, score) if sheet.has_header else _without_header(sheet, score)


def simple(name: str) -> str:
    """A column name as it is compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _with_header(sheet: Sheet, score: str | None) -> Labels:
    simple_names = {column: simple(column) for column in sheet.columns}
    maxwell = set(simple_names.values()) >= MAXWELL

    def named(candidates: Sequence[str]) -> list[str]:
        return [column for column, name in simple_names.items() if name in candidates]

    names = named(FILE_NAMES) or named(IDS)
    longest = max((len(sheet.columns[column]) for column in names), default=0)
    names = [column for column in names if len(sheet.columns[column]) == longest]
    if len(names) > 1:
        raise ManifestError(
            f"{sheet.head_place} fits two layouts: {' and '.join(map(repr, names))} may both name "
            "the videos; rename or remove one"
        )
    if not names and not maxwell:
        raise _no_layout(sheet, "no column names the videos", FILE_NAMES + IDS)
    n = len(sheet.columns[names[0]]) if names else len(sheet)
    columns = [column for column, cells in sheet.columns.items() if len(cells) == n]
    main = [column for column in columns if simple_names[column] in SCORES]
    side = [
        column
        for column in columns
        if column not in main and SIDE_SCORES.fullmatch(simple_names[column])
    ]
    if maxwell:
        main = [column for column in columns if simple_names[column] == SCORE_OF_NO_NAME]
        side = [
            column for column in columns if re.fullmatch(r"[at](\d+|all)", simple_names[column])
        ]
    chosen = _score_column(sheet, score, main, side, n)
    parts, split_columns = _parts(sheet, columns, simple_names)
    scene_column = _first(columns, simple_names, SCENES, sheet)
    # A deviation is that of the main score.
    std = None if chosen in side else _first(columns, simple_names, STD, sheet)
    ratings = _first(columns, simple_names, RATINGS, sheet)
    used = {*names, chosen, scene_column, std, ratings, *main, *side, *split_columns, parts.column}
    unused = [column for column in sheet.columns if column not in used]
    return _labels(
        sheet,
        layout="named columns" if names else "MaxWell's csv",
        names=sheet.columns[names[0]] if names else None,
        name_column=names[0] if names else "",
        score=chosen,
        others=[column for column in (*main, *side) if column != chosen],
        std=std,
        ratings=ratings,
        scene_column=scene_column,
        parts=parts.values,
        part_column=parts.column,
        split_columns=split_columns,
        notes=[f"columns not used: {', '.join(unused)}"] if unused else [],
    )


def _score_column(
    sheet: Sheet, asked: str | None, main: Sequence[str], side: Sequence[str], n: int
) -> str:
    if asked is not None:
        for column, cells in sheet.columns.items():
            if simple(column) == simple(asked) and len(cells) == n:
                return column
        if asked == EVERY_SCORE and (main or side):
            return [*main, *side][0]
        raise ManifestError(
            f"{sheet.path}: --score: {unknown_name('column', asked, [*main, *side])}"
        )
    candidates = main or side
    if len(candidates) > 1:
        raise ManifestError(
            f"{sheet.head_place} fits two layouts: {' and '.join(map(repr, candidates))} may be "
            "the score; --score says which"
        )
    if candidates:
        return candidates[0]
    lengths = [
        f"{column} has {len(cells)} rows and there are {n} names"
        for column, cells in sheet.columns.items()
        if simple(column) in SCORES and len(cells) != n
    ]
    raise _no_layout(sheet, "; ".join(lengths) or "no column holds scores", SCORES)


def _no_layout(sheet: Sheet, why: str, known: Sequence[str]) -> ManifestError:
    seen = ", ".join(map(repr, list(sheet.columns)[:12]))
    return ManifestError(
        f"{sheet.head_place} fits no layout: {why}. It is {sheet.seen}: {seen}. Known names: "
        f"{', '.join(known)}"
    )


def _first(
    columns: Sequence[str], simple_names: Mapping[str, str], known: Sequence[str], sheet: Sheet
) -> str | None:
    """The column of these names that stands first in `known`."""
    for name in known:
        found = [column for column in columns if simple_names[column] == name]
        if len(found) > 1:
            raise ManifestError(
                f"{sheet.head_place} fits two layouts: {' and '.join(map(repr, found))} mean the "
                "same; rename or remove one"
            )
        if found:
            return found[0]
    return None


@dataclass(frozen=True, slots=True)
class _Parts:
    column: str | None = None
    values: tuple[Part | None, ...] | None = None


def _parts(
    sheet: Sheet, columns: Sequence[str], simple_names: Mapping[str, str]
) -> tuple[_Parts, dict[str, tuple[Part, ...]]]:
    """The official part of every row, and what further split columns say.

    A column of such a name in which no cell is a part is something else.
    """
    official = _Parts()
    splits = {}
    for column in columns:
        name = simple_names[column]
        if name not in PARTS and "split" not in name:
            continue
        words = IS_TEST if name == "istest" else PART_WORDS
        cells = sheet.columns[column]
        parts = [words.get(cell.lower()) or _further(cell) for cell in cells]
        if not any(parts):
            continue
        is_official = name in PARTS
        for row, part in enumerate(parts):
            if part is None and (cells[row] or not is_official):
                raise ManifestError(
                    f"{sheet.cell_place(row, column)}: {cells[row]!r} is no part; known are "
                    f"{', '.join(words)}"
                )
        if not is_official:
            splits[column] = tuple(part for part in parts if part is not None)
        elif official.column is None:
            official = _Parts(column, tuple(parts))
        else:
            raise ManifestError(
                f"{sheet.head_place} fits two layouts: {official.column!r} and {column!r} may both "
                "be the official part; rename or remove one"
            )
    return official, splits


def _further(cell: str) -> Part | None:
    """A further test part, such as `test-1080p`."""
    return cell if cell.startswith(FURTHER_TEST) and is_part(cell) else None


def _without_header(sheet: Sheet, score: str | None) -> Labels:
    width = len(sheet.columns)
    numeric = [all(is_number(cell) for cell in cells) for cells in sheet.columns.values()]
    texts = [
        column
        for column, cells in sheet.columns.items()
        if not any(is_number(cell) for cell in cells) and all(cells)
    ]
    columns = list(sheet.columns)
    if width == 4 and texts == ["1"]:
        return _four_columns(sheet, score)
    taken = []
    if width == 2 and not texts:  # ids of digits; the other column has fractions or repeats
        texts = [column for column in columns if _are_ids(sheet.columns[column])]
        taken = [f"column {column} holds names of digits" for column in texts]
    if width == 2 and len(texts) == 1:
        (name,) = texts
        (number,) = set(columns) - {name}
        sheet.numbers(number)  # says where it is none
        if score is not None:
            raise ManifestError(f"{sheet.path} has no header, so --score cannot name a column")
        return _labels(
            sheet,
            layout="name and score",
            names=sheet.columns[name],
            name_column=name,
            score=number,
            notes=taken,
        )
    kinds = ", ".join(
        "numbers" if is_numbers else "text" if column in texts else "text and numbers"
        for column, is_numbers in list(zip(columns, numeric, strict=True))[:12]
    )
    more = ", ..." if width > 12 else ""
    raise ManifestError(
        f"{sheet.head_place} fits no layout: it is {sheet.seen}, and its {width:,} columns hold "
        f"{kinds}{more}; without a header there are `name, duration, fps, mos` and `name, mos`. "
        "Give it a header that names its columns"
    )


def _are_ids(cells: Sequence[str]) -> bool:
    return all(cell.isdecimal() for cell in cells) and len(set(cells)) == len(cells)


def _four_columns(sheet: Sheet, score: str | None) -> Labels:
    """FAST-VQA's and DOVER's labels.txt, and MaxWell's of the same shape.

    Seconds and frames per second are positive, or -1 where unknown.  MaxWell's scores are all below
    6; durations and frames per second are both so for single videos, never for a whole set.
    """
    seconds, rates = sheet.numbers("2"), sheet.numbers("3")
    cells = [*seconds, *rates, *sheet.numbers("4")]
    if all(cell is not None and 0 < cell < 6 for cell in cells):
        names = {"2": "T-all", "3": "A-all", "4": "O"}
        renamed = Sheet(
            path=sheet.path,
            seen=sheet.seen,
            columns={names.get(column, column): cells for column, cells in sheet.columns.items()},
            has_header=False,
            head_place=sheet.head_place,
            row_place=sheet.row_place,
            cell_place=lambda row, column: sheet.cell_place(
                row, {name: number for number, name in names.items()}.get(column, column)
            ),
            unended=sheet.unended,
        )
        chosen = _score_column(renamed, score, ["O"], ["T-all", "A-all"], len(sheet))
        return _labels(
            renamed,
            layout="MaxWell's labels.txt: name, T-all, A-all, O",
            names=sheet.columns["1"],
            name_column="1",
            score=chosen,
            others=[column for column in names.values() if column != chosen],
            notes=[
                "columns 2 and 3 are T-all and A-all, as MaxWell's csv has them; DOVER's loader "
                "calls them a and t"
            ],
        )
    if score is not None:
        raise ManifestError(f"{sheet.path} has no header, so --score cannot name a column")
    for column, numbers in (("2", seconds), ("3", rates)):
        what = "a duration in seconds" if column == "2" else "frames per second"
        for row, number in enumerate(numbers):
            if number is not None and number != -1 and not 0 < number < 1e5:
                raise ManifestError(
                    f"{sheet.cell_place(row, column)}: {number:g} is not {what}, nor -1 for "
                    "unknown; four columns without a header are `name, duration, fps, mos` "
                    "(FAST-VQA), or MaxWell's `name, T-all, A-all, O` where all scores are below 6"
                )
    return _labels(
        sheet,
        layout="FAST-VQA's labels.txt: name, duration, fps, mos",
        names=sheet.columns["1"],
        name_column="1",
        score="4",
    )


def _labels(
    sheet: Sheet,
    *,
    layout: str,
    names: Sequence[str] | None,
    name_column: str,
    score: str,
    others: Sequence[str] = (),
    std: str | None = None,
    ratings: str | None = None,
    scene_column: str | None = None,
    parts: Sequence[Part | None] | None = None,
    split_columns: Mapping[str, tuple[Part, ...]] | None = None,
    part_column: str | None = None,
    notes: Sequence[str] = (),
) -> Labels:
    notes = list(notes)
    split_columns = split_columns or {}
    scores = sheet.numbers(score, missing=("",) if sheet.has_header else ())
    used = [name_column, score, *others, std, ratings, scene_column, part_column, *split_columns]
    if sheet.unended and list(sheet.columns)[-1] in used:
        _refuse_cut_cell(sheet)
        notes.append(
            f"the last line ({sheet.row_place(len(sheet) - 1)}) has no line end; its cells are "
            "taken as they stand, which nobody can tell from a number that was cut off"
        )
    n = len(scores)
    if names is None:
        width = max(4, len(str(n)))
        named = [f"row-{row + 1:0{width}d}" for row in range(n)]
        notes.append(
            "the file names no videos: rows are called row-0001 and so on, and match features by "
            "order only"
        )
    else:
        named = list(names)
        _refuse_names(sheet, name_column, named)
    missing = scores.count(None)
    if missing:
        notes.append(f"{missing} of {n} rows have no score")
    side = {column: sheet.numbers(column, missing=MISSING) for column in others}
    deviations = sheet.numbers(std, missing=MISSING) if std is not None else [None] * n
    counts = sheet.numbers(ratings, missing=MISSING) if ratings is not None else [None] * n
    for row, (deviation, count) in enumerate(zip(deviations, counts, strict=True)):
        if deviation is not None and deviation < 0:
            raise ManifestError(
                f"{sheet.cell_place(row, std or '')}: a standard deviation is not {deviation:g}"
            )
        if count is not None and (count < 0 or not count.is_integer()):
            raise ManifestError(
                f"{sheet.cell_place(row, ratings or '')}: a number of ratings is not {count:g}"
            )
    scenes, rule, scene_note = _scenes(sheet, named, scene_column)
    orders, order_note = _orders(sheet, n)
    if simple(score).startswith("dmos"):
        notes.append(f"{score}: a difference to a reference; in some data sets less is better")
    if sheet.has_header and score != name_column:
        layout = f"{layout}: {name_column + ', ' if name_column else ''}{score}"
    return Labels(
        path=sheet.path,
        layout=f"{layout}; {sheet.seen}",
        rows=tuple(
            Label(
                name=named[row],
                mos=scores[row],
                place=sheet.row_place(row),
                scene=scenes[row],
                part=parts[row] if parts is not None else None,
                std=deviations[row],
                ratings=None if (count := counts[row]) is None else int(count),
                other_scores={
                    column: value
                    for column, values in side.items()
                    if (value := values[row]) is not None
                },
            )
            for row in range(n)
        ),
        score=score if sheet.has_header or not score.isdecimal() else f"column {score}",
        scene_rule=rule,
        named=names is not None,
        split_columns=split_columns,
        orders=orders,
        scene_note=scene_note,
        notes=(*notes, *filter(None, (order_note,))),
    )


def _refuse_names(sheet: Sheet, column: str, names: Sequence[str]) -> None:
    first: dict[tuple[str, ...], int] = {}
    for row, name in enumerate(names):
        if not name:
            raise ManifestError(f"{sheet.cell_place(row, column)} is empty; it names the video")
        earlier = first.setdefault(parts_of(name), row)
        if earlier != row:
            other = f", as {names[earlier]!r}" if names[earlier] != name else ""
            raise ManifestError(
                f"{sheet.cell_place(row, column)}: video {name!r} is rated in "
                f"{sheet.row_place(earlier)} already{other}"
            )


def _refuse_cut_cell(sheet: Sheet) -> None:
    """A file that ends within its last line may have lost the end of its last cell.

    Whether it has cannot be told of a number as such: 11.121 below 12.5742 is whole.  Lost it
    surely has where it ends in the middle of a number, or where all of many other cells have so
    many decimals and this one has fewer: such a column is written with a fixed number of them.
    (Shortest decimals of 50 numbers are all of one length once in 200 files.)

    Raises:
        ManifestError: with the place of the cell.
    """
    last = list(sheet.columns)[-1]
    *others, cell = sheet.columns[last]
    lengths = {_decimals(other) for other in others}
    fixed = len(others) >= FIXED_CELLS and len(lengths) == 1 and is_number(others[0])
    within = cell.endswith((".", ",")) and not any(one.endswith((".", ",")) for one in others)
    if within or (fixed and _decimals(cell) < min(lengths)) or (not cell and all(others)):
        raise ManifestError(
            f"{sheet.cell_place(len(sheet) - 1, last)}: the file ends within its last line, and "
            f"{cell!r} is cut off; if it is whole, end the line"
        )


def _decimals(cell: str) -> int:
    """Digits after the point or decimal comma."""
    return len(cell.replace(",", ".").partition(".")[2])


def _scenes(
    sheet: Sheet, names: Sequence[str], column: str | None
) -> tuple[list[str | None], str, str]:
    """Scene of each row, the rule, and a note; what the file states goes before its names."""
    note = ""
    if column is not None:
        cells = sheet.columns[column]
        if len(set(cells)) < len(cells):
            return [cell or None for cell in cells], f"column {column}", ""
        note = f"{column} differs in every row, so it groups nothing into scenes"
    by_name = scenes_by_name(names)
    if by_name is not None:
        return list(by_name.scenes), by_name.rule, by_name.caution
    return [None] * len(names), "", note


def _orders(sheet: Sheet, n: int) -> tuple[Orders | None, str]:
    """The `index` of a .mat file, and a note where it cannot be read.

    Two families of files mean two things by it: VSFA and MDTVSFA hold orders of reference ids from
    1; SimpleVQA and MinimalisticVQA of row numbers from 0.  The axis along which each line is a
    permutation tells which way it lies, and what is permuted tells what it means.
    """
    matrix = next(
        (value for name, value in sheet.matrices.items() if simple(name) == "index"), None
    )
    if matrix is None:
        return None, ""
    rows = np.arange(n, dtype=np.int64)
    numbers = rows.astype(np.float64)
    readings: list[tuple[IndexMeaning, NDArray[np.float64], NDArray[np.int64]]] = [
        ("row numbers from 0", numbers, rows),
        ("row numbers from 1", numbers + 1, rows),
    ]
    for name, cells in sheet.columns.items():
        if simple(name) == "refids" and len(cells) == n:
            ids, groups = np.unique(np.array(sheet.numbers(name), np.float64), return_inverse=True)
            readings.insert(0, ("reference ids", ids, groups.astype(np.int64)))
    found: list[Orders] = []
    for meaning, values, groups in readings:
        for lines in (matrix, matrix.T):
            if lines.shape[1] == len(values) and np.array_equal(
                np.sort(lines, axis=1), np.broadcast_to(values, lines.shape)
            ):
                orders = Orders(groups, np.searchsorted(values, lines).astype(np.int64), meaning)
                if not any(_same(orders, other) for other in found):
                    found.append(orders)
        if found:  # reference ids come first: where they fit, row numbers would be a coincidence
            break
    if len(found) == 1:
        return found[0], ""
    shape = " x ".join(map(str, matrix.shape))
    return None, (
        f"index [{shape}] is not used: with numbers from {matrix.min():g} to {matrix.max():g} it "
        f"holds {'no' if not found else 'two kinds of'} orders of these {n} videos"
    )


def _same(one: Orders, two: Orders) -> bool:
    return np.array_equal(one.groups, two.groups) and np.array_equal(one.orders, two.orders)
