"""Records of runs: one JSON line per run, from which every table is made."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from vqbank.pipelines.experiments.evaluate import SplitResult, Trial
from vqbank.pipelines.results.provenance import seen_by_weights, unknown_provenance, unknown_weights
from vqbank.pipelines.splits.split import first_alike
from vqbank.pipelines.terminal import counted, plain
from vqbank.regressors.significance import FEWEST, confidence_of_median
from vqbank.store.documents import MOST_JSON_BYTES
from vqbank.store.errors import RecipeError, in_words, naming, unknown_name
from vqbank.store.ordinary import open_ordinary

METRICS = ("srcc", "krcc", "plcc", "rmse", "plcc_raw", "plcc_extremes")
LESS_IS_BETTER = frozenset(["rmse"])
SHOWN = ("srcc", "krcc", "plcc", "rmse")
"""Metrics of a table."""
SEEN_MARK = "*"
"""At a result on data that the weights of a feature were trained on."""
SPREAD = ("srcc", "plcc")
"""Metrics whose deviation stands in Markdown and LaTeX beside the median."""


NO_INTERVAL = f"fewer than {FEWEST} different test parts with a value, or all values agree"


def _from_null(value: object) -> object:
    return math.nan if value is None else value


# JSON has no NaN: a metric that is not defined is null.
Number = Annotated[
    float,
    BeforeValidator(_from_null),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]
Rows = Annotated[int, Field(ge=1)]
"""How many videos a part of a split has."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Statistics(_Strict):
    """One metric of one head over all splits where it is defined.

    Where predictions or scores are constant, SRCC, KRCC and PLCC are not; RMSE is, that of the
    predictions as they are, and it counts: a head that gives up is not to look better for it.
    """

    median: Number
    mean: Number
    std: Number
    """Of the population, as the field's code has it; NaN of one split, which tells of no spread."""
    confidence: tuple[Number, Number]
    """95 % bootstrap interval of the median over splits of different test parts; NaN where they
    are too few or agree (`vqbank.regressors.significance.confidence_of_median`)."""


class HeadRecord(_Strict):
    """One head of a run."""

    name: str
    parameters: dict[str, object]
    selection: list[str]
    """How hyper-parameters or epochs were chosen, per split; never on test rows."""
    undefined: int
    """Splits without a correlation, because predictions or scores were constant."""
    statistics: dict[str, Statistics]
    """By metric."""
    per_split: dict[str, list[Number]]
    """By metric, one value per split."""
    fits: list[str]
    """How the logistic was fitted, per split; empty where it converged from the usual start."""
    predictions: dict[str, float]
    """By video id, the mean over the splits that test it."""

    def problem(self, splits: int) -> str:
        """What no run of so many splits has written; empty where all is as it should be."""
        for name, by_metric in (("statistics", self.statistics), ("per_split", self.per_split)):
            if lacking := set(METRICS) - by_metric.keys():
                return f"{name} of {self.name} have no {min(lacking)}"
        counts = {**{m: len(v) for m, v in self.per_split.items()}, "fits": len(self.fits)}
        for name, count in {**counts, "selection": len(self.selection)}.items():
            if count != splits:
                return f"{name} of {self.name} has {count} values for {splits} splits"
        return ""


