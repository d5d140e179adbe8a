"""Heads on splits of a bank: what is tried, and the record of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.log import log
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.runs.asked import (
    AskedRecipe,
    Entries,
    Names,
    TestSets,
    check_folder,
    check_given,
    of_bank,
    recipe_of,
    title_of,
)
from vqbank.store.words import few

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.experiment import Experiment
    from vqbank.pipelines.experiments.fitting import Telling
    from vqbank.pipelines.results.record import Record

NAMED = 3
"""Dropped videos that are named."""


def experiment_of(recipe: Recipe, *, title: str) -> "Experiment":
    """What a recipe names, as `of_bank` gives it; tells which videos are dropped.

    Args:
        recipe: of the run.
        title: for tables.

    Raises:
        VqbankError: as `Experiment.of`.
    """
    from vqbank.pipelines.experiments.experiment import Experiment

    experiment = Experiment.of(recipe, title=title)
    if dropped := experiment.rated.dropped:
        more = ", ..." if len(dropped) > NAMED else ""
        log.info(
            "dropped %d of %d videos, which lack a feature: %s%s",
            len(dropped), len(experiment.rated.stated), ", ".join(dropped[:NAMED]), more,
        )  # fmt: skip
    for one in experiment.sets:
        if gone := one.rated.dropped:
            log.info(
                "test set %s: dropped %d of %d videos, which lack a feature: %s",
                one.name, len(gone), len(one.rated.stated), few(gone),
            )  # fmt: skip
    return experiment


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
    test: TestSets | None = None,
    overlap: str | None = None,
    missing: str | None = None,
    weights: Mapping[str, str] | None = None,
    jobs: int | None = None,
    keep: Path | str | None = None,
    watch: "Telling | None" = None,
) -> "Record":
    """Try heads on splits of a bank: fit on training rows, predict test rows, measure.

    Hyper-parameters and epochs are chosen on rows held out of the training part, never on test
    rows.  What is fitted once can be tested on many sets: each has scores of its own in the record.

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
        splits: "scene10", "videval100", "official", ..., or a file that `vqbank split make` wrote;
            "all" trains on every video, for test sets.
        test: test sets beside the test parts of the splits: a file (manifest or label file with
            scores), several, each also as "NAME=FILE", or files by name, with further keys as a
            recipe has them: {"1080p": {"file": "lsvq.csv", "part": "test-1080p"}}.
        overlap: "stop" (default) or "mark": what happens where a test set has videos that are
            trained on.
        missing: "stop" (default) or "drop": what happens to videos of a manifest that lack a
            feature.
        weights: of the features' extractors, where the bank has those of several.
        jobs: processes that may be started (default: one per core).
        keep: a folder, made if need be, in which the record of each head is put as soon as its
            last split is done.  What it holds of the same videos, features, scores, splits and
            parameters is not fitted again: a run that was killed goes on after the last head that
            it finished.  Of runs with test sets, or one split, fitted heads are kept there as well,
            and predict a test set that is named later.
        watch: told of costs, steps and epochs as they come, if in processes by a thread.

    Returns:
        The record: settings, keys, SRCC, KRCC, PLCC and RMSE (in the unit of the scores) per split
        and over all, predictions per split; the same of each test set.

    Raises:
        RecipeError: if something is not given, or of another type, splits cannot be made or
            fitted, a test set has videos that are trained on, or a record in `keep` is damaged.
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
        test=test,
        overlap=overlap,
        missing=missing,
    )
    check_given(weights=weights, jobs=jobs, keep=keep)
    folder = None if keep is None else Path(keep)
    check_folder(folder, "--keep")
    chosen = of_bank(asked, weights)
    from vqbank.pipelines.experiments import experiment as experiments
    from vqbank.pipelines.experiments.fits import all_cores

    made = experiment_of(chosen, title=title_of(recipe))
    processes = all_cores() if jobs is None else jobs
    return experiments.evaluate(made, jobs=processes, watch=watch, keep=folder)
