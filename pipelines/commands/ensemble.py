"""What several heads say together, and the challenge's score: `ensemble`, `challenge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import check_target
from vqbank.pipelines.terminal import say, say_lines

if TYPE_CHECKING:
    from vqbank.pipelines.results.record import Record

Runs = Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate`.")]
Heads = Annotated[
    list[str] | None, typer.Option("--head", help="Only these of each run; may be repeated.")
]


def ensemble(
    files: Runs,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.json", help="Record; .jsonl appends.")
    ],
    head: Heads = None,
    name: Annotated[str, typer.Option("--name", help="Of the head, in tables.")] = "ensemble",
) -> None:
    """Average the predictions of heads of runs on the same splits, also on other features."""
    check_target(output, "--output")
    from vqbank.pipelines.console import console
    from vqbank.pipelines.experiments.ensemble import averaged
    from vqbank.pipelines.results.records import write_record
    from vqbank.pipelines.results.tables import result_table

    record = averaged(_records(files, head), name)
    console().print(result_table(record))
    write_record(record, output)
    say(f"record: {output}")


def challenge(
    files: Runs,
    nonsource: Annotated[
        Path, typer.Option("--nonsource", help="Pairs of different contents (CSV): Rank1.")
    ],
    source: Annotated[Path, typer.Option("--source", help="Pairs of one content (CSV): Rank2.")],
    test: Annotated[
        str, typer.Option("--test", help="Test set (default: the test parts of the splits).")
    ] = "",
    head: Heads = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Score heads as the NTIRE 2024 challenge did; splits of one training part are averaged."""
    import json

    from rich.table import Table

    from vqbank.pipelines.console import console, styled
    from vqbank.pipelines.results.challenge import challenge_scores, read_pairs
    from vqbank.pipelines.results.records import alone
    from vqbank.pipelines.results.statistics import shown

    pairs = read_pairs(nonsource), read_pairs(source)
    records = [alone(record, test) for record in _records(files, head)]
    found = [(record, challenge_scores(record, *pairs)) for record in records]
    if as_json:
        rows = [
            {"title": record.title, "head": name, **scores}
            for record, heads in found
            for name, scores in heads.items()
        ]
        say_lines(json.dumps(rows, indent=2))
        return
    said = dict.fromkeys(caution for record in records for caution in record.cautions)
    table = Table(
        title="0.45 SRCC + 0.45 PLCC + 0.05 Rank1 + 0.05 Rank2",
        caption=styled(
            f"PLCC is raw. Rank1: of {len(pairs[0])} pairs of different contents, Rank2: of "
            f"{len(pairs[1])} of one content. A video that several splits test has their mean.",
            *said,
        ),
    )
    for column in ("run", "head", "score", "SRCC", "PLCC", "Rank1", "Rank2"):
        table.add_column(column, justify="left" if column in ("run", "head") else "right")
    for record, heads in found:
        for name, scores in heads.items():
            numbers = (scores[what] for what in ("score", "srcc", "plcc", "rank1", "rank2"))
            table.add_row(styled(record.title), styled(name), *map(shown, numbers))
    console().print(table)


def _records(files: list[Path], heads: list[str] | None) -> "list[Record]":
    from vqbank.pipelines.results.records import read_records

    records = [record for file in files for record in read_records(file)]
    if not heads:
        return records
    chosen = [
        record.model_copy(update={"heads": [own for own in record.heads if own.name in heads]})
        for record in records
    ]
    for name in heads:
        if not any(own.name == name for record in records for own in record.heads):
            records[0].head(name)  # says which there are
    return [record for record in chosen if record.heads]
