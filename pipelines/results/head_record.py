"""What a record holds of one head: how it was chosen, and what its predictions came to."""

import math
from typing import Literal

from pydantic import BaseModel

from vqbank.pipelines.results.statistics import (
    METRICS,
    STRICT,
    Number,
    Statistics,
    shown,
)
from vqbank.pipelines.terminal import counted, plain

KEEPS_PREDICTIONS = 4
"""The first format that keeps predictions per split."""

FEW_HELD_OUT = 10
"""Of fewer held-out videos an SRCC has a standard error of 1 / sqrt(n - 1), a third and more: what
is chosen by it is little better than drawn."""


class Mapped(BaseModel):
    """From predictions to MOS units, as fitted before PLCC and RMSE of a split."""

    model_config = STRICT

    kind: Literal["logistic", "linear", "none"]
    parameters: list[float]
    """As `vqbank.regressors.metrics.MosMapping` has them."""


class Scores(BaseModel):
    """Predictions of one head, split by split, on the test parts or on a test set, measured."""

    model_config = STRICT

    undefined: int
    """Splits without a correlation, because predictions or scores were constant."""
    statistics: dict[str, Statistics]
    """By metric."""
    per_split: dict[str, list[Number]]
    """By metric, one value per split; NaN where no video is tested."""
    fits: list[str]
    """How the logistic was fitted, per split; empty where it converged from the usual start."""
    mappings: list[Mapped] = []
    """Per split; not told before 4."""
    predicted: list[list[float]] = []
    """Per split, of its test videos in their order; not told before 4."""

    def scores_problem(self, name: str, splits: int, *, version: int, tested: bool) -> str:
        """What no run of so many splits has written; empty where all is as it should be.

        Args:
            name: whose scores these are, for the text.
            splits: of the run.
            version: of the record.
            tested: whether there are videos to test.
        """
        for what, by_metric in (("statistics", self.statistics), ("per_split", self.per_split)):
            if lacking := set(METRICS) - by_metric.keys():
                return f"{what} of {name} have no {min(lacking)}"
        counts = {**{m: len(v) for m, v in self.per_split.items()}, "fits": len(self.fits)}
        if version >= KEEPS_PREDICTIONS:
            counts |= {what: len(getattr(self, what)) for what in ("predicted", "mappings")}
        for what, count in counts.items():
            if count != splits:
                return f"{what} of {name} has {count} values for {counted(splits, 'split')}"
        undefined = sum(math.isnan(value) for value in self.per_split["srcc"]) if tested else 0
        if undefined != self.undefined:
            return f"undefined of {name} is {self.undefined} where {undefined} splits are"
        return ""


class HeadRecord(Scores):
    """One head of a run, with its scores on the test parts of the splits."""

    name: str
    parameters: dict[str, object]
    selection: list[str]
    """How hyper-parameters or epochs were chosen, per split; never on test rows."""
    held_out: list[int] = []
    """Per split, on how few held-out videos an epoch was chosen; empty for heads without epochs,
    and not told before 4."""
    seconds: list[float] = []
    """Per split, what fitting and predicting took; not told before 4."""
    start_unknown: bool = False
    """Whether it goes on from a head of which nobody knows what it was trained on."""
    cell: str = ""
    """The hash of all that its fits depend on; not told before 4."""
    predictions: dict[str, float] = {}
    """By video id, the mean over the splits that test it; of format 4 `Record.predictions_of` makes
    it of `predicted`."""
    sets: list[Scores] = []
    """On each of the record's test sets; there were none before 5."""

    @property
    def rule(self) -> str:
        """By which rule its numbers were chosen."""
        rules = list(dict.fromkeys(self.selection))
        return rules[0] if len(rules) == 1 else f"{rules[0]} (in the first split; differs by split)"

    @property
    def roles(self) -> list[str]:
        """Those that it reads, where it does not read all of the run."""
        roles = self.parameters.get("roles")
        return [str(role) for role in roles] if isinstance(roles, list) else []

    @property
    def cautions(self) -> list[str]:
        """What is to be said of its numbers alone."""
        started = (
            f"{self.name} starts from a head of which nobody knows what it was trained on: if that "
            "was videos that are tested here, these numbers are too good."
        )
        told = [self.few_held_out, started if self.start_unknown else ""]
        return [one for one in told if one]

    @property
    def few_held_out(self) -> str:
        """The caution of an epoch that few videos chose; empty where they are not few."""
        few = [count for count in self.held_out if count < FEW_HELD_OUT]
        if not few:
            return ""
        many = f"{few[0]}" if min(few) == max(few) else f"{min(few)} to {max(few)}"
        return (
            f"{self.name}: in {len(few)} of {counted(len(self.held_out), 'split')} the epoch was "
            f"chosen by SRCC on {many} held-out videos; on fewer than {FEW_HELD_OUT} that is "
            "little better than chance."
        )

    def problem(self, splits: int, *, version: int, tested: bool) -> str:
        """What no run of so many splits has written; empty where all is as it should be."""
        counts = {"selection": len(self.selection)}
        if version >= KEEPS_PREDICTIONS:
            counts["seconds"] = len(self.seconds)
        if self.held_out:
            counts["held_out"] = len(self.held_out)
        for what, count in counts.items():
            if count != splits:
                return f"{what} of {self.name} has {count} values for {counted(splits, 'split')}"
        return self.scores_problem(self.name, splits, version=version, tested=tested)

    def __repr__(self) -> str:
        """The medians of what tables show, on one line; predictions alone may be megabytes."""
        medians = ", ".join(
            f"{metric.upper()} {shown(self.statistics[metric].median)}"
            for metric in ("srcc", "krcc", "plcc", "rmse")
        )
        splits = counted(len(self.selection), "split")
        return plain(f"<HeadRecord {self.name!r}: median {medians} over {splits}>")
