"""A record: what one experiment found, from which everything shown is made."""

import math
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from vqbank.pipelines.results.provenance import Source
from vqbank.pipelines.results.statistics import (
    METRICS,
    SHOWN,
    STRICT,
    Number,
    Statistics,
    shown,
)
from vqbank.pipelines.terminal import counted, plain
from vqbank.store.errors import RecipeError, unknown_name
from vqbank.store.words import html_table

KEEPS_PREDICTIONS = 4
"""The first format that keeps predictions per split."""
MOST_SPLITS = 10_000
"""As many as a protocol makes; drawing the interval of so many takes seconds."""
SEEN_MARK = "*"
"""At a result on data that the weights of a feature were trained on."""
FEW_HELD_OUT = 10
"""Of fewer held-out videos an SRCC has a standard error of 1 / sqrt(n - 1), a third and more: what
is chosen by it is little better than drawn."""
Rows = Annotated[int, Field(ge=1)]
"""How many videos a part of a split has."""
Places = list[Annotated[int, Field(ge=0)]]
"""Videos of a record, by their numbers."""


class Mapped(BaseModel):
    """From predictions to MOS units, as fitted before PLCC and RMSE of a split."""

    model_config = STRICT

    kind: Literal["logistic", "linear", "none"]
    parameters: list[float]
    """As `vqbank.regressors.metrics.MosMapping` has them."""


class HeadRecord(BaseModel):
    """One head of a run."""

    model_config = STRICT

    name: str
    parameters: dict[str, object]
    selection: list[str]
    """How hyper-parameters or epochs were chosen, per split; never on test rows."""
    held_out: list[int] = []
    """Per split, on how few held-out videos an epoch was chosen; empty for heads without epochs,
    and not told before 4."""
    undefined: int
    """Splits without a correlation, because predictions or scores were constant."""
    statistics: dict[str, Statistics]
    """By metric."""
    per_split: dict[str, list[Number]]
    """By metric, one value per split."""
    fits: list[str]
    """How the logistic was fitted, per split; empty where it converged from the usual start."""
    mappings: list[Mapped] = []
    """Per split; not told before 4."""
    predicted: list[list[float]] = []
    """Per split, of its test videos in their order; not told before 4."""
    seconds: list[float] = []
    """Per split, what fitting and predicting took; not told before 4."""
    cell: str = ""
    """The hash of all that its numbers depend on; not told before 4."""
    predictions: dict[str, float] = {}
    """By video id, the mean over the splits that test it; of format 4 `Record.predictions_of` makes
    it of `predicted`."""

    @property
    def rule(self) -> str:
        """By which rule its numbers were chosen."""
        rules = list(dict.fromkeys(self.selection))
        return rules[0] if len(rules) == 1 else f"{rules[0]} (in the first split; differs by split)"

    def problem(self, splits: int, *, version: int) -> str:
        """What no run of so many splits has written; empty where all is as it should be."""
        for name, by_metric in (("statistics", self.statistics), ("per_split", self.per_split)):
            if lacking := set(METRICS) - by_metric.keys():
                return f"{name} of {self.name} have no {min(lacking)}"
        counts = {**{m: len(v) for m, v in self.per_split.items()}, "fits": len(self.fits)}
        if version >= KEEPS_PREDICTIONS:
            of_splits = ("predicted", "mappings", "seconds")
            counts |= {name: len(getattr(self, name)) for name in of_splits}
        if self.held_out:
            counts["held_out"] = len(self.held_out)
        for name, count in {**counts, "selection": len(self.selection)}.items():
            if count != splits:
                return f"{name} of {self.name} has {count} values for {splits} splits"
        undefined = sum(math.isnan(value) for value in self.per_split["srcc"])
        if undefined != self.undefined:
            return f"undefined of {self.name} is {self.undefined} where {undefined} splits are"
        return ""

    def __repr__(self) -> str:
        """The medians of what tables show, on one line; predictions alone may be megabytes."""
        medians = ", ".join(
            f"{metric.upper()} {shown(self.statistics[metric].median)}"
            for metric in ("srcc", "krcc", "plcc", "rmse")
        )
        splits = counted(len(self.selection), "split")
        return plain(f"<HeadRecord {self.name!r}: median {medians} over {splits}>")


