"""Losses that compare a batch of predictions with its scores: scale and offset stay free."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from store.errors import HeadError


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
    wrong = relu((predicted[:, None] - predicted) * torch.sign(mos - mos[:, None]))  # [b, b]
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


def _check(predicted: Tensor, mos: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != mos.shape or len(predicted) < 2:
        raise HeadError(
            "a loss over pairs needs two series of equal length, at least 2: "
            f"got predictions {tuple(predicted.shape)} and mos {tuple(mos.shape)}"
        )
