"""One golden fixture: what official code computes when its weights are filled by a public rule.

A fixture `NAME` is a recipe `NAME.json` and, for every input letter, the output `NAME.LETTER.npz`.
Weights are never shipped: the entries of the official state dict are filled from their names and
shapes, and inputs are drawn from their names, by the rules below.
"""

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.errors import GoldenError


class Check(NamedTuple):
    """One output of one fixture against ours."""

    what: str
    """The key of the npz, or "keys" for the set of state-dict keys."""
    error: float
    """The largest, in the units of the tolerance; 0 where everything is equal."""
    tolerance: float
    """0 where equality is asked for."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Fixture:
    """The recipe of a fixture and the output for one input."""

    name: str
    letter: str
    recipe: Mapping[str, Any]
    """NAME.json."""
    expected: Mapping[str, NDArray[Any]]
    """NAME.LETTER.npz."""

    @property
    def input(self) -> Any:
        """The recipe's input for this letter, where the recipe tells letters apart."""
        described = self.recipe["input"]
        return described.get(self.letter, described) if isinstance(described, dict) else described

    def state_dict(self) -> dict[str, Tensor]:
        """The official state dict, filled; entries that the rule leaves alone are not there."""
        return {
            key: torch.from_numpy(np.asarray(fill(key, tuple(shape))))
            for key, shape in self.recipe["state_dict"].items()
        }

    def close(
        self, what: str, got: Tensor | NDArray[Any], relative: float = 0, absolute: float = 0
    ) -> Check:
        """Compare floats with `expected[what]`; one of the two tolerances is given.

        Args:
            what: key of the npz.
            got: of the same shape.
            relative: allowed, as a part of the largest absolute value that is expected.
            absolute: allowed.

        Raises:
            GoldenError: if the shapes differ, or there is no such output.
        """
        got, expected = self._both(what, got)
        error = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        if relative:
            error /= max(float(np.abs(expected).max()), np.finfo(np.float64).tiny)
        return Check(what, float(error), relative or absolute)

    def equal(self, what: str, got: Tensor | NDArray[Any]) -> Check:
        """Compare integers with `expected[what]`: the error is how many differ.

        Raises:
            GoldenError: if the shapes differ, or there is no such output.
        """
        got, expected = self._both(what, got)
        return Check(what, float(np.count_nonzero(got != expected)), 0)

    def keys(self, got: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> Check:
        """Compare the names and shapes of a state dict with the official ones.

        Args:
            got: tensors by official key.
            ignored: keys that are left alone on both sides.

        Returns:
            A check whose error is the number of keys that are missing, unexpected or of another
            shape.
        """
        official = {key: tuple(shape) for key, shape in self.recipe["state_dict"].items()}
        left = self.recipe.get("not_filled", {})
        ours = {key: tuple(value.shape) for key, value in got.items()}
        names = (official.keys() ^ ours.keys()) - set(left) - set(ignored)
        other = [key for key in official.keys() & ours.keys() if official[key] != ours[key]]
        return Check("keys", float(len(names) + len(other)), 0)

    def _both(self, what: str, got: Tensor | NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if what not in self.expected:
            raise GoldenError(f"{self.name}.{self.letter}.npz has no output {what!r}")
        expected = self.expected[what]
        ours = got.detach().cpu().numpy() if isinstance(got, Tensor) else np.asarray(got)
        if ours.shape != expected.shape:
            raise GoldenError(
                f"{self.name}.{self.letter}: {what} has shape {ours.shape}, "
                f"the fixture {expected.shape}"
            )
        return ours, expected


Player = Callable[[Fixture], Iterator[Check]]
"""Plays one fixture through our own code and compares every output that the npz has."""


def array(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard-normal values that depend on name and shape alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape, dtype=np.float32)


def fill(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The value of the floating-point entry `name` of an official state dict.

    A running variance is 0.5 + |x|; a scale (a weight of one dimension, or a number) 1 + 0.1 x;
    another vector 0.02 x; all else x / sqrt(fan-in), x being standard normal.
    """
    values = array(name, shape)
    if name.endswith("running_var"):
        return np.float32(0.5) + np.abs(values)
    if values.ndim == 0 or (values.ndim == 1 and name.endswith("weight")):
        return (1.0 + 0.1 * values).astype(np.float32)
    if values.ndim == 1:
        return np.float32(0.02) * values
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def frames(name: str, n: int, height: int, width: int) -> NDArray[np.uint8]:
    """RGB [n, height, width, 3]: a drifting smooth texture and grain."""
    coarse = np.cumsum(array(name, (n, height // 8 + 2, width // 8 + 2, 3)), axis=0)
    coarse /= np.sqrt(np.arange(1, n + 1, dtype=np.float32))[:, None, None, None]
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    grain = array(f"{name}/grain", (n, height, width, 3))
    return np.clip(128 + 48 * smooth + 12 * grain, 0, 255).astype(np.uint8)


@contextmanager
def checkpoint(content: Mapping[str, Any], name: str = "filled.pth") -> Iterator[Path]:
    """A weight file with this content, so that the way of real weights is played; then it is gone.

    Args:
        content: as the official file holds it, containers and prefixes included.
        name: of the file.
    """
    with tempfile.TemporaryDirectory(prefix="vqbank-golden-") as folder:
        path = Path(folder) / name
        torch.save(dict(content), path)
        yield path


def read_fixtures(folder: Path) -> Iterator[Fixture]:
    """Every fixture of a folder with every letter that is there, by name.

    Raises:
        GoldenError: if the folder has none, or a file of one cannot be read.
    """
    recipes = sorted(path for path in folder.glob("*.json") if _outputs(path))
    if not recipes:
        raise GoldenError(f"{folder} holds no fixture: no NAME.json with a NAME.LETTER.npz")
    for path in recipes:
        try:
            recipe = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GoldenError(f"{path} cannot be read: {error}") from error
        for output in _outputs(path):
            try:
                with np.load(output) as arrays:
                    expected = dict(arrays)
            except (OSError, ValueError) as error:
                raise GoldenError(f"{output} cannot be read: {error}") from error
            letter = output.name.removesuffix(".npz").rsplit(".", 1)[-1]
            yield Fixture(path.stem, letter, recipe, expected)


def _outputs(recipe: Path) -> list[Path]:
    return sorted(recipe.parent.glob(f"{recipe.stem}.*.npz"))
