"""Text that a feature was made with and that names levels of quality."""

import re
from collections.abc import Iterator

from vqbank.store.schema import FeatureSpec

LEVELS = re.compile(
    r"\b(bad|poor|fair|good|excellent|perfect|terrible|awful|(?:low|high|best|worst) quality)\b",
    re.IGNORECASE,
)
"""Those of ITU-R BT.500 and P.910, and what prompts of papers say beside them."""


def prompts_with_levels(spec: FeatureSpec) -> list[str]:
    """The texts in a feature's identity that name a level of quality, each once."""
    found = (text for text in _texts(dict(spec.identity)) if LEVELS.search(text))
    return list(dict.fromkeys(found))


def _texts(value: object) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for own in value.values():
            yield from _texts(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _texts(own)
