"""Mean and deviation of every value of a row, over the rows that are fitted."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.regressors.batches import Scaling, Series


def scalings_of(series: Series, fits: Sequence[NDArray[np.int64]]) -> list[Scaling]:
    """Mean and deviation over the rows of each fold's training videos, in one pass."""
    every = np.unique(np.concatenate(fits))
    member = np.stack([np.isin(every, fit) for fit in fits]).astype(np.float64)  # [k, n]
    number = {row: place for place, row in enumerate(every.tolist())}
    counts = {
        role: torch.from_numpy(member @ series.lengths_of(role, every))[:, None]
        for role in series.widths
    }
    shift: dict[str, Tensor] = {}
    sums = {
        role: torch.zeros(len(fits), width, dtype=torch.float64)
        for role, width in series.widths.items()
    }
    squares = {role: torch.zeros_like(total) for role, total in sums.items()}
    for window in series.windows(every, rng=np.random.default_rng(0)):
        rows = window.among(every).tolist()
        shares = torch.from_numpy(member[:, [number[row] for row in rows]])
        for role in series.widths:
            own = [_moments(block) for block in window.blocks(role, rows)]
            means, spread = (torch.cat(one).double().cpu() for one in zip(*own, strict=True))
            lengths = torch.from_numpy(series.lengths_of(role, np.array(rows))).double()[:, None]
            # Around some value, because squares of large means would swallow small deviations.
            means -= shift.setdefault(role, means[0].clone())
            sums[role] += shares @ (lengths * means)
            squares[role] += shares @ (lengths * (spread + means**2))
    scalings = []
    for place in range(len(fits)):
        mean, deviation = {}, {}
        for role, total in sums.items():
            count = counts[role][place]
            centre = total[place] / count
            variance = (squares[role][place] / count - centre**2).clamp(min=0)
            # What is left of a value that never changes is rounding.
            constant = variance <= 1e-12 * (centre + shift[role]) ** 2
            mean[role] = (centre + shift[role]).float().to(series.device)
            deviation[role] = variance.sqrt().masked_fill(constant, 1).float().to(series.device)
        scalings.append(Scaling(mean, deviation))
    return scalings


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [v, d] of v videos [v, t, d], in float32.

    The variance is `Tensor.var` without correction, which takes five times as long.
    """
    rows = rows.float()
    mean = rows.mean(dim=1)
    return mean, (rows - mean[:, None]).square_().mean(dim=1)
