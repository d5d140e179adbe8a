"""How a network is trained: what the parameters of a head come to, and what training gives."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from vqbank.regressors.batches import Scaling

Schedule = Literal["constant", "step", "cosine"]
"""How the learning rate goes, step by step: not at all, by `decay` every `decay_epochs`, or along
half a cosine to 0 at the end of `epochs`, which the last step does not quite reach."""
Optimizer = Literal["adamw", "adam"]
Precision = Literal["float32", "bfloat16"]
"""Of products inside a network; weights, moments and losses are float32.  bfloat16 is for
graphics cards, and gives other numbers."""
RowChoice = Callable[[int, np.random.Generator | None], NDArray[np.int64]]
"""Which rows of a video a step sees, at least one, of how many there are: drawn by the generator in
training, always the same ones where there is none.  Of roles that have as many rows, a choice that
draws alike gives the same ones: the generators of all roles begin alike at every step."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained; the parameters of a head that say so."""

    epochs: int
    """The most that are run."""
    patience: int
    """Epochs without a better SRCC after which training ends."""
    batch_size: int
    """Videos per step at least, or all where they are fewer; at least 2."""
    learning_rate: float
    """The learning rate of the optimiser before any schedule."""
    weight_decay: float
    """AdamW takes it from the weights, Adam adds it to the gradient."""
    decay_epochs: int
    """Epochs after which the learning rate is multiplied by `decay`, again and again."""
    decay: float
    """What the learning rate is multiplied by after every `decay_epochs`, if it goes by steps."""
    standardise: bool
    """Values of a row by their mean and deviation over the rows that are fitted."""
    threads: int
    """Threads of PyTorch.  Another number gives other last bits."""
    schedule: Schedule = "step"
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises in a line from 0, which is that of the first step."""
    optimizer: Optimizer = "adamw"
    clip_norm: float | None = None
    """The largest norm of all gradients of a network together; they are scaled down to it."""
    averaging: float | None = None
    """The part that averaged weights keep of themselves at a step; they are what is judged and
    kept.  They begin as a copy of the start."""
    precision: Precision = "float32"
    forward_videos: int | None = None
    """Videos that are in the network at a time; None for all of a batch.  The loss sees the whole
    batch: scores are found first, and each part goes through the network again for its gradient."""

    def rate(self, epochs: float, steps: int) -> float:
        """The learning rate of a step.

        Args:
            epochs: that are gone before it, of which parts count.
            steps: of an epoch; the warm-up ends with the last step that it has wholly.
        """
        warm = int(self.warmup_epochs * steps) / steps
        if epochs < warm:
            return self.learning_rate * epochs / warm
        if self.schedule == "step":
            return self.learning_rate * self.decay ** (int(epochs) // self.decay_epochs)
        if self.schedule == "constant":
            return self.learning_rate
        gone = min(1.0, (epochs - warm) / (self.epochs - warm))
        return self.learning_rate * (1 + math.cos(math.pi * gone)) / 2


@dataclass(frozen=True)
class Method:
    """What a head's networks are and how they learn; goes to other processes as it is."""

    network: Callable[[Generator], nn.Module]
    """Makes a module that maps a PaddedBatch to scores [b], its start drawn from the generator."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Gives the loss of scores [b] and targets [b]."""
    plan: Plan
    identity: Mapping[str, Any]
    """All else that makes a training this one and no other, as JSON values."""
    choose: Mapping[str, RowChoice] = field(default_factory=dict)
    """By role, where a step does not see all rows of a video; the first role's is the grid's."""


class Start(NamedTuple):
    """A network that training goes on from."""

    state: Mapping[str, Tensor]
    """What it learnt, by name."""
    scaling: Scaling | None
    """By what its rows were standardised, and go on being."""
    model: str
    """sha256 of the file that it was read from."""


class Fold(NamedTuple):
    """The rows that one network learns from, and those that choose its epoch."""

    fit: NDArray[np.int64]
    """Rows of the table that are fitted."""
    held: NDArray[np.int64]
    """Rows of the table that choose the epoch."""
    targets: Tensor
    """[n] float32, of every row of the table: what the loss compares with."""
    seed: int
    """Draws the start of the network, its batches and its noise."""
    epochs: int | None = None
    """After so many the network is taken as it is then, whatever held-out rows say; None where they
    choose the epoch."""
    start: Start | None = None
    """Where training goes on from another's end; else the start is drawn."""


class Trained(NamedTuple):
    """What a fold came to."""

    state: dict[str, Tensor]
    """What the network learnt by its best epoch: parameters and running statistics."""
    scaling: Scaling | None
    epoch: int
    """The best one, from 1; the last, where their number was fixed."""
    srcc: float | None
    """SRCC of this epoch on the held-out rows, if there are any."""
