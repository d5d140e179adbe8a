"""An audit of what a recipe names: what is looked at, and what is found."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vqbank.pipelines.recipe import Recipe, required
from vqbank.pipelines.runs.asked import of_bank
from vqbank.store.errors import RecipeError

if TYPE_CHECKING:
    from vqbank.pipelines.audit.finding import Finding
    from vqbank.pipelines.experiments.experiment import Experiment

HEAD = "ridge"
"""What stands beside lookups and metadata where no head is named: it takes no time."""


def audit_of(
    recipe: Recipe, *, title: str, weights: Mapping[str, str] | None = None, jobs: int = 1
) -> "Iterator[Finding]":
    """Look at what a recipe names for all that makes its numbers too good.

    Args:
        recipe: of a run.  Without features those of the bank; without a bank splits and scores
            alone; without heads HEAD.
        title: for the record of the head.
        weights: of the features, where the bank has those of several.
        jobs: processes for fits of heads.

    Yields:
        A finding for each check, as `vqbank.pipelines.audit.audit.audit` does.

    Raises:
        VqbankError: as `Experiment.of` does.
    """
    if recipe.bank is None:
        if recipe.features and not recipe.extractors:
            raise RecipeError("features are those of a bank; give --bank, or leave them out")
        made, facts = _of_labels(recipe, title=title), None
    else:
        asked = _with_all(recipe)
        chosen = of_bank(asked, weights)
        from vqbank.pipelines.experiments.experiment import Experiment

        facts, made = chosen.bank, Experiment.of(chosen, title=title)
    from vqbank.pipelines.audit.audit import audit
    from vqbank.pipelines.audit.metadata import metadata_of
    from vqbank.pipelines.experiments import experiment as experiments
    from vqbank.store.bank import FeatureStore

    record = experiments.evaluate(made, jobs=jobs) if made.cells else None
    table = made.rated.table
    store = None if facts is None else FeatureStore(facts)
    known = metadata_of(store, list(table.specs.values()), table.videos, made.rated.labels)
    chose = "" if recipe.paper is None else recipe.paper.chosen
    yield from audit(made, record=record, metadata=known, paper_chose=chose)


def _with_all(recipe: Recipe) -> Recipe:
    """With all features of the bank where none is named, and HEAD where no head is."""
    from vqbank.store.bank import FeatureStore

    update: dict[str, object] = {}
    if not recipe.features:
        specs = FeatureStore(required(recipe, "bank", option="--bank")).specs()
        update["features"] = {spec.key: spec.key for spec in specs}
    if not recipe.heads:
        update["heads"] = {HEAD: {}}
    return recipe.model_copy(update=update)


def _of_labels(recipe: Recipe, *, title: str) -> "Experiment":
    """Splits and scores of a manifest or label file, without features and heads."""
    import numpy as np

    from vqbank.pipelines.experiments.experiment import Experiment
    from vqbank.pipelines.experiments.rated import RatedVideos
    from vqbank.pipelines.manifest import scores
    from vqbank.pipelines.sources import split_videos
    from vqbank.store.table import FeatureTable

    source = recipe.labels or required(recipe, "videos", option="--videos or --labels")
    videos, labels = split_videos(source, None, None, recipe.score)
    rated = RatedVideos(FeatureTable(videos, {}), np.array(scores(videos)), labels=labels)
    return Experiment(title, rated, (), recipe.protocol)