class Record(_Strict):
    """One run: some heads on some splits of the features of some videos."""

    vqbank_results: Literal[2, 3] = 3
    title: str
    score_name: str
    features: dict[str, str]
    """Feature key by role."""
    provenance_unknown: list[str]
    """Features that were imported, so that nobody knows how they were made."""
    filled: dict[str, int]
    """By feature, videos with values that were filled at the import by means over all videos."""
    left_out: dict[str, int] = {}
    """By feature, rows of its file that the import left out: none of their values was finite."""
    random_weights: bool
    seen_by_weights: list[str]
    """Data sets that the weights of a feature were trained on."""
    weights_unknown: list[str] = []
    """Features of whose weights nobody knows what they were trained on; not told before 3."""
    taken_for: str = ""
    """The bank's data set that videos were taken to be of, where their names state none."""
    labels: str | None
    """The label file's name and layout, where the scores come from one."""
    videos: int
    splits: str
    """The protocol in a sentence."""
    splits_name: str
    splits_sha256: str
    """Of the ids on every side: equal for equal splits of the same videos in any order."""
    mos_sha256: str
    """Of every video's id and score: numbers of other scores are other numbers."""
    mos_kind: str
    """Which kind of MOS, where the data set has several and the label file tells."""
    test_videos: list[Rows] = Field(min_length=1)
    """Per split."""
    train_videos: list[Rows]
    same_test_as: list[int] = []
    """Per split the number of the first one with the same test part; not told before 3."""
    directions: list[str] = []
    """Per split, from which data sets to which, where whole ones are left out."""
    number_selected_by: Literal["median over all splits"] = "median over all splits"
    heads: list[HeadRecord] = Field(min_length=1)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """What is stated per split is stated of every split: who reads a record counts on it."""
        splits = len(self.test_videos)
        counts = {"train_videos": [splits], "same_test_as": [0, splits], "directions": [0, splits]}
        for name, may_be in counts.items():
            if (count := len(getattr(self, name))) not in may_be:
                raise ValueError(f"{name} has {count} values for {splits} splits")
        if any(not 0 <= first <= place for place, first in enumerate(self.same_test_as)):
            raise ValueError("same_test_as names a split that is no earlier one")
        for problem in filter(None, (head.problem(splits) for head in self.heads)):
            raise ValueError(problem)
        return self

    @property
    def different(self) -> list[int]:
        """Numbers of the splits whose test part no earlier one has: what counts as evidence."""
        return sorted(set(self.same_test_as or range(len(self.test_videos))))

    def head(self, name: str) -> HeadRecord:
        """A head by its name.

        Raises:
            RecipeError: if the run has no such head.
        """
        for head in self.heads:
            if head.name == name:
                return head
        raise RecipeError(unknown_name("head of this run", name, [h.name for h in self.heads]))


def record_of(trial: Trial, results: Sequence[SplitResult]) -> Record:
    """What a run found, for the file."""
    splits = trial.splits
    ids = [video.id for video in trial.table.videos]
    sides = [
        [sorted(ids[row] for row in side.tolist()) for side in (s.train, s.validation, s.test)]
        for s in splits
    ]
    scores = sorted(zip(ids, trial.mos.tolist(), strict=True))
    tested = np.unique(np.concatenate([split.test for split in splits]))
    labels = trial.labels
    return Record(
        title=trial.title,
        score_name=trial.score_name,
        features={role: spec.key for role, spec in trial.table.specs.items()},
        provenance_unknown=unknown_provenance(trial),
        filled=dict(trial.filled),
        left_out=dict(trial.left_out),
        random_weights=trial.has_random_weights,
        seen_by_weights=seen_by_weights(trial, tested),
        weights_unknown=unknown_weights(trial),
        taken_for=trial.taken_for,
        labels=f"{labels.path.name}: {labels.layout}" if labels is not None else None,
        videos=len(ids),
        splits=trial.protocol_text,
        splits_name=trial.splits_name,
        splits_sha256=_sha256(sides),
        mos_sha256=_sha256(scores),
        mos_kind=labels.kind if labels is not None else "",
        test_videos=[len(split.test) for split in splits],
        train_videos=[len(split.train) for split in splits],
        same_test_as=first_alike(splits),
        directions=trial.directions,
        heads=[
            _head_record(
                trial,
                name,
                sorted((r for r in results if r.head == name), key=lambda r: r.split),
            )
            for name in trial.heads
        ],
    )


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _head_record(trial: Trial, name: str, results: Sequence[SplitResult]) -> HeadRecord:
    per_split = {
        metric: np.array([getattr(result.metrics, metric) for result in results])
        for metric in METRICS
    }
    sums = np.zeros((len(trial.table), 2))
    for result in results:
        sums[result.rows] += np.stack([result.predicted, np.ones(len(result.rows))], axis=1)
    different = sorted(set(first_alike(trial.splits)))
    return HeadRecord(
        name=name,
        parameters=json.loads(json.dumps(trial.heads[name].get_params())),
        selection=[result.selection for result in results],
        undefined=int(np.isnan(per_split["srcc"]).sum()),
        statistics={m: statistics_of(values, different) for m, values in per_split.items()},
        per_split={metric: values.tolist() for metric, values in per_split.items()},
        fits=[result.metrics.fit for result in results],
        predictions={
            trial.table.videos[row].id: sums[row, 0] / sums[row, 1]
            for row in np.flatnonzero(sums[:, 1]).tolist()
        },
    )


