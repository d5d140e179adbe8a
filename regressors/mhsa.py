"""RQ-VQA's head with the attention blocks that it trains, on the tokens of key frames."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.bottleneck import Stack
from vqbank.regressors.layers import linear
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.score_pooling import POOLINGS
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError


@dataclass(kw_only=True, eq=False, repr=False)
class Mhsa(SequenceHead):
    """RQ-VQA (Sun et al., NTIRE 2024): attention over the places of a map, then two linear layers.

    The first role is a map, row by row, such as `swin.tokens` of 144 x 1024 (a row without places
    is a map of one, and places that make no square stand in one row).  It goes through bottleneck
    transformer blocks with batch statistics; its mean over places stands before the rows of all
    other roles, 6639 values in all for the official features.  `mlp` is the same on a banked
    `swin.feature`, whose blocks nobody trains any more.  What stays frozen here is Swin itself,
    which the official code trains too, and its crop, which there is drawn anew at every step and
    here is the one in the middle.
    """

    name: ClassVar[str] = "mhsa"
    stackable: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "slots": 8,
            "align": "repeat",
            "epochs": 30,
            "patience": 30,
            "batch_size": 6,
            "learning_rate": 1e-5,
            "weight_decay": 1e-7,
            "optimizer": "adam",
            "decay": 0.9,  # every 10 epochs
        }
    )

    blocks: PositiveInt = 3
    bottleneck: PositiveInt = 256
    """Channels inside a block."""
    heads: PositiveInt = 4
    head_channels: PositiveInt = 128
    width: PositiveInt = 128
    """Of the hidden layer."""
    loss: Loss = "plcc"
    standardise: bool = False
    """Tokens come out of a normalisation."""
    align: Align = "nearest"
    epochs: PositiveInt = 30
    patience: PositiveInt = 10
    batch_size: AtLeastTwo = 6
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 1e-2

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        role, first = next(iter(inputs.items()))
        if len(first.shape) > 2:
            shape = " x ".join(map(str, first.shape))
            raise HeadError(
                f"{self.name}: the first role, {role}, has rows of {shape}; it takes those of a "
                "map, places x channels, such as the 144 x 1024 of swin.tokens"
            )
        stack = Stack(
            blocks=self.blocks,
            channels=first.shape[-1],
            bottleneck=self.bottleneck,
            heads=self.heads,
            head_channels=self.head_channels,
            size=_size(first),
            generator=generator,
        )
        others = sum(one.width for one in inputs.values()) - first.width
        return AttentiveScores(
            stack, _size(first), role, first.shape[-1] + others, self.width, generator=generator
        )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The checkpoint of the whole model, saved from under DataParallel; the counts of batches
        # change nothing where a normalisation has a momentum.
        plain = {key.removeprefix("module."): value for key, value in state.items()}
        return {
            key: value
            for key, value in plain.items()
            if key.startswith(("bot4.", "quality.")) and not key.endswith("num_batches_tracked")
        }


def _size(rows: Input) -> tuple[int, int]:
    """Rows and columns of the map that a row is."""
    places = rows.shape[0] if len(rows.shape) == 2 else 1
    side = math.isqrt(places)
    return (side, side) if side**2 == places else (1, places)


class AttentiveScores(nn.Module):
    """The network of `Mhsa`.

    Args of the constructor:
        stack: of attention blocks.
        size: rows and columns of a map.
        role: of the maps.
        width_in: channels of a map and the values of all other roles.
        width: of the hidden layer.
        generator: draws its weights.
    """

    def __init__(
        self,
        stack: Stack,
        size: tuple[int, int],
        role: str,
        width_in: int,
        width: int,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.size = size
        self.role = role
        self.bot4 = stack
        self.quality = nn.Sequential(
            linear(width_in, width, generator=generator), linear(width, 1, generator=generator)
        )

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        spatial, *others = (
            self._spatial(batch) if role == self.role else batch.series(role)
            for role in batch.values
        )
        rows = torch.cat([spatial, *others], dim=2)
        return POOLINGS["mean"](self.quality(rows)[..., 0], batch.mask)

    def _spatial(self, batch: PaddedBatch) -> Tensor:
        """[b, t, c], 0 behind a video's last row: the statistics of a batch are of real rows."""
        real = batch.values[self.role][batch.mask].float()  # [n, places, c] or [n, c]
        channels = real.shape[-1]
        maps = real.reshape(len(real), -1, channels).transpose(1, 2)
        seen = self.bot4(maps.unflatten(2, self.size)).mean(dim=(2, 3))
        spatial = seen.new_zeros(*batch.mask.shape, channels)
        spatial[batch.mask] = seen
        return spatial
