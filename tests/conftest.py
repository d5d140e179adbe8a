"""What several test files share."""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """What official code computes: its recipe and its output."""

    recipe: dict[str, Any]
    expected: Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Reads a fixture of tests/golden by name."""

    def read(name: str) -> Golden:
        with np.load(GOLDEN / f"{name}.a.npz") as arrays:
            return Golden(json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays))

    return read


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="session")
def fill() -> Callable[[str, tuple[int, ...]], NDArray[np.float32]]:
    """The public rule by which golden fixtures fill the state-dict entry of a name and shape."""

    def filled(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = _normal(name, shape)
        if name.endswith("running_var"):
            return np.float32(0.5) + np.abs(values)
        if values.ndim == 0 or (values.ndim == 1 and name.endswith("weight")):
            return (1.0 + 0.1 * values).astype(np.float32)
        if values.ndim == 1:
            return np.float32(0.02) * values
        return values / np.float32(np.sqrt(np.prod(shape[1:])))

    return filled


@pytest.fixture(scope="session")
def frames() -> Callable[[str, int, int, int], NDArray[np.uint8]]:
    """Golden input: uint8 RGB [n, height, width, 3], a drifting smooth texture and grain."""

    def drawn(name: str, n: int, height: int, width: int) -> NDArray[np.uint8]:
        coarse = np.cumsum(_normal(name, (n, height // 8 + 2, width // 8 + 2, 3)), axis=0)
        coarse /= np.sqrt(np.arange(1, n + 1, dtype=np.float32))[:, None, None, None]
        smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        grain = _normal(f"{name}/grain", (n, height, width, 3))
        return np.clip(128 + 48 * smooth + 12 * grain, 0, 255).astype(np.uint8)

    return drawn


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional real data: clips, labels, published features; tests skip where it is absent."""
    beside = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("VQBANK_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set VQBANK_TEST_DATA or put it in ../shared")
    return folder
