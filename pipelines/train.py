"""Fit a head on all rows and write the folder that `predict` can use; no extractor is needed."""

import platform
from importlib.metadata import version
from pathlib import Path

from pipelines.evaluate import Trial
from pipelines.fitting import watched
from pipelines.recipe import Recipe
from regressors import Head
from regressors.base import check_vacant
from regressors.sequence import SequenceHead
from store.errors import RecipeError


def train(trial: Trial, folder: Path, *, recipe: Recipe, tensorboard: Path | None = None) -> Head:
    """Fit the trial's head on every row of its table and write the head folder.

    A network that trains for more than half a minute leaves a checkpoint beside the folder; the
    same command goes on from there if it is interrupted.

    Args:
        trial: with one head.
        folder: a new folder, or that of a head, which is replaced.
        recipe: that the trial was made from; kept in the head's card.
        tensorboard: a folder for TensorBoard's event files, if they are wanted.

    Raises:
        RecipeError: if the trial has several heads, or `tensorboard` is given for a head without
            epochs.
        HeadError: if `folder` holds something else than a head, or the head cannot be fitted.
    """
    if len(trial.heads) != 1:
        raise RecipeError(f"one head is shipped, not {', '.join(trial.heads)}; choose by --head")
    check_vacant(folder)  # before fitting, which may take long
    head = next(iter(trial.heads.values()))
    if tensorboard is not None and not isinstance(head, SequenceHead):
        raise RecipeError(
            f"--tensorboard shows epochs, and {head.name} has none; leave the option out"
        )
    with watched(head.name, tensorboard=tensorboard) as watch:
        if isinstance(head, SequenceHead):
            head.watch = watch
            place = folder.resolve()  # "." has no name of its own
            head.checkpoint = place.with_name(f"{place.name}.checkpoint")
        fitted = head.fit(trial.table, trial.mos)
    fitted.save(
        folder,
        {
            "score_name": trial.score_name,
            "trained_on": {
                "videos": len(trial.table),
                "lowest": float(trial.mos.min()),
                "highest": float(trial.mos.max()),
            },
            "recipe": recipe.model_dump(mode="json"),
            "software": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("vqbank", "numpy", "torch", "scikit-learn")},
            },
        },
    )
    return fitted
