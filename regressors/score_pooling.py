"""From scores of rows to the score of a video: all as one function on a padded batch."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

Pooling = Literal["hysteresis", "mean", "min", "softmin", "last", "percentile"]
TAU, BETA = 12, 0.5
"""Of VSFA's code (Li et al., ACM MM 2019): rows that are looked back and ahead, share of memory."""
LAST = 12
"""Rows of `last`."""
WORST_PERCENT = 30
"""Part of the rows that `percentile` takes: VQPooling (Park et al., 2013) and Moorthy and Bovik's
percentile pooling let the worst ones decide."""


def hysteresis(scores: Tensor, mask: Tensor, *, tau: int = TAU, beta: float = BETA) -> Tensor:
    """[b, t]: every row's score as memory and expectation make it.

    beta min(q of the tau rows up to and with this one) + (1 - beta) sum(w q) / sum(w) over the tau
    rows from this one on, with w = exp(-q): the code of VSFA, MDTVSFA and Li et al. (TCSVT 2022),
    where memory includes the row itself.  Their code is NaN where all of a window lie above about
    104, as exp(-q) is then 0; here weights are a softmax, and scores of up to 1e19 will do.

    Args:
        scores: [b, t].
        mask: [b, t], true for real rows, which come first.
        tau: rows of a window.
        beta: share of memory.
    """
    # Padding is the largest for memory, and has no weight for expectation; times a gradient it is
    # finite still.
    far = math.sqrt(torch.finfo(scores.dtype).max)
    negative = pad(torch.where(mask, -scores, -far), (tau - 1, tau - 1), value=-far)
    count = scores.shape[1]
    memory = -max_pool1d(negative[:, None, : count + tau - 1], tau, stride=1)[:, 0]
    windows = torch.stack([negative[:, row : row + count] for row in range(tau - 1, 2 * tau - 1)])
    expected = -(torch.softmax(windows, dim=0) * windows).sum(dim=0)
    return beta * memory + (1 - beta) * expected


def _hysteresis(scores: Tensor, mask: Tensor) -> Tensor:
    return _mean(hysteresis(scores, mask), mask)


def _mean(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores, 0).sum(dim=1) / mask.sum(dim=1)


def _min(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores, torch.inf).amin(dim=1)


def _softmin(scores: Tensor, mask: Tensor) -> Tensor:
    weights = torch.softmax(torch.where(mask, -scores, -torch.inf), dim=1)
    return (weights * torch.where(mask, scores, 0)).sum(dim=1)


def _last(scores: Tensor, mask: Tensor) -> Tensor:
    row = torch.arange(scores.shape[1], device=scores.device)
    late = mask & (row >= mask.sum(dim=1, keepdim=True) - LAST)
    return _mean(scores, late)


def _percentile(scores: Tensor, mask: Tensor) -> Tensor:
    ordered = torch.where(mask, scores, torch.inf).sort(dim=1).values
    # In whole numbers: 0.3 x 10 is more than 3 in floating point.
    count = (WORST_PERCENT * mask.sum(dim=1, keepdim=True) + 99) // 100
    row = torch.arange(scores.shape[1], device=scores.device)
    return _mean(ordered, row < count)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "hysteresis": _hysteresis,
    "mean": _mean,
    "min": _min,
    "softmin": _softmin,
    "last": _last,
    "percentile": _percentile,
}
"""Scores [b, t] and mask [b, t] to scores [b].

- hysteresis: the mean of `hysteresis`.
- mean, min: over all rows.
- softmin: sum(w q) / sum(w) over all rows, with w = exp(-q).
- last: the mean of the last 12 rows.
- percentile: the mean of the worst 30 % of the rows, rounded up.
"""
