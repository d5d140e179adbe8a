"""Records of runs: one JSON line per run, from which every table is made."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from pipelines.evaluate import SplitResult, Trial
from pipelines.report import seen_by_weights, unknown_provenance
from regressors.significance import confidence_of_median
from store.errors import RecipeError, naming, unknown_name

METRICS = ("srcc", "krcc", "plcc", "rmse", "plcc_raw", "plcc_extremes")
LESS_IS_BETTER = frozenset(["rmse"])
SHOWN = ("srcc", "krcc", "plcc", "rmse")
"""Metrics of a table."""
SPREAD = ("srcc", "plcc")
"""Metrics whose deviation stands in Markdown and LaTeX beside the median."""


def _from_null(value: object) -> object:
    return math.nan if value is None else value


# JSON has no NaN: a metric that is not defined is null.
Number = Annotated[
    float,
    BeforeValidator(_from_null),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Statistics(_Strict):
    """One metric of one head over all splits where it is defined."""

    median: Number
    mean: Number
    std: Number
    """Of the population, as the field's code has it."""
    confidence: tuple[Number, Number]
    """95 % bootstrap interval of the median."""


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


class Record(_Strict):
    """One run: some heads on some splits of the features of some videos."""

    vqbank_results: Literal[2] = 2
    title: str
    score_name: str
    features: dict[str, str]
    """Feature key by role."""
    provenance_unknown: list[str]
    """Features that were imported, so that nobody knows how they were made."""
    filled: dict[str, int]
    """By feature, videos with values that were filled at the import by means over all videos."""
    random_weights: bool
    seen_by_weights: list[str]
    """Data sets that the weights of a feature were trained on."""
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
    test_videos: list[int]
    """Per split."""
    train_videos: list[int]
    number_selected_by: Literal["median over all splits"] = "median over all splits"
    heads: list[HeadRecord]

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
        random_weights=trial.has_random_weights,
        seen_by_weights=seen_by_weights(trial, tested),
        labels=f"{labels.path.name}: {labels.layout}" if labels is not None else None,
        videos=len(ids),
        splits=trial.protocol_text,
        splits_name=trial.splits_name,
        splits_sha256=_sha256(sides),
        mos_sha256=_sha256(scores),
        mos_kind=labels.kind if labels is not None else "",
        test_videos=[len(split.test) for split in splits],
        train_videos=[len(split.train) for split in splits],
        heads=[
            _head_record(trial, name, [result for result in results if result.head == name])
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
    return HeadRecord(
        name=name,
        parameters=json.loads(json.dumps(trial.heads[name].get_params())),
        selection=[result.selection for result in results],
        undefined=int(np.isnan(per_split["srcc"]).sum()),
        statistics={metric: _statistics(values) for metric, values in per_split.items()},
        per_split={metric: values.tolist() for metric, values in per_split.items()},
        fits=[result.metrics.fit for result in results],
        predictions={
            trial.table.videos[row].id: sums[row, 0] / sums[row, 1]
            for row in np.flatnonzero(sums[:, 1]).tolist()
        },
    )


def _statistics(values: NDArray[np.float64]) -> Statistics:
    defined = values[np.isfinite(values)]
    if len(defined) == 0:
        nan = math.nan
        return Statistics(median=nan, mean=nan, std=nan, confidence=(nan, nan))
    return Statistics(
        median=float(np.median(defined)),
        mean=float(defined.mean()),
        std=float(defined.std()),
        confidence=confidence_of_median(defined),
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(step) for step in problem["loc"])
            raise RecipeError(
                f"{path}:{number}: no record of a run: {place} {problem['msg'].lower()}"
            ) from error
    if not records:
        raise RecipeError(f"{path} has no records; `vqbank evaluate --json {path.name}` writes one")
    return records


# Tables.  One row per head of each run; runs of equal videos and splits are compared.


def _rows(records: Sequence[Record]) -> Iterator[tuple[Record, HeadRecord]]:
    return ((record, head) for record in records for head in record.heads)


def _names(record: Record) -> str:
    return " + ".join(key.partition("@")[0] for key in record.features.values())


def _marks(record: Record) -> list[str]:
    return [
        *(["random weights"] if record.random_weights else []),
        *(["provenance unknown"] if record.provenance_unknown else []),
        *(
            f"{count} videos of {name} filled with means over all videos, tested ones included"
            for name, count in record.filled.items()
        ),
        *(["weights saw the test data"] if record.seen_by_weights else []),
    ]


def to_csv(records: Sequence[Record]) -> str:
    """Every statistic of every head, one line each.

    `low` and `high` are the ends of the median's 95 % bootstrap interval.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    statistics = ("median", "mean", "std")
    rows.writerow(
        ["title", "features", "head", "splits", "videos"]
        + [f"{m}_{s}" for m in METRICS for s in (*statistics, "low", "high")]
        + ["undefined", "marks", "selection"]
    )
    for record, head in _rows(records):
        numbers = [
            f"{number:.6f}"
            for own in (head.statistics[metric] for metric in METRICS)
            for number in (*(getattr(own, name) for name in statistics), *own.confidence)
        ]
        own = [record.title, "+".join(record.features.values()), head.name]
        counts = [record.splits_name, record.videos]
        end = [head.undefined, "; ".join(_marks(record)), _selection(head)]
        rows.writerow([*own, *counts, *numbers, *end])
    return text.getvalue()


def to_markdown(records: Sequence[Record]) -> str:
    """Medians and deviations; the best of equal splits is bold, the second underlined."""
    return _table(
        records,
        row=lambda cells: f"| {' | '.join(cells)} |",
        rule=f"|{' --- |' * (2 + len(SHOWN))}",
        emphasis=("**{}**", "<u>{}</u>"),
        plus_minus="±",
        escape=lambda text: text.replace("|", "\\|"),
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
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


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
    rows = list(_rows(records))
    for number, (record, head) in enumerate(rows):
        cells = [escape(_names(record)), escape(head.name)]
        marks = _marks(record)
        if marks:
            cells[0] += "$^*$" if latex else " \\*"
            notes.append(f"{_names(record)}: {', '.join(marks)}")
        for metric in SHOWN:
            statistics = head.statistics[metric]
            text = f"{statistics.median:.4f}"
            place = places[metric].get(number)
            if place is not None:
                text = emphasis[place].format(text)
            if metric in SPREAD:
                text += f" {plus_minus} {statistics.std:.4f}"
            cells.append(text)
        lines.append(row(cells))
    protocols = dict.fromkeys(record.splits for record in records)
    how = [f"Medians and standard deviations over splits. {text}" for text in protocols]
    sure = [f"{_names(record)}, {head.name}: {_confidence(head)}" for record, head in rows]
    chosen = [f"{head.name}: {_selection(head)}" for _, head in rows]
    said = dict.fromkeys([*notes, *how, *sure, *chosen])
    end = [f"% {note}" for note in said] if latex else ["", *(f"- {note}" for note in said)]
    return "\n".join([*lines, *end]) + "\n"


def _confidence(head: HeadRecord) -> str:
    intervals = (
        f"{metric.upper()} {low:.4f} to {high:.4f}"
        for metric in SPREAD
        for low, high in [head.statistics[metric].confidence]
    )
    return f"95 % bootstrap interval of the median: {', '.join(intervals)}"


def _selection(head: HeadRecord) -> str:
    rules = list(dict.fromkeys(head.selection))
    return rules[0] if len(rules) == 1 else f"{rules[0]} (in the first split; differs by split)"


def _places(records: Sequence[Record]) -> dict[str, dict[int, int]]:
    """By metric, which rows are best (0) and second (1) among equal splits and scores."""
    rows = list(_rows(records))
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (record, _) in enumerate(rows):
        groups.setdefault((record.splits_sha256, record.mos_sha256), []).append(number)
    places: dict[str, dict[int, int]] = {metric: {} for metric in SHOWN}
    for metric in SHOWN:
        sign = 1 if metric in LESS_IS_BETTER else -1
        for numbers in groups.values():
            medians = {n: rows[n][1].statistics[metric].median for n in numbers}
            # As they are printed: what looks equal is marked equal.
            shown = sorted({round(sign * m, 4) for m in medians.values() if math.isfinite(m)})
            if len(numbers) < 2:
                continue
            for n, median in medians.items():
                if math.isfinite(median) and round(sign * median, 4) in shown[:2]:
                    places[metric][n] = shown.index(round(sign * median, 4))
    return places


def to_ntire(records: Sequence[Record]) -> str:
    """The form in which the NTIRE challenges take predictions, of videos that splits tested.

    Each has the mean over the splits that test it.  Videos without a score are in no test part:
    for these, `vqbank predict -o` writes the same form with a head that was trained on all others.

    Raises:
        RecipeError: if the records hold more than one head, of which one has to be chosen.
    """
    rows = list(_rows(records))
    if len(rows) != 1:
        heads = ", ".join(head.name for _, head in rows)
        raise RecipeError(f"a submission holds one head, not {heads}; choose by --head")
    ((_, head),) = rows
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