class Record(BaseModel):
    """One run: some heads on some splits of the features of some videos."""

    model_config = STRICT

    vqbank_results: Literal[2, 3, 4] = 4
    title: str
    score_name: str
    features: dict[str, str]
    """Feature key by role."""
    sources: dict[str, Source] = {}
    """By role; not told before 4."""
    provenance_unknown: list[str]
    """Features that were imported, so that nobody knows how they were made."""
    filled: dict[str, int]
    """By feature, videos with values that were filled at the import by means over all videos."""
    left_out: dict[str, int] = {}
    """By feature, rows of its file that the import left out: none of their values was finite."""
    random_weights: bool
    seen_by_weights: list[str]
    """Data sets that the weights of a feature were trained on."""
    seen_per_split: list[list[str]] = []
    """The same of the test part of each split; not told before 4."""
    weights_unknown: list[str] = []
    """Features of whose weights nobody knows what they were trained on; not told before 3."""
    taken_for: str = ""
    """The bank's data set that videos were taken to be of, where their names state none."""
    labels: str | None
    """The label file's name and layout, where the scores come from one."""
    videos: int
    ids: list[str] = []
    """Of all videos, in the order of the table; not told before 4."""
    mos: list[float] = []
    """Of all videos, on the data set's own scale; not told before 4."""
    splits: str
    """The protocol in a sentence."""
    splits_name: str
    splits_sha256: str
    """Of the ids on every side: equal for equal splits of the same videos in any order."""
    mos_sha256: str
    """Of every video's id and score: numbers of other scores are other numbers."""
    mos_kind: str
    """Which kind of MOS, where the data set has several and the label file tells."""
    test_videos: list[Rows] = Field(min_length=1, max_length=MOST_SPLITS)
    """Per split."""
    train_videos: list[Rows]
    tests: list[Places] = []
    """Per split, the videos that are tested; not told before 4."""
    validations: list[Places] = []
    """Per split, the training videos that the protocol sets aside; not told before 4."""
    same_test_as: list[int] = []
    """Per split the number of the first one with the same test part; not told before 3."""
    directions: list[str] = []
    """Per split, from which data sets to which, where whole ones are left out."""
    number_selected_by: Literal["median over all splits"] = "median over all splits"
    software: dict[str, str] = {}
    """Versions of what computed it; not told before 4."""
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
        version = self.vqbank_results
        problems = (head.problem(splits, version=version) for head in self.heads)
        for problem in filter(None, problems):
            raise ValueError(problem)
        if version >= KEEPS_PREDICTIONS and (problem := self._parts_problem()):
            raise ValueError(problem)
        return self

    def _parts_problem(self) -> str:
        """What the parts of the splits and the predictions on them cannot be; else empty."""
        splits = len(self.test_videos)
        for name in ("tests", "validations", "seen_per_split", "same_test_as"):
            if (count := len(getattr(self, name))) != splits:
                return f"{name} has {count} values for {splits} splits"
        for name in ("ids", "mos"):
            if (count := len(getattr(self, name))) != self.videos:
                return f"{name} has {count} values for {counted(self.videos, 'video')}"
        first: dict[tuple[int, ...], int] = {}
        for split, (test, validation) in enumerate(zip(self.tests, self.validations, strict=True)):
            for rows in (test, validation):
                if any(b <= a for a, b in pairwise(rows)):
                    return f"split {split} does not name its videos in ascending order, each once"
                if rows and rows[-1] >= self.videos:
                    return f"split {split} names video {rows[-1]} of {self.videos}"
            if len(test) != self.test_videos[split]:
                return f"split {split} tests {len(test)} videos, not {self.test_videos[split]}"
            if first.setdefault(tuple(test), split) != self.same_test_as[split]:
                return f"same_test_as of split {split} is not the first with its test part"
            for head in self.heads:
                if (count := len(head.predicted[split])) != len(test):
                    return f"{head.name} predicts {count} of {len(test)} videos of split {split}"
        return ""

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

    def predictions_of(self, head: HeadRecord) -> dict[str, float]:
        """By video id, the mean over the splits that test it."""
        if self.vqbank_results < KEEPS_PREDICTIONS:
            return head.predictions
        sums, counts = np.zeros(self.videos), np.zeros(self.videos)
        for test, predicted in zip(self.tests, head.predicted, strict=True):
            sums[test] += predicted
            counts[test] += 1
        return {
            self.ids[row]: float(sums[row] / counts[row]) for row in np.flatnonzero(counts).tolist()
        }

    @property
    def feature_names(self) -> str:
        """Names of the features without hashes, for tables."""
        return " + ".join(key.partition("@")[0] for key in self.features.values())

    @property
    def rows(self) -> "list[Row]":
        """One row per head; before it, one for each direction between data sets."""
        rows = []
        for head in self.heads:
            for split, direction in enumerate(self.directions):
                values = {m: np.array(v[split : split + 1]) for m, v in head.per_split.items()}
                own = {metric: Statistics.of(value, [0]) for metric, value in values.items()}
                undefined = int(math.isnan(head.per_split["srcc"][split]))
                seen = bool(self.seen_in(split))
                rows.append(Row(self, head, direction, own, 1, undefined, seen))
            every, splits = "all" if self.directions else "", len(self.test_videos)
            seen = bool(self.seen_by_weights)
            rows.append(Row(self, head, every, head.statistics, splits, head.undefined, seen))
        return rows

    def seen_in(self, split: int) -> list[str]:
        """Data sets in the test part of a split that the weights of a feature were trained on.

        Of records before 4, those of any split.
        """
        return self.seen_per_split[split] if self.seen_per_split else self.seen_by_weights

    @property
    def cautions(self) -> list[str]:
        """What has to be said wherever these numbers are shown, a sentence or two each."""
        return [*self._of_all_heads, *self._of_some_heads]

    def cautions_of(self, head: HeadRecord) -> list[str]:
        """Those of the cautions that speak of this head's numbers."""
        some = self._of_some_heads
        return [*self._of_all_heads, *(line for line in some if head.name in some[line])]

    @property
    def _of_all_heads(self) -> list[str]:
        lines = []
        if self.random_weights:
            lines.append("RANDOM WEIGHTS: these numbers say nothing about any network.")
        if seen := ", ".join(self.seen_by_weights):
            lines.append(
                f"{SEEN_MARK} The weights of a feature were trained on {seen}. These numbers are "
                "too good for data that no network has seen."
            )
        if unknown := ", ".join(self.weights_unknown):
            lines.append(f"What the weights of {unknown} were trained on is not known.")
        if imported := ", ".join(self.provenance_unknown):
            lines.append(f"Provenance unknown, because imported: {imported}.")
        if self.taken_for:
            lines.append(
                f"The videos' names do not state {self.taken_for}; they were taken for its videos "
                "in the bank."
            )
        lines += [
            f"{name}: {counted(count, 'video')} had values that were not finite; their import "
            "filled these with means over all videos, tested ones included."
            for name, count in self.filled.items()
        ]
        lines += [
            f"{name}: {counted(count, 'row')} of its file had no finite value; their import "
            "left them out."
            for name, count in self.left_out.items()
        ]
        return lines

    @property
    def _of_some_heads(self) -> dict[str, list[str]]:
        """Cautions that do not speak of every head, with the names of those that they speak of."""
        lines = {}
        if undefined := [head.name for head in self.heads if head.undefined]:
            lines[
                "Where predictions or scores are constant, SRCC, KRCC and PLCC are undefined: such "
                "splits count in RMSE alone, which is that of the predictions as they are."
            ] = undefined
        lines |= {_few_held_out(head): [head.name] for head in self.heads if _few(head)}
        fits = [fit for head in self.heads for fit in head.fits]
        for fit in dict.fromkeys(filter(None, fits)):
            line = f"PLCC and RMSE of {fits.count(fit)} of {len(fits)} fits: {fit}."
            lines[line] = [head.name for head in self.heads if fit in head.fits]
        return lines

    @property
    def method(self) -> list[str]:
        """How the numbers came about, sentence by sentence."""
        fits = [fit for head in self.heads for fit in head.fits]
        logistic = sum(not fit or fit.startswith("logistic") for fit in fits)
        others = "" if logistic == len(fits) else ", where nothing else is said of a fit"
        mapping = f"the 4-parameter logistic{others}" if logistic else "no logistic"
        return [
            self.splits,
            f"SRCC and KRCC of raw predictions; PLCC and RMSE after {mapping}.",
            *(f"{head.name}: {head.rule}." for head in self.heads),
            "Nothing was chosen on test rows.",
        ]

    def __repr__(self) -> str:
        """The medians of all heads, on one line."""
        medians = ", ".join(f"{h.name} {shown(h.statistics['srcc'].median)}" for h in self.heads)
        splits = f"{counted(len(self.test_videos), 'split')} {self.splits_name}"
        return plain(
            f"<Record {self.title!r}: {self.feature_names}, {counted(self.videos, 'video')}, "
            f"{splits}; median SRCC: {medians}>"
        )

    def _repr_html_(self) -> str:
        """A table for notebooks, and what has to be said of it."""
        head = ["head", *(metric.upper() for metric in SHOWN), "SRCC, 95 %", "splits"]
        rows = []
        for row in self.rows:
            numbers = (
                f"{shown(own.median)} ± {shown(own.std)}"
                for own in (row.statistics[metric] for metric in SHOWN)
            )
            rows.append([row.label, *numbers, row.interval("srcc"), row.splits_text])
        said = "".join(f"<p>{escape(plain(line))}</p>" for line in (*self.cautions, *self.method))
        return html_table(f"{self.title}: {self.feature_names}", head, rows) + said


