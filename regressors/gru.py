"""VSFA's head: a GRU over frames, and a memory that bad moments stay in."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from regressors.alignment import Align
from regressors.batches import Batch
from regressors.layers import Gru as Recurrent
from regressors.layers import linear
from regressors.losses import plcc_loss
from regressors.score_pooling import POOLINGS, Pooling
from regressors.sequence import (
    AtLeastTwo,
    Combine,
    Fraction,
    NotNegative,
    Positive,
    Seed,
    SequenceHead,
)


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

    def __init__(
        self,
        *,
        reduction: PositiveInt = 128,
        width: PositiveInt = 32,
        pooling: Pooling = "hysteresis",
        loss: Literal["l1", "plcc"] = "l1",
        standardise: bool = True,
        align: Align = "nearest",
        slots: PositiveInt | None = None,
        epochs: PositiveInt = 60,
        patience: PositiveInt = 15,
        batch_size: AtLeastTwo = 16,  # VSFA's
        learning_rate: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        decay: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0,
        decay_epochs: PositiveInt = 10,
        validation_fraction: Fraction = 0.2,
        seed: Seed = 0,
        runs: PositiveInt = 1,
        combine: Combine = "mean",
        memory_gib: Positive = 2.0,
        threads: PositiveInt = 1,
        device: str = "cpu",
    ) -> None:
        self.reduction = reduction
        self.width = width
        self.pooling = pooling
        self.loss = loss
        self.standardise = standardise
        self.align = align
        self.slots = slots
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.decay = decay
        self.decay_epochs = decay_epochs
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.runs = runs
        self.combine = combine
        self.memory_gib = memory_gib
        self.threads = threads
        self.device = device

    def _network(self, widths: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        return FrameScores(
            sum(widths.values()),
            self.reduction,
            self.width,
            pooling=self.pooling,
            generator=generator,
        )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return l1_loss(predicted, target) if self.loss == "l1" else plcc_loss(predicted, target)

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
        self.recurrent = Recurrent(reduction, width, generator=generator)
        self.score = linear(width, 1, generator=generator)
        self.pooling = POOLINGS[pooling]

    def frames(self, batch: Batch) -> Tensor:
        """[b, t]: the score of every row."""
        reduced = self.reduce(torch.cat(list(batch.values.values()), dim=2))
        return self.score(self.recurrent(reduced))[..., 0]

    def forward(self, batch: Batch) -> Tensor:
        """[b]."""
        return self.pooling(self.frames(batch), batch.mask)
