"""One network under training, and several of them as one stack: what a step does."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from vqbank.regressors.batches import PaddedBatch, Scaling, Window
from vqbank.regressors.progress import Epoch
from vqbank.store.errors import HeadError

BUCKET = 16
"""Batches among which videos are sorted by length, so that little of a batch is padding."""


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
    """The learning rate of AdamW in the first epochs."""
    weight_decay: float
    """The weight decay of AdamW."""
    decay_epochs: int
    """Epochs after which the learning rate is multiplied by `decay`, again and again."""
    decay: float
    """What the learning rate is multiplied by after every `decay_epochs`."""
    standardise: bool
    """Values of a row by their mean and deviation over the rows that are fitted."""
    threads: int
    """Threads of PyTorch.  Another number gives other last bits."""


@dataclass(frozen=True)
class Method:
    """What a head's networks are and how they learn; goes to other processes as it is."""

    network: Callable[[torch.Generator], nn.Module]
    """Makes a module that maps a PaddedBatch to scores [b], its start drawn from the generator."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Gives the loss of scores [b] and targets [b]."""
    plan: Plan
    identity: Mapping[str, Any]
    """All else that makes a training this one and no other, as JSON values."""


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


class Trained(NamedTuple):
    """What a fold came to."""

    state: dict[str, Tensor]
    """The parameters of the network after its best epoch."""
    scaling: Scaling | None
    epoch: int
    """The best one, from 1."""
    srcc: float
    """SRCC of the best epoch, on the held-out rows."""


