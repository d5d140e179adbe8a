"""Frames to features: which frames, what happens to them, and the frozen networks."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name
from vqbank.store.registry import Registry

if TYPE_CHECKING:
    from vqbank.extractors.base import Extractor
    from vqbank.store.schema import FeatureSpec

EXTRACTORS: "Registry[Extractor]" = Registry(
    "extractor",
    "vqbank.extractors",
    {
        "backbone": "vqbank.extractors.backbone:Backbone",
        "clip": "vqbank.extractors.clip:Clip",
        "fastvqa": "vqbank.extractors.fastvqa:FastVqa",
        "frames": "vqbank.extractors.frames:Frames",
        "iqa": "vqbank.extractors.iqa:Iqa",
        "liqe": "vqbank.extractors.liqe:Liqe",
        "motion": "vqbank.extractors.motion:Motion",
        "nss": "vqbank.extractors.nss:Nss",
        "pe": "vqbank.extractors.pe:Pe",
        "qalign": "vqbank.extractors.qalign:QAlign",
        "quality": "vqbank.extractors.quality:Quality",
        "residual": "vqbank.extractors.residual:Residual",
        "tiers": "vqbank.extractors.tiers:Tiers",
        "semantic": "vqbank.extractors.semantic:Semantic",
        "slowfast": "vqbank.extractors.slowfast:SlowFast",
        "swin": "vqbank.extractors.swin:Swin",
        "thumbnail": "vqbank.extractors.thumbnail:Thumbnail",
        "vificlip": "vqbank.extractors.vificlip:ViFiClip",
    },
)


def make_extractor(name: str, **parameters: Any) -> "Extractor":
    """The extractor called `name`.

    Args:
        name: one of EXTRACTORS.
        **parameters: fields of its class, as in a recipe.

    Raises:
        UnknownNameError: if no extractor has this name, or the extractor no such parameter.
        RecipeError: if a parameter has a value of the wrong type, or out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    kind = EXTRACTORS[name]
    types = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind)]
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UnknownNameError(unknown_name(f"parameter of {name}", parameter, known))
        if isinstance(value, list):  # a recipe has no tuples
            value = parameters[parameter] = tuple(value)
        try:
            TypeAdapter(types[parameter]).validate_python(value, strict=True)
        except ValidationError as error:
            raise RecipeError(
                f"{name}: parameter {parameter!r} cannot be {value!r}: "
                f"{error.errors()[0]['msg'].lower()}"
            ) from error
    return kind(**parameters)


def make_extractors(
    entries: Mapping[str, Mapping[str, Any]], *, weights: Mapping[str, str] | None = None
) -> "list[Extractor]":
    """Those that a recipe names, in its order.

    Args:
        entries: parameters by extractor.  Several of one kind go by names of their own, with
            `extractor` among their parameters.
        weights: by an entry's own name, by extractor for all its entries, or as `all` for every
            extractor that has weights; they replace those that are given there.  `all` as
            "random-tiny" means "random" where there is no tiny form.

    Raises:
        UnknownNameError: as `make_extractor`; also if `weights` names no entry.
        RecipeError: as `make_extractor`; also if two entries compute the same.
    """
    from vqbank.extractors.base import WeightedExtractor

    weights = weights or {}
    kinds = {entry: str(given.get("extractor", entry)) for entry, given in entries.items()}
    for name in weights:
        if name not in (*kinds, *kinds.values(), "all"):
            raise UnknownNameError(f"--weights: {unknown_name('extractor', name, [*kinds, 'all'])}")
    made: dict[Extractor, str] = {}
    for entry, kind in kinds.items():
        parameters = {name: value for name, value in entries[entry].items() if name != "extractor"}
        has_weights = kind in EXTRACTORS and issubclass(EXTRACTORS[kind], WeightedExtractor)
        if has_weights and (chosen := weights_for(entry, kind, weights)) is not None:
            parameters["weights"] = chosen
        extractor = make_extractor(kind, **parameters)
        if extractor in made:
            raise RecipeError(
                f"extractors {made[extractor]!r} and {entry!r} compute the same; name all outputs "
                "that are wanted of it in one of them"
            )
        made[extractor] = entry
    return list(made)


def weights_for(entry: str, kind: str, weights: Mapping[str, str]) -> str | None:
    """What is asked for an entry: by its own name, by its extractor's, or for all.

    Args:
        entry: its name.
        kind: its extractor, which has weights.
        weights: as `--weights` gives them.
    """
    from vqbank.extractors.weights import RANDOM, TINY

    if entry in weights or kind in weights:
        return weights.get(entry, weights.get(kind))
    every = weights.get("all")
    return RANDOM if every == TINY and not _has_tiny(kind) else every


def without_tiny(extractors: "Iterable[Extractor]") -> list[str]:
    """Names of those that have weights and no tiny form, for which `all=random-tiny` is "random".

    Args:
        extractors: of a run.
    """
    from vqbank.extractors.base import WeightedExtractor

    weighted = (one.name for one in extractors if isinstance(one, WeightedExtractor))
    return sorted({name for name in weighted if not _has_tiny(name)})


def _has_tiny(name: str) -> bool:
    from vqbank.extractors.base import WeightedExtractor

    kind = EXTRACTORS.get(name)
    return kind is not None and issubclass(kind, WeightedExtractor) and kind.has_tiny


def specs_of(extractor: "Extractor", *, decoder: str) -> "dict[str, FeatureSpec]":
    """The identity of each of its outputs, with that of the motion series where it reads one.

    Raises:
        WeightsError: if the weights are not at hand.
    """
    from vqbank.extractors.sampling import MotionSampling

    if not isinstance(extractor.sampling, MotionSampling):
        return extractor.specs(decoder=decoder)
    motion = make_extractor("motion").specs(decoder=decoder)["series"].key
    return extractor.specs(decoder=decoder, motion=motion)
