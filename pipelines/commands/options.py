"""Options that several commands have, and how their text is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbank.pipelines.terminal import say

if TYPE_CHECKING:
    from vqbank.store.bank import FeatureStore
    from vqbank.store.schema import FeatureSpec

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="YAML file, or a name that `vqbank recipe` lists; options override it.",
    ),
]
Videos = Annotated[
    Path | None, typer.Option("--videos", help="Manifest (.csv), folder of videos, or one video.")
]
Bank = Annotated[Path | None, typer.Option("--bank", help="Folder of the bank.")]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="EXTRACTOR=CHOICE",
        help="A file, a published name, or `random`; `all=random` for every one.",
    ),
]
SeenWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="EXTRACTOR=CHOICE",
        help="Of the features, where a bank has those of several: as `extract` was told.",
    ),
]
LabelFile = Annotated[
    Path | None,
    typer.Option("--labels", help="Label file of any layout, in place of --videos."),
]
Score = Annotated[
    str | None, typer.Option("--score", help="Column of a label file that is the MOS.")
]
Scores = Annotated[
    str | None,
    typer.Option(
        "--score",
        metavar="COLUMN[,COLUMN...]|all",
        help="Columns of a label file that are scores, each with heads of its own.",
    ),
]
SomeHeads = Annotated[
    list[str] | None, typer.Option("--head", help="Name; may be given several times.")
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes (default: all cores).")]
Splits = Annotated[
    str,
    typer.Option(
        "--splits", metavar="NAME", help="scene10, videval100, ...; a wrong one lists all."
    ),
]
Missing = Annotated[
    str | None,
    typer.Option("--missing", help="Videos of a manifest without a feature: stop, or drop them."),
]
Features = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="[ROLE=]NAME[@KEY]", help="Banked features that heads see."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="HEAD.PARAMETER=VALUE", help="A parameter of a head; may be repeated."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Of heads: laptop, paper where a paper states one, or another that a head has.",
    ),
]
HeadDevice = Annotated[
    str | None, typer.Option("--device", help="Where networks are trained: cpu, cuda, cuda:1, ...")
]
OneBank = Annotated[Path, typer.Argument(help="Folder of the bank.")]
SomeFeatures = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="NAME[@KEY]", help="May be repeated (default: all)."),
]
Device = Annotated[str, typer.Option("--device", help="`cpu`, `cuda`, `cuda:1`, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
MOST_LINES = 10
"""Lines of a list that are printed."""


def program(**options: Any) -> typer.Typer:
    """A group of commands that prints errors as vqbank does.

    Args:
        **options: of Typer, beside those that every group has.
    """
    options.setdefault("add_completion", False)  # the whole program alone has it
    return typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, **options)


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """What stands behind each name.

    Args:
        given: `NAME=VALUE` each.
        option: of the command line, for the message.

    Raises:
        RecipeError: if one is not of this form.
    """
    from vqbank.store.errors import RecipeError

    found = {}
    for text in given or []:
        name, separator, value = text.partition("=")
        if not separator or not value:
            raise RecipeError(f"{option} {text!r} is not of the form NAME=VALUE")
        found[name] = value
    return found


def check_target(file: Path | None, option: str) -> None:
    """Refuse a file that could not be written in the end.

    Args:
        file: to write, if any.
        option: of the command line, for the message.

    Raises:
        RecipeError: if it is a folder, or its own folder is not there.
    """
    from vqbank.store.errors import RecipeError

    if file is None:
        return
    if file.is_dir():
        raise RecipeError(f"{option} {file} is a folder; name a file in it")
    if not file.absolute().parent.is_dir():
        raise RecipeError(f"{option} {file}: there is no folder {file.parent}; make it first")


def specs_named(store: "FeatureStore", names: list[str] | None) -> "list[FeatureSpec]":
    """Those features of a bank that are named, or all of them.

    Args:
        store: the bank.
        names: or keys.

    Raises:
        MissingFeatureError: if one is not there, or the bank is empty.
        AmbiguousFeatureError: if there are several of a name.
    """
    if names:
        return [store.resolve(name) for name in names]
    specs = store.specs()
    if not specs:
        store.resolve("")  # says that the bank is empty
    return specs


def say_some(what: str, lines: list[str]) -> None:
    """Print the first lines of a list, and how many more there are.

    Args:
        what: each line is.
        lines: of the list.
    """
    for line in lines[:MOST_LINES]:
        say(f"  {what}: {line}")
    if len(lines) > MOST_LINES:
        say(f"  ... and {len(lines) - MOST_LINES} more")
