"""What fits tell of themselves while they go on."""

from collections.abc import Callable
from typing import NamedTuple


class Epoch(NamedTuple):
    """What one epoch of a network came to."""

    member: int
    """The number of the network among those that are trained together, from 0."""
    epoch: int
    """The number of the epoch, from 1."""
    epochs: int
    """The most epochs that are run."""
    loss: float
    """The mean loss over the epoch's steps."""
    srcc: float
    """SRCC on held-out rows, never on test rows; NaN where all predictions agree."""
    best_epoch: int
    """The best epoch so far; 0 where there is none."""
    best_srcc: float
    """SRCC of the best epoch so far, on held-out rows."""


class Step(NamedTuple):
    """How far a fit without epochs is."""

    head: str
    """The name of the head that is fitted."""
    done: int
    """Steps that are done."""
    total: int
    """Steps that the fit has."""
    what: str
    """What comes now, such as "fold 2 of 3"."""


class Cost(NamedTuple):
    """What fits of a head will take, roughly."""

    head: str
    """The name of the head that is fitted."""
    videos: int
    """Videos of one fit."""
    fit_seconds: float
    """Seconds of one fit."""
    fits: int
    """How many fits there will be."""
    seconds: float
    """Seconds of all fits, as many at a time as there are processes."""


Watch = Callable[[Epoch | Step], None]
"""Is told how far a fit is."""
