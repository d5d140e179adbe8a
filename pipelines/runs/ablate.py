"""Which features help: what is tried on which sets of features, data sets and training scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.runs.asked import of_bank
from vqbank.store.documents import yaml_value
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.experiment import Experiment


def with_variants(recipe: Recipe, varied: Sequence[str]) -> Recipe:
    """A recipe with further heads: each with another value of one parameter.

    Args:
        recipe: of the run.
        varied: `HEAD.PARAMETER=VALUE,VALUE` each, values as in YAML.

    Raises:
        RecipeError: if one is of another form.
        UnknownNameError: if the run has no such head.
    """
    heads = dict(recipe.heads)
    for text in varied:
        place, separator, values = text.partition("=")
        label, dot, parameter = place.rpartition(".")
        if not (separator and dot and label and parameter):
            raise RecipeError(f"--vary {text!r} is not of the form HEAD.PARAMETER=VALUE,VALUE")
        if label not in recipe.heads:
            raise UnknownNameError(unknown_name("head of this run", label, recipe.heads))
        name, _ = recipe.head(label)
        for value in yaml_value(f"[{values}]", f"--vary {place}", RecipeError):
            own = {**recipe.heads[label], "head": name, parameter: value}
            heads[f"{label} {parameter}={value}"] = own
    return recipe.model_copy(update={"heads": heads})


def ablation_of(
    recipe: Recipe,
    *,
    title: str,
    groups: Sequence[str] = (),
    weights: Mapping[str, str] | None = None,
) -> "Experiment":
    """The experiment of a recipe's heads on all features, whose parts an ablation tries.

    Args:
        recipe: of the run.
        title: for tables.
        groups: `ROLE=SIZE` or `ROLE=FIRST:END,...` each: columns that become features.
        weights: of the features' extractors, where the bank has those of several.

    Raises:
        VqbankError: as `Experiment.of` does.
    """
    chosen = of_bank(recipe, weights)
    from vqbank.pipelines.experiments.columns import grouped, groups_of
    from vqbank.pipelines.runs.evaluate import experiment_of

    made = experiment_of(chosen, title=title)
    if not groups:
        return made
    specs = made.rated.table.specs
    widths = {role: spec.shape[0] for role, spec in specs.items() if len(spec.shape) == 1}
    by_role = dict(groups_of(text, widths) for text in groups)
    rated = grouped(made.rated, by_role)
    sets = [replace(one, rated=grouped(one.rated, by_role)) for one in made.sets]
    cells = [replace(cell, roles=rated.table.roles) for cell in made.cells]
    return replace(made, rated=rated, cells=cells, sets=sets)


def across_of(
    recipe: Recipe,
    files: Mapping[str, Path],
    *,
    title: str,
    weights: Mapping[str, str] | None = None,
) -> "dict[str, Experiment]":
    """By data set, the experiment that trains on it, and tests itself and all others.

    Args:
        recipe: of the run, without videos.
        files: manifests or label files by the name of the data set, two or more.
        title: for tables.
        weights: of the features' extractors.

    Raises:
        RecipeError: if there are fewer.
        VqbankError: as `Experiment.of` does.
    """
    if len(files) < 2:
        raise RecipeError(
            "--across NAME=FILE is given for each data set, and there are two or more"
        )
    from vqbank.pipelines.runs.asked import recipe_of
    from vqbank.pipelines.runs.evaluate import experiment_of

    found = {}
    for name, file in files.items():
        others = {other: path for other, path in files.items() if other != name}
        own = recipe.model_copy(update={"videos": None, "labels": file})
        chosen = of_bank(recipe_of(own, test=others), weights)
        found[name] = experiment_of(chosen, title=f"{title}: {name}")
    return found


def fractions_of(text: str | None) -> list[float]:
    """The numbers of `0.1,0.5,1`.

    Raises:
        RecipeError: if it is of another form, or one is no fraction.
    """
    try:
        found = [float(one) for one in text.split(",")] if text else []
    except ValueError as error:
        raise RecipeError(f"--curve {text!r} is not of the form 0.1,0.5,1") from error
    for one in found:
        if not 0 < one <= 1:
            raise RecipeError(f"--curve {one:g}: a fraction lies above 0 and is at most 1")
    return found
