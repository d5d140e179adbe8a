"""Heads on splits of a bank, and what their records show: `evaluate`, `results`, `compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import (
    Bank,
    Features,
    HeadDevice,
    Jobs,
    LabelFile,
    Missing,
    Preset,
    RecipeFile,
    Scores,
    SeenWeights,
    Settings,
    SomeHeads,
    Splits,
    Videos,
    check_target,
    pairs,
)
from vqbank.pipelines.terminal import say, say_lines

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.experiment import Experiment
    from vqbank.pipelines.results.record import Record


def evaluate(
    recipe: RecipeFile = None,
    videos: Videos = None,
    bank: Bank = None,
    features: Features = None,
    labels: LabelFile = None,
    score: Scores = None,
    missing: Missing = None,
    weights: SeenWeights = None,
    head: SomeHeads = None,
    settings: Settings = None,
    preset: Preset = None,
    device: HeadDevice = None,
    splits: Splits | None = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--test", metavar="[NAME=]FILE", help="A further test set; may be given several times."
        ),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", help="Test sets with videos that are trained on: stop, or mark."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html|FOLDER",
            help="One page that opens anywhere, as of `report`; or a folder for tables, a picture "
            "and a page without plots.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT.json", help="Record of the run; .jsonl appends."),
    ] = None,
    jobs: Jobs = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Folder of finished heads, from which the same run goes on."),
    ] = None,
) -> None:
    """Try heads on splits of a bank, and on test sets; prints medians over the splits."""
    from vqbank.pipelines.runs.asked import (
        by_score,
        check_folder,
        of_bank,
        recipe_of,
        title_of,
        with_parameters,
    )
    from vqbank.pipelines.runs.report import check_bokeh, is_page, write_report_page
    from vqbank.store.errors import RecipeError

    check_target(json_file, "--json")
    if report is not None and is_page(report):
        check_target(report, "--report")
        check_bokeh()
    else:
        check_folder(report, "--report")
    check_folder(keep, "--keep")
    asked = recipe_of(
        recipe,
        videos=videos,
        labels=labels,
        score=score,
        bank=bank,
        features=features,
        heads=head,
        splits=splits,
        test=test,
        overlap=overlap,
        missing=missing,
    )
    asked = with_parameters(asked, settings or (), preset=preset, device=device)
    every = by_score(asked)
    several = len(every) > 1
    if several and json_file is not None and json_file.suffix != ".jsonl":
        raise RecipeError(f"--json {json_file}: runs of several scores go to a file in .jsonl")
    if several and report is not None and not is_page(report):
        raise RecipeError(f"--report {report}: of several scores a page is written: name a .html")
    chosen = [of_bank(one, pairs(weights, "--weights")) for one in every]
    from vqbank.pipelines.console import console  # and what takes seconds
    from vqbank.pipelines.experiments.fits import all_cores
    from vqbank.pipelines.results.published import published_table
    from vqbank.pipelines.results.records import write_record
    from vqbank.pipelines.results.report import write_report
    from vqbank.pipelines.results.tables import result_table
    from vqbank.pipelines.runs.evaluate import experiment_of

    processes = all_cores() if jobs is None else jobs
    records = []
    for one in chosen:
        title = f"{title_of(recipe)}: {one.score}" if several else title_of(recipe)
        record = show_experiment(experiment_of(one, title=title), jobs=processes, keep=keep)
        records.append(record)
        console().print(result_table(record))
        if one.paper is not None and (beside := published_table(record, one.paper)):
            console().print(beside)
        if json_file is not None:
            write_record(record, json_file)
    if json_file is not None:
        say(f"record: {json_file}")
    if report is not None and is_page(report):
        write_report_page(records, report, bank=chosen[0].bank, videos=chosen[0].videos)
        say(f"report: {report}")
    elif report is not None:
        say(f"report: {write_report(records[0], report)}")


def results(
    files: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate`.")],
    format: Annotated[
        str, typer.Option("--format", help="markdown, csv, latex, or ntire (a submission).")
    ] = "markdown",
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Only these; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File (default: the terminal).")
    ] = None,
) -> None:
    """Make one table of runs: best bold, second underlined, with how each number was selected."""
    from vqbank.pipelines.results.tables import FORMATS
    from vqbank.store.errors import UnknownNameError, naming, unknown_name

    if format not in FORMATS:
        raise UnknownNameError(unknown_name("format", format, FORMATS))
    text = FORMATS[format]([record for _, record in _records(files, head)])
    if output is None:
        say_lines(text)
    else:
        with naming(output):
            output.write_text(text, encoding="utf-8")
        say(f"{format}: {output}")


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate`.")],
    metric: Annotated[str, typer.Option("--metric", help="srcc, krcc, plcc, rmse, ...")] = "srcc",
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Only these; may be repeated.")
    ] = None,
) -> None:
    """Compare runs over the same splits with the first one, by paired tests."""
    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.pipelines.results.compare import compare as compare_runs

    runs = _records(files, head)
    sources = [source for source, _ in runs] if len(runs) > 1 else []
    found = compare_runs([record for _, record in runs], metric=metric, sources=sources)
    table = Table(
        title=f"{metric.upper()} against {found[0].reference}",
        caption="p of Wilcoxon's test, and of the t-test corrected for overlapping training parts. "
        "F-test: splits whose residuals vary less or more, 95 %. Splits are left out where a run "
        "has no value, or an earlier one the same test part. A dash: all splits differ by the "
        "same, which leaves a t-test nothing to go by; or they share a test set, so that none is "
        "evidence of its own.",
    )
    for column in ("run", "median gain", "better in", "Wilcoxon p", "corrected p", "F-test"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for one in found:
        table.add_row(
            one.other,
            f"{one.paired.median_gain:+.4f}",
            one.better_in,
            *one.p_values,
            f"{one.less_variance} less, {one.more_variance} more",
        )
    console().print(table)


def _records(files: list[Path], heads: list[str] | None) -> "list[tuple[str, Record]]":
    """Runs with the place that each stands at: a file, and its number there if there are more."""
    from vqbank.pipelines.results.records import read_records

    runs = []
    for file in files:
        records = read_records(file)
        for number, record in enumerate(records, 1):
            place = f"{file}:{number}" if len(records) > 1 else str(file)
            if heads:
                record = record.model_copy(update={"heads": [record.head(name) for name in heads]})
            runs.append((place, record))
    return runs


def show_experiment(
    experiment: "Experiment", *, jobs: int = 1, keep: Path | None = None
) -> "Record":
    """Run with a progress bar.

    Args:
        experiment: of one feature set.
        jobs: processes that may be started.
        keep: a folder of finished cells.
    """
    from vqbank.pipelines.experiments import experiment as experiments
    from vqbank.pipelines.experiments.fitting import evaluated

    total = len(experiment.splits) * len(experiment.cells)
    return evaluated(
        lambda watch: experiments.evaluate(experiment, jobs=jobs, watch=watch, keep=keep),
        total=total,
    )
