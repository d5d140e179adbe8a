"""What an audit says: one thing that was looked at, with its number."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["leak", "note", "clear", "unknown"]
"""`leak`: numbers of these splits and features are too good.  `note`: they may be, or say little.
`clear`: looked at, and nothing was found.  `unknown`: nobody can tell, and the text says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of an audit."""

    check: str
    """What was looked at, such as "scenes on both sides"."""
    verdict: Verdict
    number: float | None
    """What the verdict goes by, and `text` says what it is; None where nothing could be counted."""
    text: str
    look: tuple[str, ...] = ()
    """How to look at it: videos, columns, or a command."""
    feature: str = ""
    """The key of the feature that it is said of; empty of splits and scores."""
