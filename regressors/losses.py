"""Losses of a batch of predictions and its scores; scale and offset stay free where it says so."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    l1_loss,
    mse_loss,
    relu,
)

from vqbank.store.errors import HeadError


def plcc_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """(1 - r) / 4 + (1 - r^2) / 8 with r Pearson's correlation over the batch: 0 is best.

    What `plcc_loss` of FAST-VQA and RQ-VQA comes to (there written as two squared errors of
    standardised values).  r counts as 0 where either side is constant.

    Args:
        predicted: [b], any scale.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two, of which no correlation is defined.
    """
    _check(predicted, mos)
    r = cosine_similarity(predicted - predicted.mean(), mos - mos.mean(), dim=0)
    return (1 - r) / 4 + (1 - r**2) / 8


def rank_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """Mean over ordered pairs of how far a pair stands in the wrong order: 0 is best, below 1.

    FAST-VQA's `rank_loss`: relu((p_i - p_j) sign(y_j - y_i)), divided by 1 + its maximum.

    Args:
        predicted: [b].
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    _check(predicted, mos)
    wrong = _wrong_by(predicted, mos)
    pairs = len(predicted) * (len(predicted) - 1)
    return wrong.sum() / pairs / (1 + wrong.max())


def linearity_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """(1 - r) / 2 with r Pearson's correlation over the batch: 0 is best, 1 worst.

    The linearity-induced loss of MDTVSFA (Li et al., IJCV 2021), `loss_a` in its code.  r counts as
    0 where either side is constant.

    Args:
        predicted: [b], any scale.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    _check(predicted, mos)
    return (1 - cosine_similarity(predicted - predicted.mean(), mos - mos.mean(), dim=0)) / 2


def correlation_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """1 - r with r Pearson's correlation over the batch: 0 is best, 2 worst (DVLTA-VQA, eq. 15).

    Twice `linearity_loss`: to AdamW, which divides by the size of gradients, hardly another; to
    what is added to it, and to a bound on gradients, it is.

    Args:
        predicted: [b], any scale.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    return 2 * linearity_loss(predicted, mos)


def margin_rank_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """Mean over all b * b ordered pairs of how far a pair stays below its true difference.

    relu(|y_i - y_j| - sign(y_i - y_j) (p_i - p_j)), the sign of a tie being +1: the L_R of A2INet
    and, but for its divisor, of SimpleVQA.  Unlike `rank_loss` it is 0 only where differences are
    at least as large as those of the scores, so that it asks for the unit of the scores.

    Args:
        predicted: [b], in the unit of the scores.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    _check(predicted, mos)
    true = mos[:, None] - mos  # [b, b]
    given = predicted[:, None] - predicted
    return relu(true.abs() - torch.where(true >= 0, given, -given)).mean()


def plcc_rank_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """`plcc_loss` + 0.3 `rank_loss`: what FAST-VQA, DOVER and MaxVQA train with.

    Args:
        predicted: [b], any scale.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    return plcc_loss(predicted, mos) + 0.3 * rank_loss(predicted, mos)


def l1_rank_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """Mean absolute error + `margin_rank_loss`: A2INet, and SimpleVQA's L1RankLoss.

    Args:
        predicted: [b], in the unit of the scores.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    _check(predicted, mos)
    return l1_loss(predicted, mos) + margin_rank_loss(predicted, mos)


def monotonicity_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """Mean over ordered pairs of how far a pair stands in the wrong order: 0 is best.

    The monotonicity-induced loss of MDTVSFA (Li et al., IJCV 2021), `loss_m` in its code, over the
    b (b - 1) pairs; FAST-VQA's `rank_loss` divides it by 1 + its maximum.

    Args:
        predicted: [b].
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    _check(predicted, mos)
    wrong = _wrong_by(predicted, mos)
    return wrong.sum() / (len(predicted) * (len(predicted) - 1))


def mixed_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """`linearity_loss` + `monotonicity_loss` + mean absolute error: MDTVSFA's `mixed`.

    There the three see three scores of a video, and the error is divided by the range of the MOS;
    here one score is all three, and scores come in a unit where the range is about 1.

    Args:
        predicted: [b], in the unit of the scores.
        mos: [b].

    Raises:
        HeadError: for a batch of fewer than two.
    """
    ranks = monotonicity_loss(predicted, mos)
    return linearity_loss(predicted, mos) + ranks + l1_loss(predicted, mos)


def cross_entropy_loss(predicted: Tensor, mos: Tensor) -> Tensor:
    """Binary cross-entropy of predictions that are log-odds of being good.

    With soft targets, as for the share of raters who find a video good: a sigmoid of the
    predictions is fitted to the scores.

    Args:
        predicted: [b], any scale.
        mos: [b], 0 to 1; what lies outside counts as the nearer end.
    """
    return binary_cross_entropy_with_logits(predicted, mos.clamp(0, 1))


Loss = Literal[
    "l1", "mae", "mse", "plcc", "1-plcc", "plcc+rank", "rqvqa", "l1+rank", "mixed", "cross-entropy"
]
LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "mae": l1_loss,
    "mse": mse_loss,
    "plcc": plcc_loss,
    "1-plcc": correlation_loss,
    "plcc+rank": plcc_rank_loss,
    "rqvqa": plcc_loss,
    "l1+rank": l1_rank_loss,
    "mixed": mixed_loss,
    "cross-entropy": cross_entropy_loss,
}
"""By the names that users know: VSFA's, which tables call MAE, and the squared error; FAST-VQA's
two, DVLTA-VQA's, RQ-VQA's (FAST-VQA's PLCC loss), that of A2INet and SimpleVQA,
MDTVSFA's, and one of shares of raters.  Each takes predictions [b] and scores [b]."""


def _wrong_by(predicted: Tensor, mos: Tensor) -> Tensor:
    """[b, b]: by how much a pair is predicted in the wrong order, 0 where it is right."""
    return relu((predicted[:, None] - predicted) * torch.sign(mos - mos[:, None]))


def _check(predicted: Tensor, mos: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != mos.shape or len(predicted) < 2:
        raise HeadError(
            "a loss over pairs needs two series of equal length, at least 2: "
            f"got predictions {tuple(predicted.shape)} and mos {tuple(mos.shape)}"
        )
