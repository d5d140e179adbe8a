"""Tables made of records alone: for the terminal, Markdown, LaTeX and CSV; submissions."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqbank.pipelines.results.record import SEEN_MARK, Record, Row
from vqbank.pipelines.results.set_record import TRAINED_MARK
from vqbank.pipelines.results.statistics import LESS_IS_BETTER, METRICS, NO_INTERVAL, SHOWN, shown
from vqbank.pipelines.terminal import plain
from vqbank.store.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

SPREAD = ("srcc", "plcc")
"""Metrics whose deviation stands in Markdown and LaTeX beside the median or mean."""
MARKS = (SEEN_MARK, TRAINED_MARK)
"""What cautions begin with whose rows have the mark in their label."""
COLUMNS = {"plcc_raw": "plcc_without_mapping", "plcc_extremes": "plcc_of_worst_and_best_fifth"}
"""What CSV calls metrics whose names of a record do not say what they are."""


def result_table(record: Record) -> "Table":
    """The table for a terminal."""
    from rich.table import Table

    from vqbank.pipelines.console import styled

    title = f"{record.title}: {record.statistic} (standard deviation) over {_over([record])}"
    caption = [
        *record.cautions,
        *record.method,
        f"95 %: of the median, by bootstrap over splits; - of {NO_INTERVAL}.",
    ]
    table = Table(title=styled(title), caption=styled(*caption))
    table.add_column("head")
    for metric in SHOWN:
        table.add_column(metric.upper(), justify="right")
    table.add_column("SRCC, 95 %", justify="right")
    table.add_column("splits", justify="right")
    for row in record.rows:
        cells = [f"{shown(row.number(m))} ({shown(row.statistics[m].std)})" for m in SHOWN]
        table.add_row(row.label, *cells, row.interval("srcc"), row.splits_text)
    return table


def to_csv(records: Sequence[Record]) -> str:
    """Every statistic of every row, one line each.

    `low` and `high` are the ends of the median's 95 % bootstrap interval; `statistic` is the one
    that other tables print; `videos` are those of the run, or of the test set.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    statistics = ("median", "mean", "std")
    lines.writerow(
        ["title", "features", "head", "direction", "test_set", "splits", "videos", "statistic"]
        + [f"{COLUMNS.get(m, m)}_{s}" for m in METRICS for s in (*statistics, "low", "high")]
        + ["split_count", "undefined", "seen_by_weights", "notes", "selection", "parameters"]
    )
    for record, row in _rows(records):
        numbers = [
            f"{number:.6f}"
            for metric, own in ((metric, row.statistics[metric]) for metric in METRICS)
            for number in (*(getattr(own, name) for name in statistics), *row.confidence(metric))
        ]
        features = "+".join(record.features_of(row.head).values())
        place = row.direction, row.set_name
        own = [record.title, features, row.head.name, *place]
        videos = record.videos if row.test_set is None else len(row.test_set.ids)
        counts = [record.splits_name, videos, record.statistic]
        notes = " ".join([*record.cautions, *record.method])
        end = [row.splits, row.undefined, row.seen, notes, row.head.rule]
        end.append(json.dumps(row.head.parameters))
        lines.writerow([*own, *counts, *numbers, *end])
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Form:
    """How a language of texts has its tables."""

    escape: Callable[[str], str]
    row: Callable[[Sequence[str]], str]
    rule: str
    note: str
    """What stands before each line below the table."""
    best: str
    second: str
    mark: str
    """The number of a note, in the rows that it speaks of and at its beginning."""
    up: str
    down: str
    plus_minus: str


def to_markdown(records: Sequence[Record]) -> str:
    """Medians or means, as records say, and deviations; of equal splits the best is bold.

    The second is underlined.

    A number at a row is that of a note below; random weights are never the best or the second.
    """
    return "\n".join([*_table(records, MARKDOWN), "", *_notes(records, MARKDOWN)]) + "\n"


def to_latex(records: Sequence[Record]) -> str:
    """A `tabular` for booktabs; the best of equal splits is bold, the second underlined."""
    start = [f"\\begin{{tabular}}{{ll{'c' * len(SHOWN)}}}", "\\toprule"]
    end = ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*start, *_table(records, LATEX), *end, *_notes(records, LATEX)]) + "\n"


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "→": "$\\rightarrow$",
    TRAINED_MARK: "\\textdagger{}",
}
_MARKDOWN = {character: f"\\{character}" for character in "\\`*[]|"} | {"<": "&lt;", "&": "&amp;"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in plain(text))


