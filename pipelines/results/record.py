"""A record: what one experiment found, from which everything shown is made."""

import math
from collections.abc import Iterator, Mapping
from html import escape
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord, Scores
from vqbank.pipelines.results.provenance import Source, names_of
from vqbank.pipelines.results.set_record import TRAINED_MARK, Places, SetRecord
from vqbank.pipelines.results.statistics import SHOWN, STRICT, Statistics, shown
from vqbank.pipelines.terminal import counted, plain
from vqbank.store.errors import RecipeError, unknown_name
from vqbank.store.words import html_table

MOST_SPLITS = 10_000
"""As many as a protocol makes; drawing the interval of so many takes seconds."""
SEEN_MARK = "*"
"""At a result on data that the weights of a feature were trained on."""
Rows = Annotated[int, Field(ge=1)]
"""How many videos a part of a split has."""
TestedRows = Annotated[int, Field(ge=0)]
"""The same of a test part, which there is none of where all videos are trained on."""


class Record(BaseModel):
    """One run: some heads on some splits of the features of some videos."""

    model_config = STRICT

    vqbank_results: Literal[2, 3, 4, 5] = 5
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
    test_videos: list[TestedRows] = Field(min_length=1, max_length=MOST_SPLITS)
    """Per split; 0 of the one split that trains on all videos."""
    train_videos: list[Rows]
    tests: list[Places] = []
    """Per split, the videos that are tested; not told before 4."""
    validations: list[Places] = []
    """Per split, the training videos that the protocol sets aside; not told before 4."""
    same_test_as: list[int] = []
    """Per split the number of the first one with the same test part; not told before 3."""
    directions: list[str] = []
    """Per split, from which data sets to which, where whole ones are left out."""
    number_selected_by: Literal["median over all splits", "mean over all splits"] = (
        "median over all splits"
    )
    """The number that tables print; median and mean are both kept."""
    test_sets: list[SetRecord] = []
    """What every fitted head predicts beside the test parts; there were none before 5."""
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
        tested = self.tests_itself
        if not tested and any(self.test_videos):
            raise ValueError("some splits test videos, and others none")
        problems = (head.problem(splits, version=version, tested=tested) for head in self.heads)
        for problem in (*filter(None, problems), *self._sets_problems()):
            raise ValueError(problem)
        if version >= KEEPS_PREDICTIONS and (problem := self._parts_problem()):
            raise ValueError(problem)
        return self

    def _sets_problems(self) -> Iterator[str]:
        """What test sets and the predictions of them cannot be."""
        names = [test_set.name for test_set in self.test_sets]
        if len(set(names)) < len(names):
            yield f"test sets share a name: {', '.join(names)}"
        if not (names or self.tests_itself):
            yield "nothing is tested: no split has a test part, and there is no test set"
        for test_set in filter(lambda one: one.problem, self.test_sets):
            yield f"test set {test_set.name}: {test_set.problem}"
        splits, version = len(self.test_videos), self.vqbank_results
        for head in self.heads:
            if len(head.sets) != len(names):
                yield f"{head.name} has scores on {len(head.sets)} of {len(names)} test sets"
            for test_set, scores in zip(self.test_sets, head.sets, strict=False):
                name = f"{head.name} on {test_set.name}"
                yield from filter(
                    None, [scores.scores_problem(name, splits, version=version, tested=True)]
                )
                counts = {len(predicted) for predicted in scores.predicted}
                if counts - {len(test_set.ids)}:
                    yield f"{name} predicts {min(counts)} of {len(test_set.ids)} videos"

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
    def tests_itself(self) -> bool:
        """Whether splits have test parts; else test sets alone are tested."""
        return all(self.test_videos)

    @property
    def statistic(self) -> Literal["median", "mean"]:
        """Of the splits' values, the number that tables print."""
        return "mean" if self.number_selected_by.startswith("mean") else "median"

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
        return names_of(self.features)

    def features_of(self, head: HeadRecord) -> dict[str, str]:
        """Feature key by role, of the roles that a head reads."""
        own = {role: self.features[role] for role in head.roles if role in self.features}
        return own or self.features

    def feature_names_of(self, head: HeadRecord) -> str:
        """Names of the features that a head reads, without hashes."""
        return names_of(self.features_of(head))

    @property
    def rows(self) -> "list[Row]":
        """For each head a row, before it one for each direction between data sets, and then one
        for each test set."""
        rows = []
        for head in self.heads:
            for split, direction in enumerate(self.directions):
                values = {m: np.array(v[split : split + 1]) for m, v in head.per_split.items()}
                own = {metric: Statistics.of(value, [0]) for metric, value in values.items()}
                undefined = int(math.isnan(head.per_split["srcc"][split]))
                seen = bool(self.seen_in(split))
                rows.append(Row(self, head, direction, own, 1, undefined, seen))
            every, splits = "all" if self.directions else "", len(self.test_videos)
            if self.tests_itself:
                seen = bool(self.seen_by_weights)
                rows.append(Row(self, head, every, head.statistics, splits, head.undefined, seen))
            for one, scores in zip(self.test_sets, head.sets, strict=True):
                seen, found = bool(one.seen_by_weights), scores.statistics
                rows.append(Row(self, head, "", found, splits, scores.undefined, seen, one))
        return rows

    def seen_in(self, split: int) -> list[str]:
        """Data sets in the test part of a split that the weights of a feature were trained on.

        Of records before 4, those of any split.
        """
        return self.seen_per_split[split] if self.seen_per_split else self.seen_by_weights

    @property
    def cautions(self) -> list[str]:
        """What has to be said wherever these numbers are shown, a sentence or two each."""
        return [*self._of_all_heads, *self._of_some_rows]

    def cautions_of(self, row: "Row") -> list[str]:
        """Those of the cautions that speak of a row's numbers."""
        some, place = self._of_some_rows, (row.head.name, row.set_name)
        return [*self._of_all_heads, *(line for line in some if place in some[line])]

    @property
    def cautions_of_numbers(self) -> list[str]:
        """Those that speak of predictions and how they were chosen, and not of features."""
        return list(self._of_some_rows)

    @property
    def _of_all_heads(self) -> list[str]:
        lines = []
        if self.random_weights:
            lines.append("RANDOM WEIGHTS: these numbers say nothing about any network.")
        every = [self.seen_by_weights, *(one.seen_by_weights for one in self.test_sets)]
        if seen := ", ".join(dict.fromkeys(line for lines in every for line in lines)):
            lines.append(
                f"{SEEN_MARK} The weights of a feature were trained on {seen}. These numbers are "
                "too good for data that no network has seen."
            )
        lines += [one.trained_text for one in self.test_sets if one.trained_on]
        if unknown := ", ".join(self.weights_unknown):
            lines.append(f"What the weights of {unknown} were trained on is not known.")
        if imported := ", ".join(self.provenance_unknown):
            lines.append(f"Provenance unknown, because imported: {imported}.")
        lines += _of_videos(self)
        for one in self.test_sets:
            lines += [f"{one.name}: {line}" for line in _of_videos(one)]
            if one.dropped:
                dropped = f"{one.dropped} of {counted(len(one.ids) + one.dropped, 'video')}"
                lines.append(f"{one.name}: {dropped} lack a feature and are left out.")
        return lines

    @property
    def _of_some_rows(self) -> dict[str, list[tuple[str, str]]]:
        """Cautions that do not speak of every row, with head and test set of those they speak of;
        of the splits' own test parts the name of the set is empty."""
        every = self._all_scores
        lines = {}
        if undefined := [place for place, scores in every if scores.undefined]:
            lines[
                "Where predictions or scores are constant, SRCC, KRCC and PLCC are undefined: such "
                "splits count in RMSE alone, which is that of the predictions as they are."
            ] = undefined
        for head in self.heads:
            for caution in head.cautions:
                lines[caution] = [place for place, _ in every if place[0] == head.name]
        fits = [fit for _, scores in every for fit in scores.fits]
        for fit in dict.fromkeys(filter(None, fits)):
            line = f"PLCC and RMSE of {fits.count(fit)} of {len(fits)} fits: {fit}."
            lines[line] = [place for place, scores in every if fit in scores.fits]
        return lines

    @property
    def _all_scores(self) -> list[tuple[tuple[str, str], Scores]]:
        """Of each head those on its test parts, if there are any, and on each test set."""
        names = [one.name for one in self.test_sets]
        return [
            ((head.name, name), scores)
            for head in self.heads
            for name, scores in [("", head), *zip(names, head.sets, strict=True)]
            if name or self.tests_itself
        ]

    @property
    def method(self) -> list[str]:
        """How the numbers came about, sentence by sentence."""
        fits = [fit for _, scores in self._all_scores for fit in scores.fits]
        logistic = sum(not fit or fit.startswith("logistic") for fit in fits)
        others = "" if logistic == len(fits) else ", where nothing else is said of a fit"
        mapping = f"the 4-parameter logistic{others}" if logistic else "no logistic"
        return [
            self.splits,
            f"SRCC and KRCC of raw predictions; PLCC and RMSE after {mapping}.",
            *(f"{head.name}: {head.rule}." for head in self.heads),
            *(f"{h.name} reads {', '.join(h.roles)} alone." for h in self.heads if h.roles),
            *self._of_sets,
            *self._of_choice,
        ]

    @property
    def _of_choice(self) -> list[str]:
        if not any(one.trained_on for one in self.test_sets):
            return ["Nothing was chosen on test rows."]
        if not self.tests_itself:
            return []
        return ["Nothing was chosen on test rows of the splits."]

    @property
    def _of_sets(self) -> list[str]:
        if not self.test_sets:
            return []
        sets = (f"{s.name} ({counted(len(s.ids), 'video')})" for s in self.test_sets)
        trained = any(one.trained_on for one in self.test_sets)
        unseen = "" if trained else ", of which nothing was fitted or chosen"
        lines = [
            f"Test sets{unseen}: {', '.join(sets)}; each has a logistic of its own, and RMSE in "
            "the unit of its own scores."
        ]
        if len(self.test_videos) > 1:
            lines.append(
                "A test set is the same in every split: its deviation tells of training parts "
                "alone, and its medians have no interval."
            )
        return lines

    def __repr__(self) -> str:
        """The medians, or means, of all rows on one line."""
        numbers = ", ".join(f"{r.plain_label} {shown(r.number('srcc'))}" for r in self.rows)
        splits = f"{counted(len(self.test_videos), 'split')} {self.splits_name}"
        return plain(
            f"<Record {self.title!r}: {self.feature_names}, {counted(self.videos, 'video')}, "
            f"{splits}; {self.statistic} SRCC: {numbers}>"
        )

    def _repr_html_(self) -> str:
        """A table for notebooks, and what has to be said of it."""
        head = ["head", *(metric.upper() for metric in SHOWN), "SRCC, 95 %", "splits"]
        rows = []
        for row in self.rows:
            numbers = (
                f"{shown(row.number(metric))} ± {shown(row.statistics[metric].std)}"
                for metric in SHOWN
            )
            rows.append([row.label, *numbers, row.interval("srcc"), row.splits_text])
        said = "".join(f"<p>{escape(plain(line))}</p>" for line in (*self.cautions, *self.method))
        return html_table(f"{self.title}: {self.feature_names}", head, rows) + said


