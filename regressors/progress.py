"""What fits without epochs tell of themselves."""

from typing import NamedTuple


class Step(NamedTuple):
    """How far a fit is."""

    head: str
    done: int
    total: int
    what: str
    """Such as "fold 2 of 3"."""


class Cost(NamedTuple):
    """What fits of a head will take, roughly."""

    head: str
    videos: int
    """Of a fit."""
    fit_seconds: float
    fits: int
    seconds: float
    """Of all of them."""
