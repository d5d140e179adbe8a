"""Write the folder of a head that `predict` can use, fitted on all rows or of published weights.

No extractor is needed.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from vqbank.pipelines.entries import with_keys
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell, cost, takes_long
from vqbank.pipelines.experiments.fitting import NO_TENSORBOARD, Telling, event_files
from vqbank.pipelines.experiments.held_out import held_out_errors
from vqbank.pipelines.experiments.processes import in_workers
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Recipe, required
from vqbank.pipelines.results.record import Record
from vqbank.regressors import make_head
from vqbank.regressors.base import Head
from vqbank.regressors.card import check_vacant, marks_of
from vqbank.regressors.pooling import PooledTable, pooled
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import RecipeError
from vqbank.store.table import FeatureTable
from vqbank.store.text import write_text

PERCENTILES = np.linspace(0, 1, 101)
"""Of the training scores, which a card keeps: by these a score is placed among them."""


def train(
    experiment: Experiment,
    folder: Path,
    *,
    recipe: Recipe,
    tensorboard: Path | None = None,
    records: Sequence[Record] = (),
    watch: Telling | None = None,
) -> Head:
    """Fit the head of an experiment on every row of its table and write the head folder.

    A network that is interrupted leaves a checkpoint beside the folder; the same command goes on
    from there.

    Args:
        experiment: with one cell; its splits are not made.
        folder: a new folder, or that of a head, which is replaced.
        recipe: that the experiment was made from; kept in the head's card.
        tensorboard: a folder for TensorBoard's event files, if they are wanted.
        records: of runs, one of which tried this head on these features and videos: its errors on
            test parts go into the card.
        watch: told of costs, steps and epochs as they come.

    Returns:
        The fitted head; that of the experiment stays as it is.

    Raises:
        RecipeError: as `check_plan` does, if the experiment has several cells, `tensorboard` is
            given for a head without epochs, or none of the records is of this head.
        HeadError: if `folder` holds something else than a head, or the head cannot be fitted.
    """
    cells, rated = experiment.cells, experiment.rated
    check_plan([cell.label for cell in cells], folder)
    held_out = held_out_errors(records, experiment) if records else None
    head = clone(cells[0].head)
    if tensorboard is not None:
        check_tensorboard(head)
    with nullcontext(watch) if tensorboard is None else event_files(tensorboard, watch) as told:
        if takes_long(head, rated.table, len(rated.table)):
            fitted = _fitted_apart(cells[0], rated, told)
        else:
            head.watch = told
            if head.has_epochs:
                head.checkpoint = checkpoint_of(folder)
            fitted = head.fit(rated.table, rated.mos)
            fitted.watch = fitted.checkpoint = None
    rates = bool(np.isfinite(rated.mos).all())
    seen = {
        "videos": len(rated.table),
        "lowest": float(rated.mos.min()) if rates else None,
        "highest": float(rated.mos.max()) if rates else None,
        "percentiles": np.quantile(rated.mos, PERCENTILES).tolist() if rates else None,
        "ids": marks_of([video.id for video in rated.table.videos]),
    }
    card = {"score_name": rated.score_name, "trained_on": seen}
    _save(fitted, folder, recipe, card if held_out is None else {**card, "held_out": held_out})
    _keep_texts(fitted, rated.table)
    return fitted


def _keep_texts(head: Head, table: FeatureTable) -> None:
    """Write texts that a head has learnt into the bank of its features, where others name them.

    Raises:
        BankError: if the bank cannot be written.
    """
    bank = table.bank(table.roles[0])
    for spec, text in head.texts(table):
        assert bank is not None, "an experiment's table is of a bank"
        write_text(FeatureStore(bank), spec, text, provenance={"head": head.name})


def check_plan(heads: Sequence[str], folder: Path) -> None:
    """Refuse, before the bank is read, what would be refused after it was.

    Args:
        heads: labels of those that shall be made.
        folder: where one goes.

    Raises:
        RecipeError: if they are several.
        HeadError: if `folder` holds something else than a head.
    """
    if len(heads) != 1:
        raise RecipeError(f"one head is shipped, not {', '.join(heads)}; choose by --head")
    check_vacant(folder)


def check_tensorboard(head: Head) -> None:
    """Refuse event files of a head that writes none.

    Raises:
        RecipeError: if it has no epochs, or TensorBoard is not installed.
    """
    if not head.has_epochs:
        raise RecipeError(
            f"--tensorboard shows epochs, and {head.name} has none; leave the option out"
        )
    if find_spec("tensorboard") is None:
        raise RecipeError(NO_TENSORBOARD)


def _fitted_apart(cell: Cell, rated: RatedVideos, watch: Telling | None) -> Head:
    """In a process that can be ended, after saying what it costs."""
    table = PooledTable(rated.table, pooled(rated.table))
    if watch is not None and (known := cost(cell, table, rated.mos, np.arange(len(table)), fits=1)):
        watch(known)
    (fitted,) = in_workers(_fitted, [(cell.head, table, rated.mos)], jobs=1, watch=watch)
    return fitted


def _fitted(
    head: Head, table: FeatureTable, mos: NDArray[np.float64], told: Telling | None
) -> Head:
    head.watch = told
    head.fit(table, mos)
    head.watch = None
    return head


def checkpoint_of(folder: Path) -> Path:
    """Where the training of a head that shall go to `folder` keeps how far it is.

    Of networks that are trained apart, each has a file, with a number behind this name.
    """
    place = folder.resolve()  # "." has no name of its own
    return place.with_name(f"{place.name}.checkpoint")


def take_published(weights: Path, folder: Path, *, recipe: Recipe) -> Head:
    """Write the head folder of weights that somebody publishes: VSFA's of `gru`, RQ-VQA's of `mlp`.

    Nothing is fitted, and no scores are needed: the head's are on the scale of these weights.

    Args:
        weights: the official checkpoint.
        folder: a new folder, or that of a head, which is replaced.
        recipe: names one head, a bank, and the features in the official order.

    Raises:
        RecipeError: if it names several heads, no bank or no features.
        HeadError: if no official weights of this head are known, these are others, or `folder`
            holds something else than a head.
        MissingFeatureError: if the bank has no such feature.
    """
    check_plan(list(required(recipe, "heads", option="--head")), folder)
    store = FeatureStore(required(recipe, "bank", option="--bank"))
    required(recipe, "features", option="--features")
    features = with_keys(recipe).features
    name, parameters = recipe.head(next(iter(recipe.heads)))
    kind = type(make_head(name, **parameters))
    parameters.pop("preset", None)  # the paper's, which others are laid over
    head = kind.published(weights, store.table([], features), **parameters)
    file = {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    scale = "the published weights' own score"
    _save(head, folder, recipe, {"score_name": scale, "trained_on": None, "published": file})
    return head


def _save(head: Head, folder: Path, recipe: Recipe, card: Mapping[str, Any]) -> None:
    """With what made it."""
    head.save(
        folder,
        {
            **card,
            "recipe": recipe.model_dump(mode="json"),
            "software": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("vqbank", "numpy", "torch", "scikit-learn")},
            },
        },
    )