def _markdown(text: str) -> str:
    return "".join(_MARKDOWN.get(character, character) for character in plain(text))


MARKDOWN = Form(
    escape=_markdown,
    row=lambda cells: f"| {' | '.join(cells)} |",
    rule=f"|{' --- |' * (2 + len(SHOWN))}",
    note="- ",
    best="**{}**",
    second="<u>{}</u>",
    mark="<sup>{}</sup>",
    up="↑",
    down="↓",
    plus_minus="±",
)
LATEX = Form(
    escape=_latex,
    row=lambda cells: f"{' & '.join(cells)} \\\\",
    rule="\\midrule",
    note="% ",
    best="\\textbf{{{}}}",
    second="\\underline{{{}}}",
    mark="\\textsuperscript{{{}}}",
    up="$\\uparrow$",
    down="$\\downarrow$",
    plus_minus="$\\pm$",
)


def _rows(records: Sequence[Record]) -> list[tuple[Record, Row]]:
    return [(record, row) for record in records for row in record.rows]


def _table(records: Sequence[Record], form: Form) -> list[str]:
    """Header, rule, and a line for every row."""
    arrows = {metric: form.down if metric in LESS_IS_BETTER else form.up for metric in SHOWN}
    header = ["features", "head", *(f"{metric.upper()} {arrows[metric]}" for metric in SHOWN)]
    lines = [form.row(header), form.rule]
    rows = _rows(records)
    places, numbers = _places(rows), _numbers(records)
    for number, ((record, row), apart) in enumerate(zip(rows, _apart(rows), strict=True)):
        marks = ",".join(str(numbers[note]) for note in _marked(record, row))
        label = form.escape(row.label + apart) + (f" {form.mark.format(marks)}" if marks else "")
        cells = [form.escape(record.feature_names_of(row.head)), label]
        for metric in SHOWN:
            text = shown(row.number(metric))
            place = places[metric].get(number)
            if place is not None:
                text = (form.best, form.second)[place].format(text)
            if metric in SPREAD:
                text += f" {form.plus_minus} {shown(row.statistics[metric].std)}"
            cells.append(text)
        lines.append(form.row(cells))
    return lines


def _stated(records: Sequence[Record]) -> list[str]:
    """What the printed numbers are: median, mean, or both."""
    return list(dict.fromkeys(record.statistic for record in records))


def _apart(rows: Sequence[tuple[Record, Row]]) -> list[str]:
    """For each row what tells it from others: parameters, where label and features are the same.

    Such as " (folds = 4)"; and the statistic where rows print different ones.
    """
    several = len(_stated([record for record, _ in rows])) > 1
    alike: dict[tuple[str, str], list[Row]] = {}
    for record, row in rows:
        alike.setdefault((row.plain_label, record.feature_names_of(row.head)), []).append(row)
    texts = []
    for record, row in rows:
        others = alike[row.plain_label, record.feature_names_of(row.head)]
        own = row.head.parameters
        differ = [
            name
            for name in own
            if any(other.head.parameters.get(name) != own[name] for other in others)
        ]
        parameters = [f"{name} = {json.dumps(own[name])}" for name in differ]
        said = ", ".join([*([record.statistic] if several else []), *parameters])
        texts.append(f" ({said})" if said else "")
    return texts


def _notes(records: Sequence[Record], form: Form) -> list[str]:
    """What all outputs say of their numbers; each says whose it is where records differ in it.

    Cautions begin with the number that stands in the rows that they speak of.
    """
    said: dict[str, list[Record]] = {}
    for record in records:
        for note in (*record.cautions, *_undefined(record), *record.method, *_intervals(record)):
            said.setdefault(note, []).append(record)
    stated = " or ".join(f"{one}s" for one in _stated(records)).capitalize()
    lines = [f"{stated} and standard deviations over {_over(records)}."]
    numbers, marks = _numbers(records), dict[int, str]()
    for note, of in said.items():
        names = dict.fromkeys(record.feature_names for record in of)
        whose = "" if len(of) == len(records) else f"{', '.join(names)}: "
        lines.append(whose + note)
        if note in numbers:
            marks[len(lines) - 1] = f"{form.mark.format(numbers[note])} "
    # A line of LaTeX is a comment, in which nothing is read but its end.
    escape = plain if form.note == "% " else form.escape
    return [f"{form.note}{marks.get(n, '')}{escape(line)}" for n, line in enumerate(lines)]


