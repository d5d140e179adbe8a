"""Features by the names that a recipe gives its extractors.

The only part of evaluating and training that knows extractors, and only where a bank has several
features of one name.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.recipe import Recipe
from store.bank import FeatureStore
from store.errors import MissingFeatureError, UnknownNameError, unknown_name
from store.schema import FeatureSpec

if TYPE_CHECKING:
    from extractors.base import Extractor


def with_keys(recipe: Recipe) -> Recipe:
    """The recipe with a key wherever `features` has a name that the bank alone does not settle.

    `quality-patches.stages` is the output `stages` of the recipe's entry `quality-patches`, with
    whatever weights it was banked; so is `quality.stages`, where several keys share this name.

    Raises:
        BankError: if there is no bank.
        MissingFeatureError: if the bank has nothing that such an entry computes.
        UnknownNameError: if such an entry's extractor has no such output.
    """
    if recipe.bank is None:
        return recipe
    specs = FeatureStore(recipe.bank).specs()
    names = [spec.name for spec in specs]
    features = {
        role: name
        if "@" in name or names.count(name) == 1 or name.partition(".")[0] not in recipe.extractors
        else _key(recipe, name, specs)
        for role, name in recipe.features.items()
    }
    return recipe.model_copy(update={"features": features})


def check_use(recipe: Recipe, extractors: "Mapping[str, Extractor]") -> None:
    """Refuse what `evaluate` would refuse of a recipe after all its features are extracted.

    Args:
        recipe: of the run.
        extractors: by entry.

    Raises:
        UnknownNameError: if a feature is no output of its entry, or no head has a name.
        HeadError: if a head has no such parameter, or not this value of it.
    """
    for name in recipe.features.values():
        entry, _, output = name.partition("@")[0].partition(".")
        if entry in extractors:  # else of what is banked already
            outputs = [one.name for one in extractors[entry].wanted]
            if output not in outputs:
                raise UnknownNameError(
                    f"features: {unknown_name(f'output of {entry}', output, outputs)}"
                )
    if recipe.heads:
        from regressors import make_head  # seconds

        for label in recipe.heads:
            name, parameters = recipe.head(label)
            make_head(name, **parameters)


def _key(recipe: Recipe, name: str, specs: list[FeatureSpec]) -> str:
    from extractors import make_extractors, specs_of
    from extractors.base import WeightedExtractor

    entry, _, output = name.partition(".")
    (extractor,) = make_extractors({entry: recipe.extractors[entry]})
    extractor = replace(extractor, outputs=(output,))
    if isinstance(extractor, WeightedExtractor):  # none of which need be at hand
        extractor = replace(extractor, weights="random")
    (wanted,) = specs_of(extractor, decoder=recipe.decoder).values()
    found = [
        spec.key
        for spec in specs
        if spec.name == wanted.name
        and spec.stored_dtype == wanted.stored_dtype
        and _without_weights(spec.identity) == _without_weights(wanted.identity)
    ]
    if not found:
        banked = ", ".join(sorted({spec.name for spec in specs})) or "nothing"
        raise MissingFeatureError(
            f"{recipe.bank} has no {wanted.name} as entry {entry!r} of the recipe computes it, but "
            f"{banked}; run `vqbank extract` first, or name a feature in its place"
        )
    if len(found) > 1:  # of several weights, which `FeatureStore.resolve` says
        return wanted.name
    return found[0]


def _without_weights(identity: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return {name: value for name, value in plain.items() if name != "weights"}
