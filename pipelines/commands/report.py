"""One page of records: `report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vqbank.pipelines.commands.options import check_target
from vqbank.pipelines.terminal import say


def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate --json`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page.")],
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Of the features: pictures, sizes, the map, time lines."),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Manifest, for scenes and parts.")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option("--head", help="What `train` wrote; its scores of seconds on time lines."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="NAME", help="The test set that plots show."),
    ] = None,
    map: Annotated[
        Literal["pca", "tsne"],
        typer.Option(
            "--map", help="How videos are laid out by their features; tsne takes minutes."
        ),
    ] = "pca",
) -> None:
    """Write one HTML file of runs that opens anywhere, without a network."""
    from vqbank.pipelines.results.records import read_records
    from vqbank.pipelines.runs.report import write_report_page

    check_target(output, "--output")
    records = [record for file in files for record in read_records(file)]
    write_report_page(records, output, bank=bank, videos=videos, map_kind=map, head=head, test=test)
    say(f"report: {output}")