def statistics_of(values: NDArray[np.float64], different: Sequence[int]) -> Statistics:
    """The one place where values of splits become statistics.

    Args:
        values: [k], one per split; NaN is left out.
        different: splits that are evidence of their own, for the interval.
    """
    defined = values[np.isfinite(values)]
    return Statistics(
        median=float(np.median(defined)) if len(defined) else math.nan,
        mean=float(defined.mean()) if len(defined) else math.nan,
        std=float(defined.std()) if len(defined) > 1 else math.nan,
        confidence=confidence_of_median(values[list(different)]),
    )


def write_record(record: Record, path: Path) -> None:
    """Write one JSON document; a `.jsonl` file gets one more line."""
    line = f"{record.model_dump_json()}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a" if path.suffix == ".jsonl" else "w", encoding="utf-8") as file:
        file.write(line)


def read_records(path: Path) -> list[Record]:
    """What `write_record` wrote.

    Raises:
        RecipeError: naming file and line.
    """
    records = []
    try:
        with open_ordinary(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_JSON_BYTES + 1), b""), 1):
                if len(line) > MOST_JSON_BYTES:
                    raise RecipeError(f"{path}:{number}: longer than any record of a run")
                if line.strip():
                    records.append(_record(line, f"{path}:{number}"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {in_words(error)}") from error
    if not records:
        raise RecipeError(f"{path} has no records; `vqbank evaluate --json {path.name}` writes one")
    return records


def _record(line: bytes, where: str) -> Record:
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{step}: " for step in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{where}: no record of a run: {place}{what}") from error


# Tables.  Runs of equal videos and splits are compared.


class Row(NamedTuple):
    """A row of a table: a head of a run over all splits, or in one direction between data sets."""

    record: Record
    head: HeadRecord
    direction: str
    """Such as "LSVQ → KVQ"; "all" of the row over all of them; empty where there are none."""
    statistics: Mapping[str, Statistics]
    splits: int
    undefined: int

    @property
    def label(self) -> str:
        """The head, and the direction where there are some."""
        return f"{self.head.name}, {self.direction}" if self.direction else self.head.name

    def interval(self, metric: str) -> str:
        """The median's, for tables."""
        low, high = self.statistics[metric].confidence
        return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row per head of each run; before it, one for each direction between data sets."""
    rows = []
    for record in records:
        for head in record.heads:
            for split, direction in enumerate(record.directions):
                values = {m: np.array(v[split : split + 1]) for m, v in head.per_split.items()}
                own = {m: statistics_of(value, [0]) for m, value in values.items()}
                rows.append(Row(record, head, direction, own, 1, int(np.isnan(values["srcc"][0]))))
            every = "all" if record.directions else ""
            splits = len(head.per_split["srcc"])
            rows.append(Row(record, head, every, head.statistics, splits, head.undefined))
    return rows


def shown(number: float) -> str:
    """As every table has it: four digits, and what is not defined as a dash."""
    return "-" if math.isnan(number) else f"{number:.4f}"


def undefined_text(records: Sequence[Record]) -> list[str]:
    """What a table has to say where correlations of some splits are not defined."""
    if not any(head.undefined for record in records for head in record.heads):
        return []
    return [
        "Where predictions or scores are constant, SRCC, KRCC and PLCC are undefined: such splits "
        "count in RMSE alone, which is that of the predictions as they are."
    ]


def cautions(record: Record) -> list[str]:
    """What terminal and page say below their numbers, a sentence or two each."""
    lines = undefined_text([record])
    if seen := ", ".join(record.seen_by_weights):
        lines.append(
            f"{SEEN_MARK} The weights of a feature were trained on {seen}. These numbers are too "
            "good for data that no network has seen."
        )
    if unknown := ", ".join(record.weights_unknown):
        lines.append(f"What the weights of {unknown} were trained on is not known.")
    if imported := ", ".join(record.provenance_unknown):
        lines.append(f"Provenance unknown, because imported: {imported}.")
    if record.taken_for:
        lines.append(
            f"The videos' names do not state {record.taken_for}; they were taken for its videos "
            "in the bank."
        )
    lines += [
        f"{name}: {counted(count, 'video')} had values that were not finite; their import "
        "filled these with means over all videos, tested ones included."
        for name, count in record.filled.items()
    ]
    lines += [
        f"{name}: {counted(count, 'row')} of its file had no finite value; their import "
        "left them out."
        for name, count in record.left_out.items()
    ]
    fits = [fit for head in record.heads for fit in head.fits]
    lines += [
        f"PLCC and RMSE of {fits.count(fit)} of {len(fits)} fits: {fit}."
        for fit in dict.fromkeys(filter(None, fits))
    ]
    return lines


def mapping_text(record: Record) -> str:
    """What PLCC and RMSE of a run were taken after; `cautions` tells of other fits one by one."""
    fits = [fit for head in record.heads for fit in head.fits]
    logistic = sum(not fit or fit.startswith("logistic") for fit in fits)
    if not logistic:
        return "PLCC and RMSE after no logistic, see above."
    others = "" if logistic == len(fits) else " where nothing else is said above"
    return f"PLCC and RMSE after the 4-parameter logistic{others}."


def _names(record: Record) -> str:
    return " + ".join(key.partition("@")[0] for key in record.features.values())


def _marks(record: Record) -> list[str]:
    return [
        *(["random weights"] if record.random_weights else []),
        *(["provenance unknown"] if record.provenance_unknown else []),
        *(
            f"{counted(count, 'video')} of {name} filled with means over all videos, "
            "tested ones included"
            for name, count in record.filled.items()
        ),
        *(
            f"{counted(count, 'row')} of {name} without any finite value left out"
            for name, count in record.left_out.items()
        ),
        *([f"taken for videos of {record.taken_for}"] if record.taken_for else []),
        *(["weights saw the test data"] if record.seen_by_weights else []),
    ]


def to_csv(records: Sequence[Record]) -> str:
    """Every statistic of every row, one line each.

    `low` and `high` are the ends of the median's 95 % bootstrap interval.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    statistics = ("median", "mean", "std")
    lines.writerow(
        ["title", "features", "head", "direction", "splits", "videos"]
        + [f"{m}_{s}" for m in METRICS for s in (*statistics, "low", "high")]
        + ["split_count", "undefined", "marks", "selection"]
    )
    for row in rows_of(records):
        record, head = row.record, row.head
        numbers = [
            f"{number:.6f}"
            for own in (row.statistics[metric] for metric in METRICS)
            for number in (*(getattr(own, name) for name in statistics), *own.confidence)
        ]
        own = [record.title, "+".join(record.features.values()), head.name, row.direction]
        counts = [record.splits_name, record.videos]
        end = [row.splits, row.undefined, "; ".join(_marks(record)), selection_text(head)]
        lines.writerow([*own, *counts, *numbers, *end])
    return text.getvalue()


def to_markdown(records: Sequence[Record]) -> str:
    """Medians and deviations; the best of equal splits is bold, the second underlined."""
    return _table(
        records,
        row=lambda cells: f"| {' | '.join(cells)} |",
        rule=f"|{' --- |' * (2 + len(SHOWN))}",
        emphasis=("**{}**", "<u>{}</u>"),
        plus_minus="±",
        escape=_markdown,
    )


def to_latex(records: Sequence[Record]) -> str:
    """A `tabular` for booktabs; the best of equal splits is bold, the second underlined."""
    body = _table(
        records,
        row=lambda cells: f"{' & '.join(cells)} \\\\",
        rule="\\midrule",
        emphasis=("\\textbf{{{}}}", "\\underline{{{}}}"),
        plus_minus="$\\pm$",
        escape=_latex,
    )
    lines = [line for line in body.splitlines() if line and not line.startswith("%")]
    notes = [line for line in body.splitlines() if line.startswith("%")]
    start = [f"\\begin{{tabular}}{{ll{'c' * len(SHOWN)}}}", "\\toprule"]
    end = ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*start, *lines, *end, *notes]) + "\n"


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "→": "$\\rightarrow$",
}


