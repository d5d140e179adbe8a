"""FAST-VQA's own head, trained on the maps that were banked of its frozen backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.feature_map import MapPooling, channels_first
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import (
    AtLeastTwo,
    NotNegative,
    Positive,
    Probability,
)
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError


@dataclass(kw_only=True, eq=False, repr=False)
class MapNet(SequenceHead):
    """A score at every place of feature maps, and their mean: FAST-VQA's `VQAHead`, 768-64-1.

    A row is a clip with channels first, such as `fastvqa.map` [768, 16, 7, 7]; a plain vector is a
    map of one place.  Scores of several roles are added, as DOVER adds those of its branches.  The
    last layer has no bias: a correlation leaves it free, and Adam would make steps of rounding.

    The defaults are for a processor.  `paper` adds the dropout of the official code, of every
    place, which takes longer than all else there, and its 30 epochs.

    Parameters:
        hidden: width between the layers.
        dropout: before either layer.
    """

    name: ClassVar[str] = "mapnet"
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType({"dropout": 0.5, "epochs": 30})

    hidden: PositiveInt = 64
    dropout: Probability = 0.0
    loss: Loss = "plcc+rank"
    standardise: bool = False
    align: Align = "repeat"
    epochs: PositiveInt = 60
    patience: PositiveInt = 15
    batch_size: AtLeastTwo = 16
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 5e-2
    memory_gib: Positive = 4.0

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        for role, one in inputs.items():
            if not one.shape:
                raise HeadError(f"{self.name}: rows of {role} are numbers; it takes maps")
        return MapScores(
            {role: one.shape[0] for role, one in inputs.items()},
            self.hidden,
            dropout=self.dropout,
            generator=generator,
        )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)


class MapScores(nn.Module):
    """The network of `MapNet`.

    Args of the constructor:
        channels: of a row, by role.
        hidden: width between the layers.
        dropout: before either layer, in training.
        generator: draws the start.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        hidden: int,
        *,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.roles = list(channels)
        self.dropout = dropout
        self.parts = nn.ModuleList(
            MapPooling(width, hidden, 1, bias=False, generator=generator)
            for width in channels.values()
        )

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        noise = batch.noise if self.training and self.dropout else None
        scores = [
            part(
                channels_first(batch.values[role]),
                batch.mask,
                probability=self.dropout,
                noise=noise,
            )
            for part, role in zip(self.parts, self.roles, strict=True)
        ]
        return torch.stack(scores).sum(dim=0)[:, 0]

    def local(self, batch: PaddedBatch) -> Tensor:
        """[b, g, g]: the score of every place of maps [..., g, g], the mean over clips and time."""
        total: Tensor | float = 0.0
        for part, role in zip(self.parts, self.roles, strict=True):
            maps = batch.values[role]
            if maps.ndim < 5:
                raise HeadError(f"rows of {role} are no maps of places: {list(maps.shape[2:])}")
            scores = cast(MapPooling, part).places(channels_first(maps))
            by_place = scores.reshape(*maps.shape[:2], -1, *maps.shape[-2:]).mean(dim=2)
            real = batch.mask[:, :, None, None]
            total = total + (by_place * real).sum(dim=1) / real.sum(dim=1)
        assert isinstance(total, Tensor)
        return total
