"""Which features help: `ablate`."""

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
    Score,
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
    from vqbank.pipelines.experiments.ablation import Row
    from vqbank.pipelines.experiments.experiment import Experiment

FORMATS = ("terminal", "latex", "markdown", "csv")


def ablate(
    recipe: RecipeFile = None,
    videos: Videos = None,
    bank: Bank = None,
    features: Features = None,
    labels: LabelFile = None,
    score: Score = None,
    missing: Missing = None,
    weights: SeenWeights = None,
    head: SomeHeads = None,
    settings: Settings = None,
    preset: Preset = None,
    device: HeadDevice = None,
    splits: Splits | None = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="alone, without (default), pairs, greedy; may be repeated."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ROLE,ROLE", help="A set of one's own; may be repeated."),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--groups",
            metavar="ROLE=SIZE|ROLE=FIRST:END,...",
            help="Columns of a feature that become features.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="HEAD.PARAMETER=VALUE,...",
            help="Further heads: losses, pooling, sizes; may be repeated.",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            "--curve", metavar="FRACTION,...", help="Of training scenes, in place of --by."
        ),
    ] = None,
    across: Annotated[
        list[str] | None,
        typer.Option(
            "--across", metavar="NAME=FILE", help="Data sets, each trained on and tested by others."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="terminal, latex, markdown or csv.")
    ] = "terminal",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.jsonl", help="Records, a line for each.")
    ] = None,
    jobs: Jobs = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", help="Folder of finished cells, from which the same run goes on."),
    ] = None,
) -> None:
    """Try heads on parts of the features, on identical splits; one table, with paired tests."""
    from vqbank.pipelines.experiments.sets import check_ways, sets_of
    from vqbank.pipelines.runs.ablate import (
        ablation_of,
        across_of,
        fractions_of,
        with_variants,
    )
    from vqbank.pipelines.runs.asked import check_folder, recipe_of, title_of, with_parameters
    from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

    ways = by if by is not None else [] if sets or vary else ["without"]
    check_ways(ways)
    if format not in FORMATS:
        raise UnknownNameError(unknown_name("--format", format, FORMATS))
    check_target(json_file, "--json")
    if json_file is not None and json_file.suffix != ".jsonl":
        raise RecipeError(f"--json {json_file}: an ablation has many records; name a .jsonl")
    check_folder(keep, "--keep")
    fractions = fractions_of(curve)
    if across and (videos or labels or fractions or by or sets or groups):
        raise RecipeError("--across takes files of its own, and no --by, --only, --groups, --curve")
    asked = recipe_of(
        recipe,
        videos=videos,
        labels=labels,
        score=score,
        bank=bank,
        features=features,
        heads=head,
        splits=splits,
        missing=missing,
    )
    asked = with_parameters(asked, settings or (), preset=preset, device=device)
    asked, told = with_variants(asked, vary or ()), pairs(weights, "--weights")
    title, files = title_of(recipe), pairs(across, "--across")
    if across:
        paths = {name: Path(file) for name, file in files.items()}
        every = across_of(asked, paths, title=title, weights=told)
    else:
        every = {"": ablation_of(asked, title=title, groups=groups or (), weights=told)}
    from vqbank.pipelines.console import console
    from vqbank.pipelines.experiments.ablation import ablate as run
    from vqbank.pipelines.experiments.ablation import cells_of, learning_curve
    from vqbank.pipelines.experiments.fits import all_cores
    from vqbank.pipelines.experiments.fitting import evaluated
    from vqbank.pipelines.results.ablation import ablation_table, lines_of, matrix_table
    from vqbank.pipelines.results.records import write_record

    processes = all_cores() if jobs is None else jobs
    own = [one.split(",") for one in sets or ()]

    def rows_of(one: "Experiment") -> "list[Row]":
        heads = {cell.label: cell.head for cell in one.cells}
        if fractions:
            cells = len(heads) * len({*fractions, 1.0})
            return evaluated(
                lambda watch: learning_curve(
                    one, fractions, jobs=processes, watch=watch, keep=keep
                ),
                total=cells * len(one.splits),
            )
        tried = [] if across else ways
        cells = len(cells_of(heads, sets_of(one.rated.table.roles, tried, own)))
        if "greedy" in tried:
            roles = len(one.rated.table.roles)
            cells += len(heads) * (roles + roles * (roles + 1) // 2)
        return evaluated(
            lambda watch: run(one, ways=tried, own=own, jobs=processes, watch=watch, keep=keep),
            total=cells * len(one.splits),
        )

    found = {name: rows_of(one) for name, one in every.items()}
    if json_file is not None:
        for row in (row for rows in found.values() for row in rows):
            write_record(row.record, json_file)
        say(f"records: {json_file}", err=True)
    if across:
        table = matrix_table({name: [row.record for row in rows] for name, rows in found.items()})
    else:
        table = ablation_table(lines_of([(r.head, r.features, r.record) for r in found[""]]))
    if format == "terminal":
        console().print(table.terminal(title))
    else:
        say_lines(table.written(format))