_MARKDOWN = {character: f"\\{character}" for character in "\\`*[]|"} | {"<": "&lt;", "&": "&amp;"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in plain(text))


def _markdown(text: str) -> str:
    return "".join(_MARKDOWN.get(character, character) for character in plain(text))


def _table(
    records: Sequence[Record],
    *,
    row: Callable[[list[str]], str],
    rule: str,
    emphasis: tuple[str, str],
    plus_minus: str,
    escape: Callable[[str], str],
) -> str:
    places = _places(records)
    latex = rule.startswith("\\")
    up, down = ("$\\uparrow$", "$\\downarrow$") if latex else ("↑", "↓")
    header = [
        "features",
        "head",
        *(f"{metric.upper()} {down if metric in LESS_IS_BETTER else up}" for metric in SHOWN),
    ]
    lines = [row(header), rule]
    notes = []
    rows = rows_of(records)
    for number, one in enumerate(rows):
        cells = [escape(_names(one.record)), escape(one.label)]
        marks = _marks(one.record)
        if marks:
            cells[0] += "$^*$" if latex else " \\*"
            notes.append(f"{_names(one.record)}: {', '.join(marks)}")
        for metric in SHOWN:
            statistics = one.statistics[metric]
            text = shown(statistics.median)
            place = places[metric].get(number)
            if place is not None:
                text = emphasis[place].format(text)
            if metric in SPREAD:
                text += f" {plus_minus} {shown(statistics.std)}"
            cells.append(text)
        lines.append(row(cells))
    protocols = dict.fromkeys(record.splits for record in records)
    how = [f"Medians and standard deviations over splits. {text}" for text in protocols]
    whole = [one for one in rows if one.direction in ("", "all")]
    sure = [f"{_names(one.record)}, {one.head.name}: {_confidence(one)}" for one in whole]
    chosen = [f"{one.head.name}: {selection_text(one.head)}" for one in whole]
    undefined = [
        f"{_names(one.record)}, {one.head.name}: {one.undefined} of {one.splits} splits undefined"
        for one in whole
        if one.undefined
    ]
    said = dict.fromkeys([*notes, *how, *undefined, *undefined_text(records), *sure, *chosen])
    end = (
        [f"% {plain(note)}" for note in said]
        if latex
        else ["", *(f"- {_markdown(note)}" for note in said)]
    )
    return "\n".join([*lines, *end]) + "\n"


