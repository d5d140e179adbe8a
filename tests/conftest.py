"""What several test files share."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vqbank.pipelines.golden.fixture import Fixture

# In the background an interrupt is ignored, and commands would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

GOLDEN = Path(__file__).parent / "golden"

# Files that take longest: begun first, so that no worker is left alone with one of them at the end.
LONGEST = ("extract", "demo", "extractors", "chaos", "cluster", "damage", "imports", "bad_input")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files forward; within a file the order stays."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def golden() -> "Callable[[str], Fixture]":
    """Reads a fixture of tests/golden by name: its recipe, and what official code computes."""
    from vqbank.pipelines.golden.fixture import Fixture

    return lambda name: Fixture.read(GOLDEN / f"{name}.a.npz")


@pytest.fixture(scope="session")
def frames() -> Callable[[str, int, int, int], NDArray[np.uint8]]:
    """Golden input: uint8 RGB [n, height, width, 3], a drifting smooth texture and grain."""
    from vqbank.pipelines.golden.fixture import frames

    return frames


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional real data: clips, labels, published features; tests skip where it is absent."""
    beside = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("VQBANK_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set VQBANK_TEST_DATA or put it in ../shared")
    return folder


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one kind of accident, so many times."""

    what: str
    times: int
    lost: int = 0
    """Committed rows that were not there afterwards."""
    wrong: int = 0
    """Rows that were read and were not those that should have been."""
    resumed: int = 0
    """Banks that were gone on with, and were equal to one that nobody disturbed."""


_TRIED = pytest.StashKey[list[Tried]]()


@pytest.fixture(scope="session")
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes down what was tried and what came of it; `make soak` ends with the table."""
    table = request.config.stash.setdefault(_TRIED, [])
    return lambda *told, **counted: table.append(Tried(*told, **counted))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of accidents."""
    table = terminalreporter.config.stash.get(_TRIED, [])
    if not table:
        return
    total = Tried(
        "all",
        *(
            sum(getattr(one, name) for one in table)
            for name in ("times", "lost", "wrong", "resumed")
        ),
    )
    terminalreporter.section("accidents")
    form = "{:<68}{:>7}{:>6}{:>7}{:>16}"
    terminalreporter.write_line(form.format("what", "times", "lost", "wrong", "banks resumed"))
    for one in [*table, total]:
        terminalreporter.write_line(
            form.format(one.what, one.times, one.lost, one.wrong, one.resumed)
        )
