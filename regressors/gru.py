"""VSFA's head: a GRU over frames, and a memory that bad moments stay in."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.layers import GruLayer, linear
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.score_pooling import POOLINGS, Pooling
from vqbank.regressors.sequence import SequenceHead


@dataclass(kw_only=True, eq=False, repr=False)
class Gru(SequenceHead):
    """Reduction, GRU, a score for every row, temporal pooling (VSFA: Li et al., ACM MM 2019).

    Rows of all roles, one after the other, -> 128 -> GRU 32 -> 1 -> hysteresis pooling, without
    any activation between.  `paper` holds what VSFA's code trains with: no standardisation, the
    absolute error, a learning rate of 1e-5.
    """

    name: ClassVar[str] = "gru"
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "standardise": False,
            "loss": "l1",
            "learning_rate": 1e-5,
            "weight_decay": 0.0,
            "epochs": 2000,
            "patience": 2000,
            "decay": 0.8,
            "decay_epochs": 200,
        }
    )

    reduction: PositiveInt = 128
    width: PositiveInt = 32
    pooling: Pooling = "hysteresis"
    loss: Loss = "l1"
    align: Align = "nearest"
    epochs: PositiveInt = 60
    patience: PositiveInt = 15
    batch_size: AtLeastTwo = 16  # VSFA's
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-2

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        return FrameScores(
            sum(one.width for one in inputs.values()),
            self.reduction,
            self.width,
            pooling=self.pooling,
            generator=generator,
        )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # `ann.fc` is in VSFA's files, but its forward never comes to it.
        names = {"ann.fc0": "reduce", "rnn": "recurrent", "q": "score"}
        return {
            f"{names[layer]}.{kind}": value
            for key, value in state.items()
            for layer, _, kind in [key.rpartition(".")]
            if layer != "ann.fc"
        }


class FrameScores(nn.Module):
    """The network of `Gru`."""

    def __init__(
        self,
        width_in: int,
        reduction: int,
        width: int,
        *,
        pooling: Pooling,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.reduce = linear(width_in, reduction, generator=generator)
        self.recurrent = GruLayer(reduction, width, generator=generator)
        self.score = linear(width, 1, generator=generator)
        self.pooling = POOLINGS[pooling]

    def frames(self, batch: PaddedBatch) -> Tensor:
        """[b, t]: the score of every row."""
        rows = batch.rows
        return self.score(self.recurrent.behind(self.reduce, rows))[..., 0]

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.pooling(self.frames(batch), batch.mask)
