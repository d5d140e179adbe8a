"""One golden fixture: what official code computes when its weights are filled by a public rule.

A fixture `NAME` is a recipe `NAME.json` and, for every input letter, the output `NAME.LETTER.npz`.
Weights are never shipped: the entries of the official state dict are filled from their names and
shapes, and inputs are drawn from their names, by the rules below.
"""

import hashlib
import json
import math
import os
import tempfile
import zipfile
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

from vqbank.store.errors import GoldenError, in_words

# What np.load raises for what is no npz, found by trying.  An array of objects, which only pickle
# could read, is a ValueError.
_UNREADABLE = (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


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

    @property
    def excess(self) -> float:
        """The error in tolerances; infinite for an error where none is allowed, and for NaN."""
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance and self.error > 0 else math.inf


@dataclass(frozen=True)
class Fixture:
    """The recipe of a fixture and the output for one input."""

    name: str
    letter: str
    recipe: Mapping[str, Any]
    """NAME.json."""
    expected: Mapping[str, NDArray[Any]]
    """NAME.LETTER.npz."""
    folder: Path = Path()
    """Where the fixture lies."""

    @classmethod
    def read(cls, output: Path) -> "Fixture":
        """The fixture of `NAME.LETTER.npz`, with `NAME.json` beside it.

        Raises:
            GoldenError: if one of the two cannot be read, or holds anything else than arrays.
        """
        name, letter = name_and_letter(output)
        path = output.with_name(f"{name}.json")
        try:
            recipe = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GoldenError(f"{path} cannot be read: {in_words(error)}") from error
        if not isinstance(recipe, dict):
            raise GoldenError(f"{path} is no recipe: it holds a {type(recipe).__name__}")
        try:
            with output.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                expected = dict(arrays)
        except _UNREADABLE as error:
            raise GoldenError(f"{output} cannot be read: {in_words(error)}") from error
        return cls(name, letter, recipe, expected, output.parent)

    @property
    def input(self) -> Any:
        """The recipe's input for this letter, where the recipe tells letters apart."""
        described = self.recipe["input"]
        return described.get(self.letter, described) if isinstance(described, dict) else described

    def data(self, name: str, sha256: str) -> Path:
        """A published file that the recipe names: too large, or not ours, to lie with the fixture.

        It is looked for by its name and hash beside the fixture, in `data` beside its folder, in
        the folder that VQBANK_TEST_DATA names, and in `../shared`.

        Raises:
            GoldenError: if it is not there.
        """
        given = os.environ.get("VQBANK_TEST_DATA", "../shared")
        for root in (self.folder, self.folder.parent / "data", Path(given), Path("../shared")):
            for path in sorted(root.rglob(Path(name).name)) if root.is_dir() else ():
                if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                    return path
        raise GoldenError(
            f"{self.name}.{self.letter} needs {name} (sha256 {sha256[:12]}...), which is not here; "
            "name the folder that has it by VQBANK_TEST_DATA"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The official state dict, filled; entries that the rule leaves alone are not there."""
        return {
            key: torch.from_numpy(np.asarray(fill(key, tuple(shape))))
            for key, shape in self.recipe["state_dict"].items()
        }

    def close(
        self,
        what: str,
        got: Tensor | NDArray[Any],
        relative: float = 0,
        absolute: float = 0,
        *,
        each: bool = False,
    ) -> Check:
        """Compare floats with `expected[what]`; one of the two tolerances is given.

        Args:
            what: key of the npz.
            got: of the same shape.
            relative: allowed, as a part of the largest absolute value that is expected.
            absolute: allowed.
            each: `relative` is a part of each value in place of the largest.

        Raises:
            GoldenError: if the shapes differ, or there is no such output.
        """
        got, expected = self._both(what, got)
        error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        if relative:
            size = np.abs(expected).astype(np.float64)
            error = error / np.maximum(size if each else size.max(), np.finfo(np.float64).tiny)
        return Check(what, float(error.max(initial=0)), relative or absolute)

    def sampled(
        self, what: str, got: Tensor, relative: float = 0, absolute: float = 0
    ) -> Iterator[Check]:
        """Compare a tensor with `what.sample`, `what.shape_stride` and, if there, `what.stats`.

        These are every n-th value in C order; the shape and n; mean, standard deviation, mean and
        largest absolute value.  Arguments and errors as for `close`.
        """
        layout = self.expected.get(f"{what}.shape_stride")
        if layout is None:
            raise GoldenError(f"{self.name}.{self.letter}.npz has no {what}.shape_stride")
        stride = int(layout[-1])
        yield self.equal(f"{what}.shape_stride", np.array([*got.shape, stride]))
        yield self.close(f"{what}.sample", got.flatten()[::stride], relative, absolute)
        if f"{what}.stats" in self.expected:
            values = got.double()
            size = values.abs()
            stats = [values.mean(), values.std(correction=0), size.mean(), size.max()]
            yield self.close(f"{what}.stats", torch.stack(stats), relative, absolute)

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


def outputs(folder: Path) -> list[Path]:
    """Every `NAME.LETTER.npz` of a folder, by name and letter.

    Raises:
        GoldenError: if there is none.
    """
    found = sorted(folder.glob("*.*.npz"), key=name_and_letter)
    if not found:
        raise GoldenError(f"{folder} holds no fixture: no NAME.json with a NAME.LETTER.npz")
    return found


def name_and_letter(output: Path) -> tuple[str, str]:
    """Of the path `NAME.LETTER.npz`."""
    name, _, letter = output.name.removesuffix(".npz").rpartition(".")
    return name, letter
