"""The parameters that all heads of networks share, and what they come to."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from vqbank.regressors.alignment import Align
from vqbank.regressors.base import Head
from vqbank.regressors.ensemble import Combine
from vqbank.regressors.plan import Optimizer, Plan, Precision, Schedule
from vqbank.store.errors import HeadError

AtLeastTwo = Annotated[int, Field(ge=2)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Probability = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


Selection = Literal["held-out", "refit", "fixed"]
"""What is kept: the epoch that held-out rows choose, of a training without them; the same number of
epochs of a second training, on all rows; or the last of `epochs` on all rows, as papers do that
state a number of epochs and hold nothing out."""


@dataclass(kw_only=True, eq=False, repr=False)
class NetworkParameters(Head):
    """A head whose parameters say how networks are trained.

    Those without a value have one of the head's own.
    """

    roles: list[str] | None = None
    """Which of the table's features are seen, in this order; None for all."""
    epochs: PositiveInt
    patience: PositiveInt
    """Epochs without a better SRCC on held-out rows after which training ends."""
    batch_size: AtLeastTwo
    learning_rate: Positive
    weight_decay: NotNegative
    standardise: bool = True
    """Values of a row by their mean and deviation over the rows that are fitted."""
    align: Align
    """How roles come onto the rows of the first one; see `alignment`."""
    slots: PositiveInt | None = None
    """Rows that every video is cut or filled to, if any."""
    schedule: Schedule = "step"
    """How the learning rate goes: `constant`; by `decay` every `decay_epochs` (`step`); along half
    a `cosine` to 0 at the end of `epochs`."""
    decay: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    """By what the learning rate is multiplied every `decay_epochs`, of the schedule `step`."""
    decay_epochs: PositiveInt = 10
    warmup_epochs: NotNegative = 0.0
    """Epochs, or parts of one, in which the learning rate first rises from 0, step by step."""
    optimizer: Optimizer = "adamw"
    clip_norm: Positive | None = None
    """The largest norm of a step's gradients, to which larger ones are scaled down."""
    averaging: Fraction | None = None
    """Of averaged weights (EMA), the part that stays at a step, such as 0.999: these are what is
    judged and kept."""
    precision: Precision = "float32"
    """Of products inside the network: `bfloat16` is mixed precision, for graphics cards."""
    forward_videos: PositiveInt | None = None
    """Videos that are in the network at a time, where memory has no room for a whole batch, nor for
    64 that are predicted; the loss sees all of a batch, and every step takes a second look."""
    selection: Selection = "held-out"
    validation_fraction: Fraction = 0.2
    """Of the training scenes, held out to choose the epoch."""
    start: str | None = None
    """Folder of a fitted head of this kind, whose networks go on being trained (LSVQ, then a small
    set), each with the standardisation that it has.  The card keeps what that head was."""
    seed: Seed = 0
    runs: PositiveInt = 1
    """Networks, of seeds from `seed` on, each with held-out scenes of its own."""
    combine: Combine = "mean"
    memory_gib: Positive = 2.0
    """What the rows of features may take in memory; beyond it they are streamed from the bank, in
    windows of an eighth of this; predicted batches take another.  Of each process that evaluates;
    networks too large for a stack are trained in processes that share one more copy."""
    threads: PositiveInt = 1
    device: str = "cpu"
    """Of PyTorch.  Not kept with the head, which is loaded for the processor of any machine."""

    @property
    def _budget_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def _plan(self) -> Plan:
        return Plan(
            epochs=self.epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            decay_epochs=self.decay_epochs,
            decay=self.decay,
            standardise=self.standardise,
            threads=self.threads,
            schedule=self.schedule,
            warmup_epochs=self.warmup_epochs,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            averaging=self.averaging,
            precision=self.precision,
            forward_videos=self.forward_videos,
        )

    def check_parameters(self) -> None:
        """As every head; and what only one schedule has goes with no other."""
        super().check_parameters()
        if self.schedule != "step" and self.decay != 1:
            raise HeadError(
                f"{self.name}: decay {self.decay:g} is of the schedule 'step', not of "
                f"{self.schedule!r}; leave one of them out"
            )
        if self.warmup_epochs >= self.epochs:
            raise HeadError(
                f"{self.name}: warmup_epochs {self.warmup_epochs:g} leave nothing of "
                f"{self.epochs} epochs"
            )
