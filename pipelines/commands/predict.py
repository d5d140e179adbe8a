"""Scores of videos by a shipped head: `predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import Device, Weights, check_target, pairs
from vqbank.pipelines.terminal import counted, say

if TYPE_CHECKING:
    from vqbank.pipelines.runs.predict import Predicted

FORMATS = ("csv", "ntire")
"""How scores are written."""


def predict(
    head: Annotated[Path, typer.Argument(help="What `train` wrote.")],
    videos: Annotated[
        list[Path],
        typer.Argument(help="Videos, folders, manifests; or, with --bank, a label file."),
    ],
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Where features are kept (default: the user's cache)."),
    ] = None,
    weights: Weights = None,
    device: Device = "cpu",
    score: Annotated[
        str | None, typer.Option("--score", help="Column of a label file that is the MOS.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.csv", help="Also into a file, in --format."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv: score, id and path of what could be scored; ntire: a submission, of all "
            "videos or none.",
        ),
    ] = "csv",
) -> None:
    """Score videos with a shipped head; prints `score<TAB>id<TAB>path` per video."""
    from vqbank.pipelines.runs.predict import PredictPlan
    from vqbank.store.errors import UnknownNameError, naming, unknown_name

    if format not in FORMATS:
        raise UnknownNameError(unknown_name("format", format, FORMATS))
    check_target(output, "--output")
    plan = PredictPlan.of(
        head,
        videos,
        bank=bank,
        weights=pairs(weights, "--weights"),
        device=device,
        score=score,
    )
    from vqbank.pipelines.extraction.display import show_extraction

    failed = show_extraction(plan.extraction) if plan.extraction is not None else set()
    predicted = plan.scored({video_id: {} for video_id in failed})
    for video, value in zip(predicted.videos, predicted.scores, strict=True):
        say(f"{value:.4f}", video.id, video.path)
    say_agreement(predicted)
    written = output is not None and predicted.videos and (format == "csv" or not failed)
    if output is not None and written:
        with naming(output):
            output.write_text(_text(predicted, format), encoding="utf-8")
    if predicted.failed:
        for video in predicted.failed:
            say(f"no score: {video.path} ({video.id})", err=True)
        left = f"{len(predicted.videos)} of {len(plan.wanted)} videos have a score"
        if output is not None and not written:
            left += f"; {output} was not written"
        say(left, err=True)
        raise typer.Exit(1)


def say_agreement(predicted: "Predicted") -> None:
    """How well scores agree with those that people gave, where there are such.

    Args:
        predicted: what was scored.
    """
    from vqbank.pipelines.results.statistics import SHOWN, shown

    if found := predicted.agreement:
        numbers = (f"{metric.upper()} {shown(getattr(found, metric))}" for metric in SHOWN)
        say(f"against {counted(found.n, 'score')} of people: {', '.join(numbers)}", err=True)


def _text(predicted: "Predicted", format: str) -> str:
    from vqbank.pipelines.predict import score_table
    from vqbank.pipelines.results.tables import submission

    if format == "csv":
        return score_table(predicted.videos, predicted.scores)
    return submission(predicted.by_id)
