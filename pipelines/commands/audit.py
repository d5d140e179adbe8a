"""The command that says which number can be believed: `audit`."""

from typing import Annotated

import typer

from vqbank.pipelines.commands.options import (
    AsJson,
    Bank,
    Features,
    LabelFile,
    Missing,
    RecipeFile,
    Score,
    SeenWeights,
    Splits,
    Videos,
    pairs,
)
from vqbank.pipelines.terminal import say, say_lines

MARKS = {"leak": "LEAK", "note": "note", "clear": "ok", "unknown": "?"}
"""At the beginning of a line, by verdict."""


def audit(
    recipe: RecipeFile = None,
    videos: Videos = None,
    bank: Bank = None,
    features: Features = None,
    labels: LabelFile = None,
    score: Score = None,
    missing: Missing = None,
    weights: SeenWeights = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", help="What stands beside lookups and metadata (default: ridge)."),
    ] = None,
    splits: Splits | None = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--test", metavar="[NAME=]FILE", help="A further test set; may be given several times."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what makes numbers too good: shared scenes, seen scores, scaling; exit 1 if there is."""
    from vqbank.pipelines.runs.asked import recipe_of, title_of
    from vqbank.pipelines.runs.audit import audit_of

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
        overlap="mark",
        missing=missing,
    )
    given = pairs(weights, "--weights")
    found = []
    for one in audit_of(asked, title=title_of(recipe), weights=given):
        found.append(one)
        if not as_json:
            of = f" of {one.feature}" if one.feature else ""
            say(f"{MARKS[one.verdict]:4}  {one.check}{of}: {one.text}")
            for line in one.look:
                say(f"        {line}")
    if as_json:
        import json
        from dataclasses import asdict

        say_lines(json.dumps([asdict(one) for one in found], indent=2))
    leaks = sum(one.verdict == "leak" for one in found)
    if leaks and not as_json:
        say(f"{leaks} of {len(found)} checks found what makes numbers too good")
    if leaks:
        raise typer.Exit(1)