class Row(NamedTuple):
    """A row of a table: a head of a run over all splits, or in one direction between data sets."""

    record: Record
    head: HeadRecord
    direction: str
    """Such as "LSVQ → KVQ"; "all" of the row over all of them; empty where there are none."""
    statistics: Mapping[str, Statistics]
    splits: int
    undefined: int
    seen: bool
    """Whether the weights of a feature were trained on a data set that is tested here."""

    @property
    def label(self) -> str:
        """The head, the direction where there are some, and the mark of what was seen before."""
        name = f"{self.head.name}, {self.direction}" if self.direction else self.head.name
        return f"{name} {SEEN_MARK}" if self.seen else name

    def confidence(self, metric: str) -> tuple[float, float]:
        """The 95 % bootstrap interval of the median, in the unit of the metric; NaN of none.

        Raises:
            RecipeError: if the values per split come to another one than the record says.
        """
        record, stated = self.record, self.statistics[metric]
        # One direction is one split, which has none; before, intervals had other rules.
        if self.direction in ("", "all") and record.vqbank_results >= KEEPS_PREDICTIONS:
            values = np.array(self.head.per_split[metric], np.float64)
            if not stated.has_interval_of(values, record.different):
                raise RecipeError(
                    f"{record.title!r} is no record of a run: its splits come to another interval "
                    f"of the {metric} of {self.head.name}; run `vqbank evaluate` again"
                )
        return stated.confidence

    def interval(self, metric: str) -> str:
        """The median's, for tables; raises as `confidence`."""
        low, high = self.confidence(metric)
        return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"

    @property
    def splits_text(self) -> str:
        """How many splits a row has, and of how many no correlation is defined."""
        return f"{self.splits} ({self.undefined} undefined)" if self.undefined else f"{self.splits}"


def _few(head: HeadRecord) -> list[int]:
    return [count for count in head.held_out if count < FEW_HELD_OUT]


def _few_held_out(head: HeadRecord) -> str:
    few = _few(head)
    many = f"{few[0]}" if min(few) == max(few) else f"{min(few)} to {max(few)}"
    return (
        f"{head.name}: in {len(few)} of {counted(len(head.held_out), 'split')} the epoch was "
        f"chosen by SRCC on {many} held-out videos; on fewer than {FEW_HELD_OUT} that is little "
        "better than chance."
    )
