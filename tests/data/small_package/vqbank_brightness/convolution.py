"""A network: differences of neighbouring rows, a score for each row, and their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.layers import linear
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.sequence import SequenceHead


@dataclass(kw_only=True, eq=False, repr=False)
class Convolution(SequenceHead):
    """Rows beside how they differ from the row before, two layers, the mean over rows."""

    name: ClassVar[str] = "convolution"

    width: PositiveInt = 32
    loss: Loss = "plcc"
    align: Align = "nearest"
    epochs: PositiveInt = 60
    patience: PositiveInt = 15
    batch_size: AtLeastTwo = 16
    learning_rate: Positive = 1e-2
    weight_decay: NotNegative = 1e-2

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        width = sum(one.width for one in inputs.values())
        return Differences(width, self.width, generator=generator)

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)


class Differences(nn.Module):
    """The network of `Convolution`."""

    def __init__(self, width: int, hidden: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = linear(2 * width, hidden, generator=generator)
        self.score = linear(hidden, 1, generator=generator)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Scores [b] of rows [b, t, d]; rows behind a video's last count nowhere."""
        rows = batch.rows
        before = torch.cat([rows[:, :1], rows[:, :-1]], dim=1)
        hidden = self.hidden(torch.cat([rows, rows - before], dim=2)).relu()
        scores = self.score(hidden)[..., 0]
        return (scores * batch.mask).sum(dim=1) / batch.mask.sum(dim=1)
