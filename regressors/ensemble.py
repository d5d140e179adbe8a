"""The networks of a fitted head: what they learned, their file, how their scores become one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vqbank.regressors.batches import Scaling
from vqbank.regressors.metrics import fit_line
from vqbank.store.errors import HeadError, in_words

Combine = Literal["mean", "rank", "zscore"]
"""What makes one score of several runs: the mean of raw scores, of places among each run's scores
of the training rows (0 to 1), or of scores in deviations of these."""
MOST_REFERENCE = 2**20
"""The most training videos whose scores a file is expected to hold."""
_NETWORK = "network."
_KINDS = ("mean", "deviation")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One network or several, of as many runs, and the line from their scores to MOS."""

    state: Mapping[str, Tensor]
    """What the networks learnt by name, [runs, ...] float32 each."""
    scalings: Sequence[Scaling | None]
    """By what the rows of each network are standardised; None where they are taken as they are."""
    reference: Tensor
    """[runs, n] float64: each network's scores of the n training rows, sorted; n is 0 where runs
    are combined by the mean, which needs none."""
    line: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept, from combined scores to MOS."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], scalings: Sequence[Scaling | None]) -> "Ensemble":
        """Networks whose scores are not yet compared with any MOS."""
        return cls(state, scalings, torch.empty(len(scalings), 0, dtype=torch.float64))

    def fitted(
        self, raw: NDArray[np.float64], mos: NDArray[np.float64], combine: Combine
    ) -> "Ensemble":
        """The same networks, with the line to the unit of the MOS.

        Args:
            raw: [runs, n], what the networks say of the training rows.
            mos: [n].
            combine: how runs become one.

        Raises:
            HeadError: if they say the same of all, which no line brings to any unit.
        """
        told = self
        if combine != "mean":
            told = replace(self, reference=torch.from_numpy(np.sort(raw, axis=1)))
        combined = told.combined(raw, combine)
        if np.ptp(combined) == 0:
            raise HeadError(
                f"predictions stayed constant: all {len(mos)} training videos get "
                f"{combined[0]:g}; raise the learning rate, or look whether their rows differ"
            )
        slope, intercept = fit_line(mos, combined)
        return replace(told, line=(float(slope), float(intercept)))

    def combined(self, raw: NDArray[np.float64], combine: Combine) -> NDArray[np.float64]:
        """[n] of the scores [runs, n] of all runs; no video's depends on the others.

        Raises:
            HeadError: if scores of the training rows are needed, and were not kept.
        """
        if combine == "mean":
            return raw.mean(axis=0)
        reference = self.reference.numpy()
        if reference.size == 0:
            raise HeadError("the head was fitted with combine 'mean'; fit it again")
        if combine == "zscore":
            mean, deviation = reference.mean(axis=1), reference.std(axis=1)
            return ((raw - mean[:, None]) / deviation[:, None]).mean(axis=0)
        places = np.linspace(0, 1, reference.shape[1])
        ranks = [np.interp(own, known, places) for own, known in zip(raw, reference, strict=True)]
        return np.mean(ranks, axis=0)

    def in_mos(self, raw: NDArray[np.float64], combine: Combine) -> NDArray[np.float64]:
        """[n], in the unit of the MOS, of the scores [runs, n] of all runs."""
        slope, intercept = self.line
        return slope * self.combined(raw, combine) + intercept

    def content(self) -> bytes:
        """As a safetensors file."""
        tensors = {f"{_NETWORK}{name}": value.contiguous() for name, value in self.state.items()}
        scalings = [scaling for scaling in self.scalings if scaling is not None]
        for role in scalings[0].mean if scalings else ():
            for kind in _KINDS:
                own = [getattr(scaling, kind)[role] for scaling in scalings]
                tensors[f"scaling.{role}.{kind}"] = torch.stack(own)
        tensors["line"] = torch.tensor(self.line, dtype=torch.float64)
        tensors["reference"] = self.reference
        return save(tensors)

    @classmethod
    def read(
        cls,
        content: bytes,
        path: Path,
        *,
        runs: int,
        shapes: Mapping[str, Sequence[int]] | None,
        widths: Mapping[str, int],
    ) -> "Ensemble":
        """What `content` gave.

        Args:
            content: of the file.
            path: of the file, for messages.
            runs: how many networks there are.
            shapes: of the parameters of one network, by name; None where they are known later.
            widths: d of a row, by role.

        Raises:
            HeadError: if the file is damaged, or its networks are others.
        """
        try:
            tensors = load(content)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise HeadError(f"{_unfit(path)}: {in_words(error)}") from error
        if shapes is None:
            shapes = {
                name.removeprefix(_NETWORK): value.shape[1:]
                for name, value in tensors.items()
                if name.startswith(_NETWORK)
            }
        known = tensors.get("reference", torch.empty(0)).shape[-1:]  # n, whatever it is
        wanted = {
            **{f"{_NETWORK}{name}": (runs, *shape) for name, shape in shapes.items()},
            "line": (2,),
            "reference": (runs, *known),
        }
        scaled = tensors.keys() > wanted.keys()
        if scaled:
            wanted |= {
                f"scaling.{role}.{kind}": (runs, width)
                for role, width in widths.items()
                for kind in _KINDS
            }
        check_shapes(tensors, wanted, path)
        for name, tensor in tensors.items():
            kind = torch.float64 if name in ("line", "reference") else torch.float32
            if tensor.dtype != kind:
                raise HeadError(f"{path} is damaged: {name} holds {tensor.dtype}")
            if not tensor.isfinite().all():
                raise HeadError(f"{path} is damaged: {name} has values that are not finite")
            if name.endswith(".deviation") and name.startswith("scaling.") and (tensor <= 0).any():
                raise HeadError(f"{path} is damaged: {name} has deviations that are not above 0")
        scalings = _scalings(tensors, widths, runs) if scaled else [None] * runs
        slope, intercept = tensors["line"].tolist()
        return cls(
            {name: tensors[f"{_NETWORK}{name}"] for name in shapes},
            list(scalings),
            tensors["reference"],
            (slope, intercept),
        )


def most_bytes(runs: int, shapes: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> int:
    """Bytes that a file of such networks has at most; arguments as for `Ensemble.read`."""
    values = sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    values += len(_KINDS) * sum(widths.values())
    return 2**20 + runs * (4 * values + 8 * MOST_REFERENCE)


def check_shapes(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Compare names and shapes of what a file holds with those of a network.

    Raises:
        HeadError: naming one that is missing, is too much, or differs.
    """
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != got:
        name = min(one for one in wanted.keys() | got.keys() if wanted.get(one) != got.get(one))
        raise HeadError(
            f"{_unfit(path)}: {name.removeprefix(_NETWORK)} has shape {got.get(name, 'none')}, "
            f"not {wanted.get(name, 'any')}"
        )


def _unfit(path: Path) -> str:
    return f"{path} does not fit this head, or is damaged"


def _scalings(
    tensors: Mapping[str, Tensor], widths: Mapping[str, int], runs: int
) -> Iterator[Scaling]:
    for run in range(runs):
        mean, deviation = (
            {role: tensors[f"scaling.{role}.{kind}"][run] for role in widths} for kind in _KINDS
        )
        yield Scaling(mean, deviation)
