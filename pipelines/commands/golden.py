"""Official numbers against ours: `golden`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import MOST_LINES
from vqbank.pipelines.terminal import say

if TYPE_CHECKING:
    from vqbank.pipelines.golden import Played
    from vqbank.pipelines.golden.fixture import Check


def golden(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Fixtures: NAME.json, NAME.LETTER.npz.")
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="A fixture that nobody plays counts as failed.")
    ] = False,
) -> None:
    """Compare networks, rules and heads with what official code computed; exits 1 on a failure."""
    from vqbank.pipelines.golden import play

    counts = {"pass": 0, "fail": 0, "not played": 0}
    for played in play(folder):
        counts[played.verdict] += 1
        for line in _lines(played):
            say(line)
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if counts["fail"] or (everything and counts["not played"]):
        raise typer.Exit(1)


def _lines(played: "Played") -> Iterator[str]:
    head = f"{played.verdict:<10}  {f'{played.name}.{played.letter}':<28}"
    if played.verdict == "not played":
        yield f"{head}  no player of this name"
        return
    keys = [check for check in played.checks if check.what == "keys"]
    compared = [check for check in played.checks if check.what != "keys"]
    said = [
        "no keys"
        if not keys
        else "keys equal"
        if keys[0].passed
        else f"{keys[0].error:.0f} keys differ",
        f"worst {_line(played.worst)}" if played.worst else "nothing compared",
        f"{len(compared)} comparisons",
    ]
    yield f"{head}  {'; '.join(said)}"
    if played.fault:
        yield f"    stopped: {played.fault}"
    failed = [check for check in compared if not check.passed]
    for check in failed[:MOST_LINES]:
        yield f"    out of tolerance: {_line(check)}"
    if len(failed) > MOST_LINES:
        yield f"    and {len(failed) - MOST_LINES} more"
    if played.left:
        yield f"    not compared: {', '.join(played.left)}"


def _line(check: "Check") -> str:
    if check.tolerance == 0:
        return f"{check.what} {check.error:g} wrong"
    return f"{check.what} {check.error:.1e} of {check.tolerance:.1e}"
