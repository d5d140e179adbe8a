"""Which features help: what is tried on which sets of features, data sets and training scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.experiments.sets import check_ways
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.runs.asked import (
    AskedRecipe,
    Entries,
    Names,
    check_folder,
    check_given,
    of_bank,
    recipe_of,
    several,
    title_of,
)
from vqbank.store.documents import yaml_value
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.experiment import Experiment
    from vqbank.pipelines.experiments.fitting import Telling
    from vqbank.pipelines.results.ablation import Ablation


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


def ablate(
    recipe: AskedRecipe = None,
    *,
    bank: Path | str | None = None,
    features: Names | Mapping[str, str] | None = None,
    videos: Path | str | None = None,
    labels: Path | str | None = None,
    score: str | None = None,
    heads: Entries | None = None,
    splits: str | None = None,
    missing: str | None = None,
    weights: Mapping[str, str] | None = None,
    by: Names = "without",
    only: Names = (),
    groups: Names = (),
    vary: Names = (),
    curve: Sequence[float] = (),
    jobs: int | None = None,
    keep: Path | str | None = None,
    watch: "Telling | None" = None,
) -> "Ablation":
    """Try heads on parts of the features, all on the same splits.

    Args:
        recipe: a `Recipe`, its file, or the name of one that comes with vqbank.  What is given
            beside it replaces what it says.
        bank: the folder of a bank.
        features: names, or names by role; a key (name@hash) where the bank has several of a name.
        videos: a manifest (.csv) with scores; or else
        labels: a label file of any layout, whose videos are found in the bank.
        score: the column of the label file that is the MOS, where it has several.
        heads: names, or parameters by name.
        splits: "scene10", "videval100", ..., or a file that `vqbank split make` wrote.
        missing: "stop" (default) or "drop": what happens to videos that lack a feature.
        weights: of the features' extractors, where the bank has those of several.
        by: "alone", "without", "pairs", "greedy", or several of these.
        only: sets of one's own, each the roles of one with commas between.
        groups: columns that become features: "ROLE=SIZE", or "ROLE=FIRST:END,FIRST:END".
        vary: further heads, "HEAD.PARAMETER=VALUE,VALUE" each.
        curve: in place of sets of features, fractions of the training scenes.
        jobs: processes that may be started (default: one per core).
        keep: a folder of finished cells, from which the same run goes on.
        watch: told of costs, steps and epochs as they come.

    Returns:
        Lines with the record of each, gains and paired tests against the full model of the same
        head, and what a row of the features costs.

    Raises:
        VqbankError: as `evaluate` does; RecipeError also for sets, groups or fractions that cannot
            be, UnknownNameError for ways that there are not.

    Example:
        >>> found = vqbank.ablate(bank="bank", features="motion.series", videos="set.csv",
        ...                       heads="ridge", splits="kfold2", groups="motion.series=2",
        ...                       by="alone")
        >>> [line.features for line in found.lines]
        ['all', 'motion.series[0:2] alone', 'motion.series[2:3] alone']
    """
    check_given(by=by, only=only, groups=groups, vary=vary, curve=curve, weights=weights)
    check_given(jobs=jobs, keep=keep)
    asked = recipe_of(
        recipe,
        bank=bank,
        features=features,
        videos=videos,
        labels=labels,
        score=score,
        heads=heads,
        splits=splits,
        missing=missing,
    )
    ways = several(by)
    check_ways(ways)
    folder = None if keep is None else Path(keep)
    check_folder(folder, "--keep")
    asked = with_variants(asked, several(vary))
    made = ablation_of(asked, title=title_of(recipe), groups=several(groups), weights=weights)
    from vqbank.pipelines.experiments import ablation
    from vqbank.pipelines.experiments.fits import all_cores
    from vqbank.pipelines.results.ablation import Ablation, lines_of

    processes = all_cores() if jobs is None else jobs
    if curve:
        rows = ablation.learning_curve(made, curve, jobs=processes, watch=watch, keep=folder)
    else:
        own = [one.split(",") for one in several(only)]
        rows = ablation.ablate(made, ways=ways, own=own, jobs=processes, watch=watch, keep=folder)
    return Ablation(lines_of([(row.head, row.features, row.record) for row in rows]))


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