class Member:
    """One network under training: all that differs between those of a stack."""

    def __init__(
        self,
        number: int,
        fold: Fold,
        module: nn.Module,
        plan: Plan,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.number = number
        self.fold = fold
        self.targets = fold.targets.to(device)
        self.parameters = {
            name: value.detach().to(device) for name, value in module.named_parameters()
        }
        self.moments = {
            name: tuple(torch.zeros_like(value) for _ in range(2))
            for name, value in self.parameters.items()
        }
        self.counts = {name: torch.zeros((), device=device) for name in self.parameters}
        self.generator = generator
        self.order = np.random.default_rng(fold.seed)
        self.plan = plan
        self.scaling: Scaling | None = None
        self.steps = 0
        self.epoch = 0
        self.loss = self.srcc = math.nan
        self.best_epoch, self.best_srcc = 0, -math.inf
        self.best = {name: value.clone() for name, value in self.parameters.items()}

    @property
    def done(self) -> bool:
        """Whether its epochs or its patience are over."""
        return self.epoch >= self.plan.epochs or self.epoch - self.best_epoch >= self.plan.patience

    def refuse_constant(self) -> None:
        """A split that leaves nothing to rank."""
        for name, rows in (("training", self.fold.fit), ("held-out", self.fold.held)):
            if len(self.fold.targets[rows].unique()) < 2:
                raise HeadError(
                    f"the {len(rows)} {name} rows share one MOS, which leaves nothing to rank; "
                    "use more videos, another seed or another validation_fraction"
                )

    def batches(
        self, rows: NDArray[np.int64], lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> list[NDArray[np.int64]]:
        """Shuffled batches of at least `batch_size` rows, those of a batch of like length."""
        shuffled = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        bucket = BUCKET * self.plan.batch_size
        parts = np.array_split(shuffled, max(1, len(rows) // bucket))
        batches = [
            batch
            for part in parts
            for batch in np.array_split(
                part[np.argsort(lengths(part), kind="stable")],
                max(1, len(part) // self.plan.batch_size),
            )
        ]
        order = torch.randperm(len(batches), generator=self.generator)
        return [batches[number] for number in order.tolist()]

    def noise(self) -> int:
        """Of the step that comes; the last of many runs may have a seed beyond 31 bits."""
        return (self.fold.seed * 2**32 + self.steps) % 2**63

    def judge(self, loss: float, held_srcc: float) -> None:
        """Close an epoch; SRCC of NaN, where all predictions agree, is never better."""
        self.epoch += 1
        self.loss, self.srcc = loss, held_srcc
        if held_srcc > self.best_srcc:
            self.best_epoch, self.best_srcc = self.epoch, held_srcc
            for name, value in self.parameters.items():
                self.best[name].copy_(value)

    def told(self, plan: Plan) -> Epoch:
        """What its last epoch came to."""
        return Epoch(
            self.number,
            self.epoch,
            plan.epochs,
            self.loss,
            self.srcc,
            self.best_epoch,
            self.best_srcc,
        )

    def result(self, plan: Plan) -> Trained:
        """After training."""
        if self.best_epoch == 0:
            raise HeadError(
                f"predictions stayed constant for {self.epoch} epochs; raise the learning rate"
            )
        return Trained(self.best, self.scaling, self.best_epoch, self.best_srcc)

    def state(self) -> dict[str, Tensor]:
        """All that going on needs, but for `counters`."""
        state = {"generator": self.generator.get_state()}
        for name, value in self.parameters.items():
            first, second = self.moments[name]
            own = {
                "now": value,
                "best": self.best[name],
                "first": first,
                "second": second,
                "count": self.counts[name],
            }
            state |= {f"{kind}.{name}": tensor.clone() for kind, tensor in own.items()}
        return state

    def counters(self) -> dict[str, Any]:
        """What `state` has no tensors for."""
        return {
            "steps": self.steps,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_srcc": self.best_srcc,
            "order": self.order.bit_generator.state,
        }

    def go_on(self, state: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Become as it was when `state` and `counters` were taken.

        Raises:
            ValueError: if a tensor is of another shape or type, or not finite, or a counter out of
                its range.
            Exception: LookupError, TypeError, RuntimeError, OverflowError or AttributeError, as
                NumPy and torch say of other things that they cannot take.
        """
        for name, own in self.state().items():
            if (own.shape, own.dtype) != (state[name].shape, state[name].dtype):
                raise ValueError(f"{name} is of another shape or type")
            if not state[name].isfinite().all():
                raise ValueError(f"{name} has values that are not finite")
        whole = [counters[name] for name in ("steps", "epoch", "best_epoch")]
        if not all(type(one) is int and 0 <= one < 2**53 for one in whole) or whole[1] < whole[2]:
            raise ValueError(f"steps, epoch and best epoch cannot be {whole}")
        if type(counters["best_srcc"]) is not float or not counters["best_srcc"] < 2:
            raise ValueError(f"the best SRCC cannot be {counters['best_srcc']!r}")
        self.generator.set_state(state["generator"])
        self.order.bit_generator.state = counters["order"]
        for name, value in self.parameters.items():
            first, second = self.moments[name]
            value.copy_(state[f"now.{name}"])
            self.best[name].copy_(state[f"best.{name}"])
            first.copy_(state[f"first.{name}"])
            second.copy_(state[f"second.{name}"])
            self.counts[name].copy_(state[f"count.{name}"])
        for name in ("steps", "epoch", "best_epoch", "best_srcc"):
            setattr(self, name, counters[name])


class Stack:
    """The parameters of several members in one tensor each; the members' own are views of it."""

    def __init__(self, module: nn.Module, members: Sequence[Member], device: torch.device) -> None:
        self.module = module
        self.members = members
        self.parameters: dict[str, Tensor] = {}
        for name in members[0].parameters:
            stacked = torch.stack([member.parameters[name] for member in members])
            for member, view in zip(members, stacked, strict=True):
                member.parameters[name] = view  # without a gradient of its own
            self.parameters[name] = stacked.detach().requires_grad_()

    def scores(self, window: Window, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """[k, b] of b videos for each member."""
        scalings = [member.scaling for member in self.members]
        noise = [member.noise() for member in self.members]
        return stacked_scores(self.module, self.parameters, window, rows, scalings, noise)

    def step(
        self,
        window: Window,
        batches: Sequence[NDArray[np.int64] | None],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> list[float]:
        """One step of every member that has a batch; the loss of each, NaN for the others."""
        some = next(batch for batch in batches if batch is not None)
        filled = of_one_size([some if batch is None else batch for batch in batches])
        predicted = self.scores(window, filled)
        losses = [
            None
            if rows is None
            else loss(predicted[number, : len(rows)], self.members[number].targets[rows])
            for number, rows in enumerate(batches)
        ]
        for value in self.parameters.values():
            value.grad = None
        total: Tensor = sum(one for one in losses if one is not None)  # type: ignore[assignment]
        total.backward()
        self._follow([number for number, one in enumerate(losses) if one is not None])
        return [math.nan if one is None else one.item() for one in losses]

    def _follow(self, numbers: Sequence[int]) -> None:
        """AdamW for some members, with the gradients that the stack has."""
        parameters, gradients, firsts, seconds, counts = [], [], [], [], []
        for number in numbers:
            member = self.members[number]
            member.steps += 1
            for name, value in member.parameters.items():
                gradient = self.parameters[name].grad
                if gradient is None:
                    continue  # of a layer that the network does not use
                parameters.append(value)
                gradients.append(gradient[number])
                firsts.append(member.moments[name][0])
                seconds.append(member.moments[name][1])
                counts.append(member.counts[name])
        plan, epoch = self.members[0].plan, self.members[0].epoch
        # The function, because making a torch.optim.Optimizer imports torch's compiler: seconds.
        adamw(
            parameters,
            gradients,
            firsts,
            seconds,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=plan.learning_rate * plan.decay ** (epoch // plan.decay_epochs),
            weight_decay=plan.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def of_one_size(batches: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Filled up with their last video, whose further scores are dropped."""
    size = max(map(len, batches))
    return [
        batch if len(batch) == size else np.pad(batch, (0, size - len(batch)), mode="edge")
        for batch in batches
    ]


def stacked_scores(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    window: Window,
    rows: Sequence[NDArray[np.int64]],
    scalings: Sequence[Scaling | None],
    noise: Sequence[int] | None = None,
) -> Tensor:
    """Scores [k, b] of k networks, each with its own b videos."""
    values, mask = window.padded(rows, scalings)
    numbers = torch.tensor(noise or [0] * len(rows), device=mask.device)
    batch = PaddedBatch(values, mask, numbers)
    if len(rows) == 1:
        alone = PaddedBatch({role: one[0] for role, one in values.items()}, mask[0], numbers[0])
        own = {name: value.squeeze(0) for name, value in parameters.items()}
        return functional_call(module, own, (alone,))[None]
    return vmap(lambda own, its: functional_call(module, own, (its,)))(dict(parameters), batch)
