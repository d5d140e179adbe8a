"""VSFA's head: a GRU over frames, and a memory that bad moments stay in."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.layers import GruLayer, linear
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.score_pooling import POOLINGS, Pooling
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.table import FeatureTable


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

    def row_scores(self, table: FeatureTable) -> list[NDArray[np.float64]] | None:
        """What the networks say of every row, before temporal pooling; None where slots hold rows.

        A row's score stands on the rows before it, as the GRU remembers them.
        """
        self._check_fitted()
        if self.slots is not None:
            return None
        series = self._series(self._chosen(table))
        network = self._network(self._inputs(series.table.specs), torch.Generator())
        assert isinstance(network, FrameScores)
        frames = RowScores(network)
        frames.to(series.device).eval()
        found = []
        for row in range(len(table)):
            rows = np.array([row])
            (window,) = series.windows(rows, rng=np.random.default_rng(0))
            raw = []
            for run, scaling in enumerate(self.ensemble_.scalings):
                state = {f"network.{n}": own[run] for n, own in self.ensemble_.state.items()}
                state = {name: own.to(series.device) for name, own in state.items()}
                scaled = scaling and scaling.to(series.device)
                values, masks = window.padded([rows], [scaled])
                batch = PaddedBatch(
                    {role: own[0] for role, own in values.items()},
                    masks[series.table.roles[0]][0],
                    torch.zeros((), dtype=torch.int64, device=series.device),
                )
                with torch.inference_mode():
                    raw.append(functional_call(frames, state, (batch,))[0].double().cpu().numpy())
            found.append(self.ensemble_.in_mos(np.stack(raw), self.combine))
        return found

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


class RowScores(nn.Module):
    """A `FrameScores` whose forward stops before the pooling."""

    def __init__(self, network: "FrameScores") -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b, t]."""
        return self.network.frames(batch)


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
