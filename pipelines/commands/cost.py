"""What a recipe costs, beside what its paper says: `cost`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbank.pipelines.terminal import say_lines

if TYPE_CHECKING:
    from vqbank.pipelines.costs import Cost
    from vqbank.pipelines.paper import Paper

Published = dict[tuple[str, str], float]
"""Numbers of a paper by row and unit."""


def cost(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file, or a name that `vqbank recipe` lists.")
    ],
    size: Annotated[
        str, typer.Option("--size", metavar="WIDTHxHEIGHT", help="Of the video.")
    ] = "1920x1080",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.001, max=86_400, help="Its length.")
    ] = 8.0,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, max=1000, help="Frames per second.")
    ] = 30.0,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Whose commits tell the seconds that extraction took."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Count parameters, multiply-adds and bytes of a recipe for one video, without weights."""
    import json

    from vqbank.pipelines.recipe import read_recipe, required

    width, height = _size(size)
    read = read_recipe(recipe)
    required(read, "extractors", option="a recipe that has some")
    from vqbank.pipelines.costs import Shape, extractor_costs, head_costs, summed
    from vqbank.store.bank import FeatureStore

    shape = Shape(width, height, seconds, rate)
    store = None if bank is None else FeatureStore(bank)
    extractors = list(extractor_costs(read, shape, bank=store))
    costs = [*extractors, summed(extractors), *head_costs(read, shape)]
    if as_json:
        numbers = [] if read.paper is None else read.paper.numbers
        document = {
            "video": asdict(shape),
            "extractors": [asdict(one) for one in extractors],
            "all": asdict(costs[len(extractors)]),
            "heads": [asdict(one) for one in costs[len(extractors) + 1 :]],
            "published": [one._asdict() for one in numbers],
        }
        say_lines(json.dumps(document, indent=2))
        return
    what = f"{recipe.stem}: one video of {width} x {height}, {seconds:g} s at {rate:g} frames/s"
    published = {} if read.paper is None else _published(read.paper, height)
    _show(what, costs, len(extractors), read.paper, published)


def _size(text: str) -> tuple[int, int]:
    from vqbank.store.errors import RecipeError

    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise RecipeError(f"--size {text!r} is not of the form WIDTHxHEIGHT, such as 1920x1080")
    found = int(width), int(height)
    if not all(1 <= side <= 16_384 for side in found):
        raise RecipeError(f"--size {text}: a side has 1 to 16,384 pixels")
    return found


def _show(
    what: str,
    costs: "list[Cost]",
    extractors: int,
    paper: "Paper | None",
    published: Published,
) -> None:
    from rich.table import Table

    from vqbank.pipelines.console import console, styled
    from vqbank.pipelines.costs import COUNTED

    notes = [f"{one.name}: {one.note}." for one in costs if one.note]
    caption = [
        "Multiply-adds of matrix products, convolutions and attention. Seconds of extraction in "
        "the network, of a bank's commits; of a head, measured here on one video.",
        *notes,
    ]
    if published and paper is not None:
        caption.append(f"Published: {paper.name}, {paper.shows}: {paper.protocol}.")
    table = Table(title=styled(what), caption=styled(*caption))
    units = ("parameters", "multiply-adds", "seconds", "banked bytes")
    for column in ("", *units, *(f"published {unit}" for unit in _units(published))):
        table.add_column(column, justify="left" if not column else "right")
    own = {one.name: [_shown(getattr(one, field)) for field in COUNTED] for one in costs}
    for number, name in enumerate(dict.fromkeys([*own, *(row for row, _ in published)])):
        theirs = [_shown(published.get((name, unit))) for unit in _units(published)]
        numbers = own.get(name, [""] * len(COUNTED))
        table.add_row(styled(name), *numbers, *theirs, end_section=number == extractors)
    console(width=160).print(table)


def _published(paper: "Paper", height: int) -> Published:
    """Costs by row and unit, of a paper's table for one kind of video, or for this height."""
    known = ("parameters", "multiply-adds", "seconds")
    data = paper.data[0] if len(paper.data) == 1 else f"{height}P"
    return {
        (one.row, one.metric): one.value
        for one in paper.numbers
        if one.metric in known and one.data == data
    }


def _units(published: Published) -> list[str]:
    return list(dict.fromkeys(unit for _, unit in published))


def _shown(number: Any) -> str:
    """With a unit of thousands; a dash for what is not known."""
    if number is None:
        return "-"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.4g} {unit}"
    return f"{number:.3g}"