def _over(records: Sequence[Record]) -> str:
    """What a row's numbers are of, in the plural."""
    return "splits" if any(record.test_sets for record in records) else "test parts"


def _numbers(records: Sequence[Record]) -> dict[str, int]:
    """A number from 1 on for every caution that rows are marked by, in the order of the notes."""
    cautions = dict.fromkeys(
        note for record in records for note in record.cautions if not note.startswith(MARKS)
    )
    return {note: number for number, note in enumerate(cautions, 1)}


def _marked(record: Record, row: Row) -> list[str]:
    """What a row is marked by; what was seen before has a mark of its own."""
    return [note for note in record.cautions_of(row) if not note.startswith(MARKS)]


def _undefined(record: Record) -> list[str]:
    return [
        f"{row.plain_label}: {row.undefined} of {row.splits} splits undefined."
        for row in record.rows
        if row.undefined and row.direction in ("", "all")
    ]


def _intervals(record: Record) -> list[str]:
    """The median's interval of every head, of the metrics that have a deviation, too."""
    lines = []
    for row in record.rows:
        if row.direction not in ("", "all") or row.test_set is not None:
            continue
        intervals = [f"{metric.upper()} {row.interval(metric)}" for metric in SPREAD]
        known = not all(interval.endswith(" -") for interval in intervals)
        lines.append(
            f"{row.head.name}: 95 % bootstrap interval of the median: {', '.join(intervals)}."
            if known
            else f"{row.head.name}: no interval of the median: {NO_INTERVAL}."
        )
    return lines


def _places(rows: Sequence[tuple[Record, Row]]) -> dict[str, dict[int, int]]:
    """By metric, which rows are best (0) and second (1) among equal splits, scores, directions and
    statistics.

    A second only of three rows or more: of two it would be the worst.  Rows of random weights,
    which say nothing of a network, are neither, and leave the places to others.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, (record, row) in enumerate(rows):
        if record.random_weights:
            continue
        same = record.splits_sha256, row.mos_sha256, row.direction, record.statistic
        groups.setdefault(same, []).append(number)
    places: dict[str, dict[int, int]] = {metric: {} for metric in SHOWN}
    for metric in SHOWN:
        sign = 1 if metric in LESS_IS_BETTER else -1
        for numbers in groups.values():
            # As they are printed: what looks equal is marked equal.
            printed = {n: round(sign * rows[n][1].number(metric), 4) for n in numbers}
            finite = [number for number in printed.values() if math.isfinite(number)]
            order = sorted(set(finite))
            marked = 0 if len(numbers) < 2 else 1 if len(finite) < 3 else 2
            for n, value in printed.items():
                if value in order[:marked]:
                    places[metric][n] = order.index(value)
    return places


def to_ntire(records: Sequence[Record]) -> str:
    """The form in which the NTIRE challenges take predictions, of videos that splits tested.

    Each has the mean over the splits that test it.  Videos without a score are in no test part:
    for these, `vqbank predict -o` writes the same form with a head that was trained on all others.

    Raises:
        RecipeError: if the records hold more than one head, of which one has to be chosen, or no
            split has a test part.
    """
    heads = [(record, head) for record in records for head in record.heads]
    if len(heads) != 1:
        names = ", ".join(head.name for _, head in heads)
        raise RecipeError(f"a submission holds one head, not {names}; choose by --head")
    ((record, head),) = heads
    if not record.tests_itself:
        raise RecipeError(
            f"a submission is of what splits test, and splits {record.splits_name} test nothing; "
            "`vqbank predict -o` writes one of other videos"
        )
    return submission(record.predictions_of(head))


def submission(scores: Mapping[str, float]) -> str:
    """`filename,score` of predictions by video id, the file's name without folders.

    Raises:
        RecipeError: if two videos have the same file name.
    """
    names = [video_id.rpartition("/")[2] for video_id in scores]
    if len(set(names)) < len(names):
        raise RecipeError("two videos have the same file name; a submission cannot tell them apart")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["filename", "score"])
    writer.writerows(
        [name, f"{score:.6f}"] for name, score in zip(names, scores.values(), strict=True)
    )
    return text.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[Record]], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
    "ntire": to_ntire,
}
"""How records are written, by name."""
