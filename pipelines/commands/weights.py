"""The commands for weights.  Libraries are imported inside them, so that `--help` is quick."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import AsJson
from vqbank.pipelines.terminal import say, say_lines

if TYPE_CHECKING:
    from vqbank.extractors.base import WeightedExtractor
    from vqbank.extractors.weights import WeightFile

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only what is not on this machine.")
    ] = False,
    urls: Annotated[
        bool,
        typer.Option(
            "--urls",
            help="Lines of address, file name and sha256 (- where not known) with tabs between "
            "them, to fetch on another machine; a name that ends in / is a whole repository, and "
            "a line that begins with # gives a web page with a link to the file.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the weights of every extractor: publisher, licence, training data, where they lie."""
    if context.invoked_subcommand is not None:
        return
    import json

    from vqbank.extractors.weights import locate

    rows = [
        (extractor.name, file, locate(file))
        for extractor in _extractors()
        for file in extractor.files
    ]
    chosen = [row for row in rows if not missing or row[2] is None]
    if as_json:
        say_lines(json.dumps([_document(*row) for row in chosen], indent=2))
        return
    if not urls:
        _show(chosen)
        return
    for file in dict.fromkeys(file for _, file, _ in chosen):
        name = f"{file.save_as}/" if file.is_folder else file.save_as
        # Of a page there is nothing to fetch: a comment, for the person who follows its link.
        page = "# by hand: " if file.on_page else ""
        say(f"{page}{file.url}", name, file.sha256 or "-")


@app.command()
def fetch(
    extractors: Annotated[
        list[str],
        typer.Argument(metavar="EXTRACTOR[=CHOICE]...", help="Without a choice: the usual one."),
    ],
) -> None:
    """Download published weights into $VQBANK_WEIGHTS (default: the user's cache)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from vqbank.extractors.download import fetch as download
    from vqbank.extractors.weights import find_weights, locate, weights_folder
    from vqbank.pipelines.console import Words, console

    columns = (
        Words("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    for name, file in [_chosen(text) for text in extractors]:
        if locate(file) is None:
            with Progress(*columns, console=console(err=True)) as bars:
                tasks = {}
                for path, done, total in download(file, weights_folder()):
                    if path not in tasks:
                        tasks[path] = bars.add_task(path.name)
                    bars.update(tasks[path], completed=done, total=total)
        say(f"{name}: {find_weights(file.choice, file, extractor=name)}")


def _extractors() -> "list[WeightedExtractor]":
    from vqbank.extractors import EXTRACTORS, make_extractor
    from vqbank.extractors.base import WeightedExtractor

    made = (make_extractor(name) for name in EXTRACTORS)
    return [extractor for extractor in made if isinstance(extractor, WeightedExtractor)]


def _chosen(text: str) -> "tuple[str, WeightFile]":
    """The extractor and the file that EXTRACTOR or EXTRACTOR=CHOICE means."""
    from vqbank.store.errors import UnknownNameError, unknown_name

    name, _, choice = text.partition("=")
    known = {extractor.name: extractor for extractor in _extractors()}
    if name not in known:
        raise UnknownNameError(unknown_name("extractor with weights", name, known))
    files = {file.choice: file for file in known[name].files}
    choice = choice or known[name].file.choice
    if choice not in files:
        raise UnknownNameError(unknown_name(f"weights of {name}", choice, files))
    return name, files[choice]


def _show(rows: "Sequence[tuple[str, WeightFile, Path | None]]") -> None:
    from rich.table import Table

    from vqbank.pipelines.console import console

    columns = ("extractor", "weights", "file", "publisher", "licence", "size", "trained on")
    table = Table(*columns)
    table.add_column("here", overflow="fold")
    for name, file, place in rows:
        table.add_row(
            name,
            file.choice,
            file.save_as,
            file.publisher,
            file.licence,
            _size(file, place),
            ", ".join(file.trained_on) or "not known",
            "no" if place is None else str(place),
        )
    console(width=1000).print(table)  # as wide as it needs


def _document(name: str, file: "WeightFile", place: Path | None) -> dict[str, object]:
    """What the table says of a file, and where it is published."""
    return {
        "extractor": name,
        "choice": file.choice,
        "file": file.save_as,
        "url": file.url,
        "sha256": file.sha256,
        "publisher": file.publisher,
        "licence": file.licence,
        "bytes": file.size,
        "trained_on": list(file.trained_on),
        "here": None if place is None else str(place),
    }


def _size(file: "WeightFile", place: Path | None) -> str:
    from vqbank.extractors.weights import shards_of

    size = file.size if place is None else sum(s.stat().st_size for s in shards_of(place))
    return "not known" if size is None else f"{size / 1e6:,.0f} MB"
