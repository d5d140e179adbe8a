"""Scores of videos by a shipped head: `predict`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbank.pipelines.commands.options import MOST_LINES, Device, Weights, check_target, pairs
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
    over_time: Annotated[
        Path | None,
        typer.Option(
            "--over-time",
            metavar="FOLDER",
            help="Score every second too: moments.csv, moments.json and a picture per video.",
        ),
    ] = None,
    places: Annotated[
        Path | None,
        typer.Option(
            "--places",
            metavar="FOLDER",
            help="Score every place of a frame too, by a head that looks at some (ram, mapnet): "
            "places.json and the middle frame of each video under its map, red low, green high.",
        ),
    ] = None,
) -> None:
    """Score videos with a shipped head; prints `score<TAB>id<TAB>path` per video.

    Behind these stand, as far as the head knows, which share of the training scores is lower, and
    the range that holds 90 % of its errors on videos that it had not seen.
    """
    from vqbank.pipelines.runs.asked import check_folder
    from vqbank.pipelines.runs.predict import PredictPlan
    from vqbank.store.errors import UnknownNameError, naming, unknown_name

    if format not in FORMATS:
        raise UnknownNameError(unknown_name("format", format, FORMATS))
    check_target(output, "--output")
    check_folder(over_time, "--over-time")
    check_folder(places, "--places")
    plan = PredictPlan.of(
        head,
        videos,
        bank=bank,
        weights=pairs(weights, "--weights"),
        device=device,
        score=score,
    )
    if places is not None:
        plan.scorer.check_places()
    from vqbank.pipelines.extraction.display import show_extraction

    failed = show_extraction(plan.extraction) if plan.extraction is not None else set()
    predicted = plan.scored(
        {video_id: {} for video_id in failed},
        over_time=over_time is not None,
        places=places is not None,
    )
    told: Sequence[Mapping[str, float]] = predicted.beside or [{}] * len(predicted.videos)
    for video, value, own in zip(predicted.videos, predicted.scores, told, strict=True):
        say(f"{value:.4f}", video.id, video.path, *_words(own))
    say_agreement(predicted)
    score_name = str(plan.scorer.card.get("score_name", "score"))
    if over_time is not None and predicted.videos:
        say_moments(predicted, over_time, score_name)
    if places is not None and predicted.places is not None:
        keep_places(predicted, places, plan.scorer.card.get("trained_on"), score_name)
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


def say_moments(predicted: "Predicted", folder: Path, score_name: str) -> None:
    """Write the scores over time, and name the worst moments of the first videos.

    Args:
        predicted: with moments.
        folder: made if need be.
        score_name: what a score is.
    """
    from vqbank.pipelines.curves import write_curves

    write_curves(
        folder,
        predicted.videos,
        predicted.moments,
        score_name=score_name,
        context=predicted.beside,
    )
    say(f"over time: {predicted.moments[0].how}", err=True)
    lines = []
    for video, own in zip(predicted.videos, predicted.moments, strict=True):
        at = (f"{own.unit} {own.starts[p]:g} ({own.scores[p]:.4f})" for p in own.worst)
        lines.append(f"{video.id}: {', '.join(at)}")
    for line in lines[:MOST_LINES]:
        say(f"worst of {line}", err=True)
    say(f"moments.csv, moments.json and pictures: {folder}", err=True)


def keep_places(
    predicted: "Predicted", folder: Path, seen: Mapping[str, Any] | None, score_name: str
) -> None:
    """Write the scores of places, and pictures of them, and say where.

    Args:
        predicted: with places.
        folder: made if need be.
        seen: what the card tells of the training scores, whose range is that of the colours.
        score_name: what a score is.
    """
    from vqbank.pipelines.local_quality import write_places

    assert predicted.places is not None
    ends = [None, None] if seen is None else [seen["lowest"], seen["highest"]]
    lowest, highest = (0.0 if end is None else float(end) for end in ends)
    write_places(
        folder,
        predicted.videos,
        predicted.places,
        score_name=score_name,
        lowest=lowest,
        highest=highest,
    )
    say(f"places.json and pictures: {folder}", err=True)


def _words(beside: Mapping[str, float]) -> list[str]:
    """What is told of a score, for the terminal."""
    words = []
    if "percentile" in beside:
        words.append(f"above {beside['percentile']:.0f} %")
    if "low" in beside:
        words.append(f"{beside['low']:.4f} to {beside['high']:.4f}")
    return words


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
        return score_table(predicted.videos, predicted.scores, predicted.beside)
    return submission(predicted.by_id)
