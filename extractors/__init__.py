"""Frames to features: which frames, what happens to them, and the frozen networks."""

from dataclasses import fields
from difflib import get_close_matches
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
        UnknownNameError: for a name that is not in EXTRACTORS.
        RecipeError: for a parameter that the extractor does not have, or of another type.
    """
    if name not in EXTRACTORS:
        raise UnknownNameError(unknown_name("extractor", name, EXTRACTORS))
    kind = EXTRACTORS[name]
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for parameter, value in parameters.items():
        if parameter not in known:
            near = get_close_matches(parameter, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(
                f"extractor {name} has no parameter {parameter!r}.{hint} "
                f"Known: {', '.join(sorted(known))}."
            )
        try:
            TypeAdapter(types[parameter]).validate_python(value, strict=True)
        except ValidationError as error:
            raise RecipeError(
                f"extractor {name}: parameter {parameter!r} cannot be {value!r}: "
                f"{error.errors()[0]['msg'].lower()}"
            ) from error
    return kind(**parameters)
