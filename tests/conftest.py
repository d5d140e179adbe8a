"""What several test files share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipelines.golden.fixture import Fixture

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> "Callable[[str], Fixture]":
    """Reads a fixture of tests/golden by name: its recipe, and what official code computes."""
    from pipelines.golden.fixture import Fixture

    return lambda name: Fixture.read(GOLDEN / f"{name}.a.npz")


@pytest.fixture(scope="session")
def frames() -> Callable[[str, int, int, int], NDArray[np.uint8]]:
    """Golden input: uint8 RGB [n, height, width, 3], a drifting smooth texture and grain."""
    from pipelines.golden.fixture import frames

    return frames


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional real data: clips, labels, published features; tests skip where it is absent."""
    beside = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("VQBANK_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set VQBANK_TEST_DATA or put it in ../shared")
    return folder
