"""Features by the names that a recipe gives its extractors.

The only part of evaluating and training that knows extractors, and only where a bank has several
features of one name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbank.pipelines.recipe import Recipe
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import (
    AmbiguousFeatureError,
    MissingFeatureError,
    UnknownNameError,
    unknown_name,
)
from vqbank.store.schema import FeatureSpec

if TYPE_CHECKING:
    from vqbank.extractors.base import Extractor


def with_keys(recipe: Recipe, *, weights: Mapping[str, str] | None = None) -> Recipe:
    """The recipe with a key wherever `features` has a name that the bank alone does not settle.

    `quality-patches.stages` is the output `stages` of the recipe's entry `quality-patches`, with
    whatever weights it was banked; so is `quality.stages`, where several keys share this name.

    Args:
        recipe: of a run.
        weights: by entry, by extractor or as `all`, as they were given to the extraction: of the
            features of these, only such weights are meant.

    Raises:
        BankError: if there is no bank.
        MissingFeatureError: if the bank has nothing that such an entry computes.
        AmbiguousFeatureError: if it has that of several weights.
        UnknownNameError: if such an entry's extractor has no such output, or `weights` names
            neither an entry nor an extractor of a feature.
        WeightsError: if `weights` names a file that is not at hand.
    """
    if recipe.bank is None:
        return recipe
    weights = weights or {}
    specs = FeatureStore(recipe.bank).specs()
    names = [spec.name for spec in specs]
    kinds = {name: _kind(recipe, name) for name in recipe.features.values()}
    _check_weights(recipe, kinds, weights)
    features = {}
    for role, name in recipe.features.items():
        entry = name.partition(".")[0]
        chosen = bool(weights.keys() & {entry, kinds[name], "all"})
        settled = names.count(name) == 1 or entry not in recipe.extractors
        known = "@" in name or (settled and not chosen)
        features[role] = name if known else _key(recipe, name, kinds[name], specs, weights)
    return recipe.model_copy(update={"features": features})


def check_names(recipe: Recipe) -> None:
    """Refuse heads and splits that there are not, before any feature is read.

    Raises:
        UnknownNameError: if there is no such head or scheme of splits.
        RecipeError: if a file of splits cannot be read.
    """
    from vqbank.pipelines.splits.file import splits_file
    from vqbank.pipelines.splits.schemes import scheme_of
    from vqbank.regressors import HEADS

    for label in recipe.heads:
        name, _ = recipe.head(label)
        if name not in HEADS:
            raise UnknownNameError(unknown_name("head", name, HEADS))
    splits = recipe.protocol.splits
    if splits.endswith(".json"):
        splits_file(Path(splits))
    elif splits != "scene":
        scheme_of(splits)


def check_heads(recipe: Recipe) -> None:
    """Refuse parameters that heads do not take; imports what the heads need, which takes a second.

    Raises:
        UnknownNameError: if a head has no such parameter.
        HeadError: if a parameter has an impossible value.
    """
    from vqbank.regressors import make_head

    for label in recipe.heads:
        name, parameters = recipe.head(label)
        make_head(name, **parameters)


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
    check_names(recipe)
    check_heads(recipe)


def _kind(recipe: Recipe, name: str) -> str:
    """The extractor of a feature."""
    entry = name.partition(".")[0]
    return str(recipe.extractors.get(entry, {}).get("extractor", entry))


def _check_weights(recipe: Recipe, kinds: Mapping[str, str], weights: Mapping[str, str]) -> None:
    known = {*recipe.extractors, *(name.partition(".")[0] for name in kinds), *kinds.values()}
    known |= {str(given.get("extractor", "")) for given in recipe.extractors.values()} - {""}
    for name in weights.keys() - known - {"all"}:
        raise UnknownNameError(f"--weights: {unknown_name('extractor', name, [*known, 'all'])}")


def _key(
    recipe: Recipe,
    name: str,
    kind: str,
    specs: Sequence[FeatureSpec],
    weights: Mapping[str, str],
) -> str:
    """The key of what an entry of the recipe computes, or of a feature of chosen weights."""
    from vqbank.extractors import EXTRACTORS, weights_for
    from vqbank.extractors.base import WeightedExtractor

    entry, _, output = name.partition(".")
    own = [spec for spec in specs if spec.name == f"{kind}.{output}"]
    weighted = issubclass(EXTRACTORS.get(kind, object), WeightedExtractor)
    chosen = weights_for(entry, kind, weights) if weighted else None
    if entry in recipe.extractors:
        found = _computed(recipe, entry, output, own, chosen)
    elif chosen is None:  # nothing is told of it
        return name
    else:
        wanted = _identity_of_weights(kind, chosen)
        found = [spec for spec in own if spec.identity.get("weights") == wanted]
    of_entry = (
        f" as entry {entry!r} of the recipe computes it" if entry in recipe.extractors else ""
    )
    of_weights = f" of weights {chosen!r}" if chosen is not None else ""
    what = f"{kind}.{output}{of_entry}{of_weights}"
    if len(found) == 1:
        return found[0].key
    if found:
        raise AmbiguousFeatureError(
            f"{recipe.bank} has {len(found)} features that are {what}: {_listed(found)}; choose by "
            f"--weights {entry}=CHOICE, or ask for one by its key"
        )
    banked = _listed(own) if own else ", ".join(sorted({spec.name for spec in specs})) or "nothing"
    raise MissingFeatureError(
        f"{recipe.bank} has no {what}, but {banked}; run `vqbank extract` with the same --weights "
        "first, or ask for what is there by its key or its weights"
    )


def _computed(
    recipe: Recipe, entry: str, output: str, specs: Sequence[FeatureSpec], chosen: str | None
) -> list[FeatureSpec]:
    """Of these features, what an entry of the recipe computes with chosen or with any weights."""
    from vqbank.extractors import make_extractors, specs_of
    from vqbank.extractors.base import WeightedExtractor
    from vqbank.extractors.weights import RANDOM, TINY

    (extractor,) = make_extractors({entry: recipe.extractors[entry]})
    extractor = replace(extractor, outputs=(output,))
    if isinstance(extractor, WeightedExtractor):
        if chosen is not None:
            (wanted,) = specs_of(
                replace(extractor, weights=chosen), decoder=recipe.decoder
            ).values()
            return [spec for spec in specs if spec.key == wanted.key]
        # None of these need be at hand; a tiny form may have other sizes and views.
        forms = [RANDOM, TINY] if extractor.has_tiny else [RANDOM]
        variants: list[Extractor] = [replace(extractor, weights=form) for form in forms]
    else:
        variants = [extractor]
    wanted_ones = [
        (wanted.stored_dtype, _without_weights(wanted.identity))
        for variant in variants
        for wanted in specs_of(variant, decoder=recipe.decoder).values()
    ]
    return [
        spec
        for spec in specs
        if (spec.stored_dtype, _without_weights(spec.identity)) in wanted_ones
    ]


def _identity_of_weights(kind: str, chosen: str) -> str:
    """What stands in a key for weights of an extractor."""
    from vqbank.extractors import make_extractor

    return str(make_extractor(kind, weights=chosen).parameters()["weights"])


def _listed(specs: Sequence[FeatureSpec]) -> str:
    """Keys with the weights that each is of."""
    return ", ".join(
        f"{spec.key} (weights {spec.identity.get('weights', 'none')})"
        for spec in sorted(specs, key=lambda spec: spec.key)
    )


def _without_weights(identity: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return {name: value for name, value in plain.items() if name != "weights"}
