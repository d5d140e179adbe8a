"""Golden fixtures: our networks, rules and heads against what official code computes.

One player per fixture name; the fixture's letter chooses the input, and lengths and sizes are read
from the fixture, so that a player plays inputs that nobody has seen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.golden.fixture import Check, Player, read_fixtures
from store.errors import GoldenError

PLAYERS: dict[str, Player] = {}


class Played(NamedTuple):
    """What became of one fixture."""

    name: str
    letter: str
    checks: tuple[Check, ...]
    """Empty where there is no player."""
    fault: str = ""
    """Why playing ended early, if it did."""

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "not played"."""
        if self.name not in PLAYERS:
            return "not played"
        passed = self.checks and all(check.passed for check in self.checks)
        return "pass" if passed and not self.fault else "fail"


def play(folder: Path) -> Iterator[Played]:
    """Play every fixture of a folder.

    Raises:
        GoldenError: if the folder has none, or a file of one cannot be read.
    """
    for fixture in read_fixtures(folder):
        checks: list[Check] = []
        fault = ""
        if fixture.name in PLAYERS:
            try:
                checks.extend(PLAYERS[fixture.name](fixture))
            except GoldenError as error:
                fault = str(error)
        yield Played(fixture.name, fixture.letter, tuple(checks), fault)
