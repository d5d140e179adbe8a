"""A head that is shipped: `train`."""

from pathlib import Path
from typing import Annotated

import typer

from vqbank.pipelines.commands.options import (
    Bank,
    Features,
    HeadDevice,
    LabelFile,
    Missing,
    Preset,
    RecipeFile,
    Scores,
    SeenWeights,
    Settings,
    Videos,
    pairs,
)
from vqbank.pipelines.terminal import say


def train(
    recipe: RecipeFile = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the head; one there is replaced.")
    ] = Path("head"),
    videos: Videos = None,
    labels: LabelFile = None,
    score: Scores = None,
    bank: Bank = None,
    features: Features = None,
    missing: Missing = None,
    weights: SeenWeights = None,
    head: Annotated[list[str] | None, typer.Option("--head", help="Which head; one.")] = None,
    settings: Settings = None,
    preset: Preset = None,
    device: HeadDevice = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's event files.")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Take along towers of the bank that networks stand on.")
    ] = False,
    published: Annotated[
        Path | None,
        typer.Option(
            "--published", help="Official weights (VSFA's, RQ-VQA's, Q-CLIP's); nothing is fitted."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="RUN.json",
            help="Of `evaluate` of the same head: how far it was off goes with the head.",
        ),
    ] = None,
) -> None:
    """Fit one head on all rows and write a folder that `predict` can use.

    Of several scores one head each, in a folder of the score's name inside.
    """
    from vqbank.pipelines.runs.asked import by_score, recipe_of, title_of, with_parameters
    from vqbank.pipelines.runs.train import TrainPlan, refuse_beside_published
    from vqbank.store.errors import RecipeError

    asked = recipe_of(
        recipe,
        videos=videos,
        labels=labels,
        score=score,
        bank=bank,
        features=features,
        heads=head or None,
        missing=missing,
    )
    asked = with_parameters(asked, settings or (), preset=preset, device=device)
    if published is not None:
        refuse_beside_published(
            videos=videos,
            labels=labels,
            score=score,
            missing=missing,
            tensorboard=tensorboard,
            record=record,
        )
    every = by_score(asked)
    folders = [output / score_folder(str(one.score)) for one in every]
    if len(set(folders)) < len(folders):
        raise RecipeError("heads of two scores would go to one folder: train one after the other")
    plans = [
        TrainPlan.of(
            one,
            folder if len(every) > 1 else output,
            title=title_of(recipe),
            weights=pairs(weights, "--weights"),
            published=published,
            tensorboard=tensorboard,
            record=record,
            pack=pack,
        )
        for one, folder in zip(every, folders, strict=True)
    ]
    from vqbank.pipelines.experiments.fitting import watched

    for plan in plans:
        with watched(plan.head) as watch:
            fitted = plan.fit(watch)
        say(f"{fitted.name} on {', '.join(fitted.specs_)}: {fitted.selection_}")
        say(f"head: {plan.folder}")


def score_folder(score: str) -> str:
    """The name of a folder for a head of a score: what is no letter or digit is a hyphen."""
    return "".join(letter if letter.isalnum() else "-" for letter in score) or "-"
