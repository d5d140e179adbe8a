"""RQ-VQA's head: two linear layers on every row, and the mean over rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.layers import dropout
from vqbank.regressors.layers import linear as linear_layer
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive, Probability
from vqbank.regressors.score_pooling import POOLINGS
from vqbank.regressors.sequence import SequenceHead

STACKED_WEIGHTS = 2**18
"""With more, a step is bound by memory: a stack of ten no longer fits a cache that holds one."""
Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": nn.Identity(),
    "relu": relu,
    "gelu": gelu,
}


@dataclass(kw_only=True, eq=False, repr=False)
class Mlp(SequenceHead):
    """Rows of all roles, one after the other, -> 128 -> 1, the mean over rows; PLCC loss.

    RQ-VQA's head (Sun et al., NTIRE 2024) has no activation and no dropout, and does not
    standardise its inputs.  It is affine, so that rows can be averaged before it: exactly the same
    with an eighth of the work, which is done wherever there is no activation.  `standardise` then
    goes by the deviation of these means over videos, not by that of rows.  `paper` holds what its
    code trains with; FAST-VQA's clips, which are no slots, want `align: {..., fastvqa: mean}`, as
    the recipe `rqvqa` has it.
    """

    name: ClassVar[str] = "mlp"
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "standardise": False,
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

    width: PositiveInt = 128
    activation: Activation = "none"
    dropout: Probability = 0.0
    loss: Loss = "plcc"
    align: Align = "nearest"
    epochs: PositiveInt = 200
    patience: PositiveInt = 30
    batch_size: AtLeastTwo = 64
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-2

    @property
    def _average(self) -> bool:
        return self.activation == "none" and self.dropout == 0

    def _stacks(self, inputs: Mapping[str, Input]) -> bool:
        return sum(one.width for one in inputs.values()) * self.width <= STACKED_WEIGHTS

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        return Perceptron(
            sum(one.width for one in inputs.values()),
            self.width,
            activation=self.activation,
            probability=self.dropout,
            generator=generator,
        )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The checkpoint of the whole model, saved from under DataParallel.
        plain = {key.removeprefix("module."): value for key, value in state.items()}
        names = {"quality.0": "hidden", "quality.1": "score"}
        return {
            f"{ours}.{kind}": plain[f"{layer}.{kind}"]
            for layer, ours in names.items()
            for kind in ("weight", "bias")
        }


class Perceptron(nn.Module):
    """The network of `Mlp`."""

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        activation: Activation,
        probability: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.hidden = linear_layer(width_in, width, generator=generator)
        self.score = linear_layer(width, 1, generator=generator)
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[activation]
        self.probability = probability
        self.affine = activation == "none" and probability == 0

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        scores = self._as_one(batch.rows) if self.affine else self._as_two(batch.rows, batch.noise)
        return POOLINGS["mean"](scores[..., 0], batch.mask)

    def _as_one(self, rows: Tensor) -> Tensor:
        """[b, t, 1]: two linear layers are one, whose row is found once for all rows of a batch."""
        weight = self.score.weight @ self.hidden.weight
        return linear(rows, weight, self.score(self.hidden.bias))

    def _as_two(self, rows: Tensor, noise: Tensor) -> Tensor:
        """[b, t, 1]."""
        hidden = self.activation(self.hidden(rows))
        if self.training and self.probability:
            hidden = dropout(hidden, self.probability, noise)
        return self.score(hidden)
