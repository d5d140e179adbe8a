"""One network under training: all that differs between those of a stack."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqbank.regressors.batches import Scaling
from vqbank.regressors.layers import learnt
from vqbank.regressors.plan import Fold, Plan, RowChoice, Trained
from vqbank.regressors.progress import Epoch
from vqbank.store.errors import HeadError

BUCKET = 16
"""Batches among which videos are sorted by length, so that little of a batch is padding."""


class Member:
    """One network under training.

    Attributes:
        learnt: what it has learnt by now, by name: parameters, and running statistics.
        averaged: the same under a plan of averaged weights; else `learnt` itself.
        gone: of the epoch that runs, the part that was stepped through, 0 to 1.
    """

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
        self.learnt = {
            name: value.detach().to(device, copy=fold.start is not None)
            for name, value in learnt(module).items()
        }
        if fold.start is not None:
            for name, value in self.learnt.items():
                value.copy_(fold.start.state[name])
        self.averaged = self.learnt
        if plan.averaging is not None:
            self.averaged = {name: value.clone() for name, value in self.learnt.items()}
        self.trained = [name for name, _ in module.named_parameters() if name in self.learnt]
        self.moments = {
            name: tuple(torch.zeros_like(self.learnt[name]) for _ in range(2))
            for name in self.trained
        }
        self.counts = {name: torch.zeros((), device=device) for name in self.trained}
        self.generator = generator
        self.order = np.random.default_rng(fold.seed)
        self.plan = plan
        self.scaling: Scaling | None = None
        if fold.start is not None and fold.start.scaling is not None:
            self.scaling = fold.start.scaling.to(device)
        self.steps = 0
        self.epoch = 0
        self.gone = 0.0
        self.steps_of_epoch = 1
        self.loss = self.srcc = math.nan
        self.best_epoch, self.best_srcc = 0, -math.inf
        self.best = {name: value.clone() for name, value in self.learnt.items()}

    @property
    def done(self) -> bool:
        """Whether its epochs or its patience are over."""
        if self.fold.epochs is not None:
            return self.epoch >= self.fold.epochs
        return self.epoch >= self.plan.epochs or self.epoch - self.best_epoch >= self.plan.patience

    @property
    def rate(self) -> float:
        """The learning rate of the step that comes."""
        return self.plan.rate(self.epoch + self.gone, self.steps_of_epoch)

    def refuse_constant(self) -> None:
        """A split that leaves nothing to rank."""
        parts = {"training": self.fold.fit, "held-out": self.fold.held}
        for name, rows in parts.items():
            judged = name == "training" or self.fold.epochs is None
            if judged and len(self.fold.targets[rows].unique()) < 2:
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

    def expect(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Know the steps that come, of which `gone` and the learning rate are told by."""
        share = sum(map(len, batches)) / len(self.fold.fit)
        self.steps_of_epoch = max(1, round(len(batches) / share)) if share else 1

    def stepped(self) -> None:
        """Close a step."""
        self.steps += 1
        self.gone += 1 / self.steps_of_epoch

    def noise(self) -> int:
        """Of the step that comes; the last of many runs may have a seed beyond 31 bits."""
        return (self.fold.seed * 2**32 + self.steps) % 2**63

    def seen(self, choose: Mapping[str, RowChoice], start: int, *, training: bool) -> "Seen":
        """Which rows of a video the step that comes sees; the same ones in any company.

        Args:
            choose: of the head.
            start: place of the first video in its batch, which may go through in parts.
            training: whether rows are drawn.
        """
        return Seen(choose, [self.noise(), start] if training else None)

    def judge(self, loss: float, held_srcc: float | None) -> None:
        """Close an epoch; SRCC of NaN, where all predictions agree, is never better.

        Args:
            loss: the mean of its steps.
            held_srcc: on the held-out rows; None where nothing is judged by them.
        """
        self.epoch += 1
        self.gone = 0.0
        self.loss, self.srcc = loss, math.nan if held_srcc is None else held_srcc
        last = self.fold.epochs is not None
        if last or self.srcc > self.best_srcc:
            self.best_epoch = self.epoch
            self.best_srcc = self.best_srcc if last else self.srcc
            for name, value in self.averaged.items():
                self.best[name].copy_(value)

    def told(self, plan: Plan) -> Epoch:
        """What its last epoch came to."""
        return Epoch(
            self.number,
            self.epoch,
            self.fold.epochs or plan.epochs,
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
        if not all(value.isfinite().all() for value in self.best.values()):
            raise HeadError(
                f"training diverged in epoch {self.best_epoch}; lower the learning rate"
            )
        srcc = self.best_srcc if self.fold.epochs is None else None
        return Trained(self.best, self.scaling, self.best_epoch, srcc)

    def state(self) -> dict[str, Tensor]:
        """All that going on needs, but for `counters`."""
        state = {"generator": self.generator.get_state()}
        for name, value in self.learnt.items():
            own = {"now": value, "best": self.best[name]}
            if self.averaged is not self.learnt:
                own["averaged"] = self.averaged[name]
            if name in self.moments:
                own["first"], own["second"] = self.moments[name]
                own["count"] = self.counts[name]
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
        for name, value in self.learnt.items():
            value.copy_(state[f"now.{name}"])
            self.best[name].copy_(state[f"best.{name}"])
            if self.averaged is not self.learnt:
                self.averaged[name].copy_(state[f"averaged.{name}"])
        for name, (first, second) in self.moments.items():
            first.copy_(state[f"first.{name}"])
            second.copy_(state[f"second.{name}"])
            self.counts[name].copy_(state[f"count.{name}"])
        for name in ("steps", "epoch", "best_epoch", "best_srcc"):
            setattr(self, name, counters[name])


class Seen:
    """What a head chooses of the rows of one video after the other."""

    def __init__(self, choose: Mapping[str, RowChoice], seed: Sequence[int] | None = None) -> None:
        """Begin the generators of all roles alike.

        Args:
            choose: by role; of others all rows are seen.
            seed: of the step; None where nothing is drawn.
        """
        self._choose = choose
        self._generators = {
            role: None if seed is None else np.random.default_rng(seed) for role in choose
        }

    def __call__(self, role: str, length: int) -> NDArray[np.int64]:
        """Rows that are seen of a video that has so many of a role.

        Raises:
            HeadError: if none is chosen, or some that are not there.
        """
        if role not in self._choose:
            return np.arange(length)
        rows = self._choose[role](length, self._generators[role])
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= length:
            raise HeadError(f"of {length} rows a step cannot see {rows.tolist()}")
        return rows
