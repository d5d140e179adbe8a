"""What recipes may name: `recipe`, `heads`, `extractors`."""

from typing import Annotated, Any

import typer

from vqbank.pipelines.commands.options import AsJson
from vqbank.pipelines.terminal import say, say_lines


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with vqbank, by paper, or print one, to be changed."""
    from vqbank.pipelines.recipe import shipped_recipe

    if name is not None:
        say_lines(shipped_recipe(name))
        return
    entries = _shipped()
    if as_json:
        _as_json(entries)
        return
    for paper in dict.fromkeys(entry["paper"] for entry in entries):
        say(f"{paper or 'Features and heads of a method, and the demo'}:")
        for entry in (entry for entry in entries if entry["paper"] == paper):
            say(f"  {entry['recipe']}: {entry['shows'] or entry['about']}")
            if entry["missing_weights"]:
                say(f"    weights that are not here: {', '.join(entry['missing_weights'])}")
            if entry["needs"]:
                say(f"    videos and scores that are to be given: {', '.join(entry['needs'])}")


def _shipped() -> list[dict[str, Any]]:
    """What the list says of every recipe."""
    from itertools import takewhile
    from pathlib import Path

    from vqbank.pipelines.missing import missing_weights
    from vqbank.pipelines.recipe import read_recipe, shipped_recipe, shipped_recipes

    entries = []
    for each in shipped_recipes():
        comment = takewhile(lambda line: line[:1] == "#", shipped_recipe(each).split("\n"))
        first, *_ = " ".join(comment).replace("# ", "").split(". ")
        read = read_recipe(Path(each))
        entries.append(
            {
                "recipe": each,
                "about": first.strip().rstrip("."),
                "paper": read.paper.name if read.paper else "",
                "shows": read.paper.shows if read.paper else "",
                "missing_weights": missing_weights(read),
                "needs": read.paper.needs if read.paper else [],
            }
        )
    return entries


def heads(
    name: Annotated[str | None, typer.Argument(metavar="[HEAD]", help="Which one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the heads, or the parameters of one with their defaults, as recipes take them."""
    import inspect

    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.regressors import HEADS

    if name is None:
        _list({each: HEADS.text(each) for each in HEADS}, "head", as_json=as_json)
        return
    kind = HEADS[name]
    presets = {n: own for n, own in kind.all_presets().items() if own}
    if as_json:
        own = {
            parameter: {
                "default": inspect.signature(kind).parameters[parameter].default,
                "may_be": _values(type_),
                **{f"preset {n}": own[parameter] for n, own in presets.items() if parameter in own},
            }
            for parameter, type_ in sorted(kind.parameter_types().items())
        }
        _as_json({"head": name, "about": inspect.getdoc(kind), "parameters": own})
        return
    say_lines(f"{inspect.getdoc(kind)}\n")
    titles = [f"preset: {n}" for n in presets] or ["preset: paper"]
    table = Table("parameter", "default", *titles, "may be")
    defaults = inspect.signature(kind).parameters
    for parameter, type_ in sorted(kind.parameter_types().items()):
        default = defaults[parameter].default
        others = [str(own.get(parameter, default)) for own in presets.values()] or [""]
        table.add_row(parameter, str(default), *others, _values(type_))
    console().print(table)


def extractors(
    name: Annotated[str | None, typer.Argument(metavar="[EXTRACTOR]", help="Which one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the extractors, or the outputs and parameters of one, as recipes take them."""
    import inspect
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from rich.table import Table

    from vqbank.extractors import EXTRACTORS
    from vqbank.pipelines.console import console

    if name is None:
        _list({each: EXTRACTORS.text(each) for each in EXTRACTORS}, "extractor", as_json=as_json)
        return
    kind = EXTRACTORS[name]
    types = get_type_hints(kind, include_extras=True)
    parameters = {field.name: field for field in fields(kind)}
    if as_json:
        own = {
            parameter: {
                "default": None if field.default is MISSING else field.default,
                "must_be_given": field.default is MISSING,
                "may_be": _values(types[parameter]),
            }
            for parameter, field in sorted(parameters.items())
        }
        offers = [] if any(one["must_be_given"] for one in own.values()) else kind().offers
        rows = [
            {
                "output": f"{name}.{one.name}",
                "row": list(one.shape),
                "stored_dtype": one.stored_dtype,
                "usual": one.usual,
            }
            for one in offers
        ]
        about = inspect.getdoc(kind)
        _as_json({"extractor": name, "about": about, "outputs": rows, "parameters": own})
        return
    say_lines(f"{inspect.getdoc(kind)}\n")
    if all(field.default is not MISSING for field in parameters.values()):
        outputs = Table("output", "a row", "stored as", "banked")
        for output in kind().offers:
            usual = "usually" if output.usual else "if asked for"
            row = " x ".join(map(str, output.shape))
            outputs.add_row(f"{name}.{output.name}", row, output.stored_dtype, usual)
        console().print(outputs)
    table = Table("parameter", "default", "may be")
    for parameter, field in sorted(parameters.items()):
        default = "must be given" if field.default is MISSING else str(field.default)
        table.add_row(parameter, default, _values(types[parameter]))
    console().print(table)


def _list(texts: dict[str, str], noun: str, *, as_json: bool) -> None:
    """Names with a line each."""
    if as_json:
        _as_json([{noun: name, "about": text} for name, text in texts.items()])
        return
    for name, text in texts.items():
        say(f"{name}: {text}")


def _as_json(value: Any) -> None:
    import json

    say_lines(json.dumps(value, indent=2))


def _values(type_: Any) -> str:
    """What a parameter may be, in words."""
    from pydantic import TypeAdapter

    def words(schema: dict[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(words(one) for one in schema["anyOf"]))
        if "$ref" in schema:
            return words(definitions[schema["$ref"].rsplit("/", 1)[-1]])
        if "enum" in schema or "const" in schema:
            return ", ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
        if schema.get("type") == "array":
            return f"list of {words(schema['items'])}"
        if schema.get("type") == "object":
            return f"role: {words(schema.get('additionalProperties', {}))}"
        bounds = {
            "exclusiveMinimum": ">",
            "minimum": ">=",
            "exclusiveMaximum": "<",
            "maximum": "<=",
        }
        limits = [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema]
        return " ".join([str(schema.get("type", "")), *limits]).strip()

    schema = TypeAdapter(type_).json_schema()
    definitions = schema.get("$defs", {})
    return words(schema)
