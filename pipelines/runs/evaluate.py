"""Heads on splits of a bank: what is tried, and the record of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.log import log
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.runs.asked import (
    AskedRecipe,
    Entries,
    Names,
    of_bank,
    recipe_of,
    title_of,
)

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.evaluate import SplitResult, Trial
    from vqbank.pipelines.experiments.fitting import Telling
    from vqbank.pipelines.results.records import Record

NAMED = 3
"""Dropped videos that are named."""


def trial_of(recipe: Recipe, *, title: str) -> "Trial":
    """What a recipe names, as `of_bank` gives it; tells which videos are dropped.

    Args:
        recipe: of the run.
        title: for tables.

    Raises:
        VqbankError: as `Trial.of`.
    """
    from vqbank.pipelines.experiments.evaluate import Trial

    trial = Trial.of(recipe, title=title)
    if dropped := trial.dropped:
        more = ", ..." if len(dropped) > NAMED else ""
        log.info(
            "dropped %d of %d videos, which lack a feature: %s%s",
            len(dropped), len(trial.stated), ", ".join(dropped[:NAMED]), more,
        )  # fmt: skip
    return trial


def by_split(trial: "Trial", results: "Sequence[SplitResult]") -> "list[SplitResult]":
    """Results in the order of splits, then in that of heads."""
    order = list(trial.heads)
    return sorted(results, key=lambda result: (result.split, order.index(result.head)))


def evaluate(
    recipe: AskedRecipe = None,
    *,
    bank: Path | str | None = None,
    features: Names | Mapping[str, str] | None = None,
    videos: Path | str | None = None,
    labels: Path | str | None = None,
    score: str | None = None,
    heads: Entries | None = None,
    splits: str | None = None,
    missing: str | None = None,
    weights: Mapping[str, str] | None = None,
    jobs: int | None = None,
    watch: "Telling | None" = None,
) -> "Record":
    """Try heads on splits of a bank: fit on training rows, predict test rows, measure.

    Hyper-parameters and epochs are chosen on rows held out of the training part, never on test
    rows.

    Args:
        recipe: a `Recipe`, its file, or the name of one that comes with vqbank.  What is given
            beside it replaces what it says.
        bank: the folder of a bank.
        features: names, such as "nss.brisque" or ["nss.brisque", "motion.series"], or names by
            role; a key (name@hash) where the bank has several of a name.
        videos: a manifest (.csv) with scores; or else
        labels: a label file of any layout, whose videos are found in the bank.
        score: the column of the label file that is the MOS, where it has several.
        heads: names, such as "ridge" or ["ridge", "svr"], or parameters by name.
        splits: "scene10", "videval100", "official", ..., or a file that `vqbank split make` wrote.
        missing: "stop" (default) or "drop": what happens to videos of a manifest that lack a
            feature.
        weights: of the features' extractors, where the bank has those of several.
        jobs: processes that may be started (default: one per core).
        watch: told of costs, steps and epochs as they come, if in processes by a thread.

    Returns:
        The record: settings, keys, SRCC, KRCC, PLCC and RMSE (in the unit of the scores) per split
        and over all, predictions by video id.

    Raises:
        RecipeError: if something is not given, or splits cannot be made or fitted.
        UnknownNameError: if there is no such head, parameter or scheme of splits.
        BankError: if there is no bank.
        ManifestError: if a file of videos cannot be read, or a video has no score.
        MissingFeatureError: if the bank has no such feature, or a video lacks it.
        AmbiguousFeatureError: if the bank has several features of a name.
        HeadError: if a head cannot be fitted.

    Example:
        >>> record = vqbank.evaluate(bank="bank", features="motion.series", videos="set.csv",
        ...                          heads=["ridge"], splits="kfold2")
        >>> record.head("ridge").statistics["srcc"].median > 0.5
        True
    """
    asked = recipe_of(
        recipe,
        bank=bank,
        features=features,
        videos=videos,
        labels=labels,
        score=score,
        heads=heads,
        splits=splits,
        missing=missing,
    )
    chosen = of_bank(asked, weights)
    from vqbank.pipelines.experiments.evaluate import all_cores
    from vqbank.pipelines.results.records import record_of

    trial = trial_of(chosen, title=title_of(recipe))
    results = list(trial.run(jobs=all_cores() if jobs is None else jobs, watch=watch))
    return record_of(trial, by_split(trial, results))
