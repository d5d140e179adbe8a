"""Frames to features: which frames, what happens to them, and the frozen networks."""

from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from extractors.base import Extractor
from extractors.clip import Clip
from extractors.motion import Motion
from extractors.nss import Nss
from extractors.slowfast import SlowFast
from store.errors import RecipeError, UnknownNameError, unknown_name

EXTRACTORS: dict[str, type[Extractor]] = {
    "clip": Clip,
    "motion": Motion,
    "nss": Nss,
    "slowfast": SlowFast,
}


def make_extractor(name: str, **parameters: Any) -> Extractor:
    """The extractor called `name`.

    Args:
        name: one of EXTRACTORS.
        **parameters: fields of its class, as in a recipe.

    Raises:
        UnknownNameError: if no extractor has this name, or the extractor no such parameter.
        RecipeError: if a parameter has a value of the wrong type, or out of its range.
    """
    if name not in EXTRACTORS:
        raise UnknownNameError(unknown_name("extractor", name, EXTRACTORS))
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