class Row(NamedTuple):
    """A row of a table: a head of a run over all splits, or in one direction between data sets, or
    on a test set."""

    record: Record
    head: HeadRecord
    direction: str
    """Such as "LSVQ → KVQ"; "all" of the row over all of them; empty where there are none."""
    statistics: Mapping[str, Statistics]
    splits: int
    undefined: int
    seen: bool
    """Whether the weights of a feature were trained on a data set that is tested here."""
    test_set: SetRecord | None = None
    """None of the test parts of the splits."""

    @property
    def set_name(self) -> str:
        """Of the test set; empty of the test parts of the splits."""
        return "" if self.test_set is None else self.test_set.name

    @property
    def scores(self) -> Scores:
        """What its numbers are of."""
        if self.test_set is None:
            return self.head
        return self.head.sets[[s.name for s in self.record.test_sets].index(self.set_name)]

    @property
    def mos_sha256(self) -> str:
        """Of the ids and scores that it is measured by."""
        return self.record.mos_sha256 if self.test_set is None else self.test_set.mos_sha256

    @property
    def plain_label(self) -> str:
        """The head, and what it is tested on where there is more than the test parts."""
        own = "test part" if self.record.test_sets and not self.direction else self.direction
        tested = self.set_name or own
        return f"{self.head.name}, {tested}" if tested else self.head.name

    @property
    def label(self) -> str:
        """The same with the marks of what was seen before, by weights or by the head."""
        trained = self.test_set is not None and self.test_set.trained_on
        marks = f"{SEEN_MARK if self.seen else ''}{TRAINED_MARK if trained else ''}"
        return f"{self.plain_label} {marks}" if marks else self.plain_label

    def number(self, metric: str) -> float:
        """What tables print of a metric: the record's statistic of it."""
        found = self.statistics[metric]
        return found.mean if self.record.statistic == "mean" else found.median

    def confidence(self, metric: str) -> tuple[float, float]:
        """The 95 % bootstrap interval of the median, in the unit of the metric; NaN of none.

        Raises:
            RecipeError: if the values per split come to another one than the record says.
        """
        record, stated = self.record, self.statistics[metric]
        # One direction is one split, which has none; before, intervals had other rules.
        if self.direction in ("", "all") and record.vqbank_results >= KEEPS_PREDICTIONS:
            values = np.array(self.scores.per_split[metric], np.float64)
            different = record.different if self.test_set is None else [0]
            if not stated.has_interval_of(values, different):
                raise RecipeError(
                    f"{record.title!r} is no record of a run: its splits come to another interval "
                    f"of the {metric} of {self.plain_label}; run `vqbank evaluate` again"
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


def _of_videos(record: Record | SetRecord) -> list[str]:
    """What has to be said of where videos and their values come from."""
    lines = []
    if record.taken_for:
        lines.append(
            f"The videos' names do not state {record.taken_for}; they were taken for its videos in "
            "the bank."
        )
    lines += [
        f"{name}: {counted(count, 'video')} had values that were not finite; their import filled "
        "these with means over all videos, tested ones included."
        for name, count in record.filled.items()
    ]
    lines += [
        f"{name}: {counted(count, 'row')} of its file had no finite value; their import left them "
        "out."
        for name, count in record.left_out.items()
    ]
    return lines