def _confidence(row: Row) -> str:
    intervals = [f"{metric.upper()} {row.interval(metric)}" for metric in SPREAD]
    if all(interval.endswith(" -") for interval in intervals):
        return f"no interval of the median: {NO_INTERVAL}"
    return f"95 % bootstrap interval of the median: {', '.join(intervals)}"


def selection_text(head: HeadRecord) -> str:
    """By which rule its numbers were chosen."""
    rules = list(dict.fromkeys(head.selection))
    return rules[0] if len(rules) == 1 else f"{rules[0]} (in the first split; differs by split)"


def _places(records: Sequence[Record]) -> dict[str, dict[int, int]]:
    """By metric, which rows are best (0) and second (1) among equal splits, scores and directions.

    A second only of three rows or more: of two it would be the worst.
    """
    rows = rows_of(records)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for number, row in enumerate(rows):
        same = row.record.splits_sha256, row.record.mos_sha256, row.direction
        groups.setdefault(same, []).append(number)
    places: dict[str, dict[int, int]] = {metric: {} for metric in SHOWN}
    for metric in SHOWN:
        sign = 1 if metric in LESS_IS_BETTER else -1
        for numbers in groups.values():
            # As they are printed: what looks equal is marked equal.
            medians = {n: round(sign * rows[n].statistics[metric].median, 4) for n in numbers}
            finite = [median for median in medians.values() if math.isfinite(median)]
            order = sorted(set(finite))
            marked = 0 if len(numbers) < 2 else 1 if len(finite) < 3 else 2
            for n, median in medians.items():
                if median in order[:marked]:
                    places[metric][n] = order.index(median)
    return places


def to_ntire(records: Sequence[Record]) -> str:
    """The form in which the NTIRE challenges take predictions, of videos that splits tested.

    Each has the mean over the splits that test it.  Videos without a score are in no test part:
    for these, `vqbank predict -o` writes the same form with a head that was trained on all others.

    Raises:
        RecipeError: if the records hold more than one head, of which one has to be chosen.
    """
    heads = [head for record in records for head in record.heads]
    if len(heads) != 1:
        names = ", ".join(head.name for head in heads)
        raise RecipeError(f"a submission holds one head, not {names}; choose by --head")
    (head,) = heads
    return submission(head.predictions)


def submission(scores: Mapping[str, float]) -> str:
    """`filename,score` of scores by video id, the file's name without folders.

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
