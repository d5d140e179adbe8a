"""Several networks as one: what a step does to them, and what they say."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from vqbank.regressors.batches import Choose, PaddedBatch, Scaling, Window
from vqbank.regressors.member import Member
from vqbank.regressors.plan import Method, Precision
from vqbank.store.errors import HeadError


class Stack:
    """What several members learn in one tensor each; the members' own are views of it."""

    def __init__(self, module: nn.Module, members: Sequence[Member], method: Method) -> None:
        self.module = module
        self.members = members
        self.method = method
        self.plan = method.plan
        first = members[0]
        if len(members) > 1 and len(first.trained) < len(first.learnt):
            raise HeadError(
                "running statistics (batch normalisation) would take in videos that fill up the "
                "batches of a stack; a head that has any says `stackable = False`"
            )
        self.learnt = self._stacked([member.learnt for member in members])
        self.averaged = self.learnt
        if self.plan.averaging is not None:
            self.averaged = self._stacked([member.averaged for member in members])
        self.parameters = {name: self.learnt[name].requires_grad_() for name in first.trained}

    def judged(self, window: Window, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """[k, b] of b videos for each member, as its averaged weights or those of now say."""
        return self._scores(self.averaged, window, rows)

    def step(
        self, window: Window, batches: Sequence[NDArray[np.int64] | None]
    ) -> list[float | None]:
        """One step of every member that has a batch; the loss of each, None for the others."""
        some = next(batch for batch in batches if batch is not None)
        filled = of_one_size([some if batch is None else batch for batch in batches])
        for value in self.parameters.values():
            value.grad = None
        losses = self._gradients(window, filled, batches)
        self._follow([number for number, one in enumerate(losses) if one is not None])
        return [None if one is None else one.item() for one in losses]

    def _gradients(
        self,
        window: Window,
        filled: Sequence[NDArray[np.int64]],
        batches: Sequence[NDArray[np.int64] | None],
    ) -> list[Tensor | None]:
        """The loss of each member that has a batch, whose gradients the parameters get."""
        size, many = len(filled[0]), self.plan.forward_videos
        if many is None or size <= many:
            predicted = self._scores(self.learnt, window, filled)
            losses = self._losses(predicted, batches)
            _sum(losses).backward()
            return losses
        # Scores of all, without what a gradient needs; then each part again, with the loss's
        # gradient by its scores.  Running statistics take a part in once, the second time.
        count = math.ceil(size / many)  # parts of one size: batch normalisation wants two videos
        starts = [size * part // count for part in range(count)]
        ends = [*starts[1:], size]
        parts = [
            [rows[start:end] for rows in filled] for start, end in zip(starts, ends, strict=True)
        ]
        before = {n: v.clone() for n, v in self.learnt.items() if n not in self.parameters}
        with torch.no_grad():
            found = [
                self._scores(self.learnt, window, rows, start)
                for start, rows in zip(starts, parts, strict=True)
            ]
            for name, value in before.items():
                self.learnt[name].copy_(value)
        predicted = torch.cat(found, dim=1).requires_grad_()
        losses = self._losses(predicted, batches)
        _sum(losses).backward()
        assert predicted.grad is not None
        for start, end, rows in zip(starts, ends, parts, strict=True):
            gradient = predicted.grad[:, start:end]
            self._scores(self.learnt, window, rows, start).backward(gradient)
        return losses

    def _losses(
        self, predicted: Tensor, batches: Sequence[NDArray[np.int64] | None]
    ) -> list[Tensor | None]:
        return [
            None
            if rows is None
            else self.method.loss(
                predicted[number, : len(rows)], self.members[number].targets[rows]
            )
            for number, rows in enumerate(batches)
        ]

    def _scores(
        self,
        state: Mapping[str, Tensor],
        window: Window,
        rows: Sequence[NDArray[np.int64]],
        start: int = 0,
    ) -> Tensor:
        """[k, b]; `start` is the place of the first video in its batch, for noise of its own."""
        choose, training = self.method.choose, self.module.training
        chosen = None
        if choose:
            chosen = [member.seen(choose, start, training=training) for member in self.members]
        return stacked_scores(
            self.module,
            state,
            window,
            rows,
            [member.scaling for member in self.members],
            noise=[(member.noise() + (start << 44)) % 2**63 for member in self.members],
            chosen=chosen,
            precision=self.plan.precision,
        )

    def _follow(self, numbers: Sequence[int]) -> None:
        """A step of the optimiser for some members, with the gradients that the stack has."""
        together: dict[float, list[int]] = defaultdict(list)  # those of one learning rate
        for number in numbers:
            together[self.members[number].rate].append(number)
        for rate, alike in together.items():
            parameters, gradients, firsts, seconds, counts = [], [], [], [], []
            for number in alike:
                member = self.members[number]
                own = {
                    name: gradient[number]
                    for name, value in self.parameters.items()
                    for gradient in [value.grad]
                    if gradient is not None  # else of a layer that the network does not use
                }
                self._clip(list(own.values()))
                for name, gradient in own.items():
                    parameters.append(member.learnt[name])
                    gradients.append(gradient)
                    firsts.append(member.moments[name][0])
                    seconds.append(member.moments[name][1])
                    counts.append(member.counts[name])
            # Functions, as making a torch.optim.Optimizer imports torch's compiler: seconds.
            (adamw if self.plan.optimizer == "adamw" else adam)(
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
                lr=rate,
                weight_decay=self.plan.weight_decay,
                eps=1e-8,
                maximize=False,
            )
        for number in numbers:
            self._average(self.members[number])
            self.members[number].stepped()

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """As `torch.nn.utils.clip_grad_norm_`, which takes no parts of a stack, with its 1e-6."""
        if self.plan.clip_norm is None:
            return
        norm = nn.utils.get_total_norm(gradients)
        scale = (self.plan.clip_norm / (norm + 1e-6)).clamp(max=1)
        for one in gradients:
            one.mul_(scale)

    def _average(self, member: Member) -> None:
        """Averaged weights follow those of now; running statistics are averages already."""
        if self.plan.averaging is None:
            return
        for name, value in member.averaged.items():
            if name in self.parameters:
                value.lerp_(member.learnt[name], 1 - self.plan.averaging)
            else:
                value.copy_(member.learnt[name])

    @staticmethod
    def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Each name's tensors in one, of which the given states get views."""
        stacked = {}
        for name in states[0]:
            stacked[name] = torch.stack([state[name] for state in states])
            for state, view in zip(states, stacked[name], strict=True):
                state[name] = view  # without a gradient of its own
        return {name: value.detach() for name, value in stacked.items()}


def of_one_size(batches: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Filled up with their last video, whose further scores are dropped."""
    size = max(map(len, batches))
    return [
        batch if len(batch) == size else np.pad(batch, (0, size - len(batch)), mode="edge")
        for batch in batches
    ]


def stacked_scores(
    module: nn.Module,
    state: Mapping[str, Tensor],
    window: Window,
    rows: Sequence[NDArray[np.int64]],
    scalings: Sequence[Scaling | None],
    *,
    noise: Sequence[int] | None = None,
    chosen: Sequence[Choose] | None = None,
    precision: Precision = "float32",
) -> Tensor:
    """Scores [k, b] of k networks, each with its own b videos; `state` is [k, ...] each."""
    values, masks = window.padded(rows, scalings, chosen)
    mask = masks[next(iter(values))]
    numbers = torch.tensor(noise or [0] * len(rows), device=mask.device)
    own = {role: masks[role] for role in window.own}
    batch = PaddedBatch(values, mask, numbers, own)
    with _products(mask.device, precision):
        if len(rows) == 1:
            alone = PaddedBatch(
                {role: one[0] for role, one in values.items()},
                mask[0],
                numbers[0],
                {role: one[0] for role, one in own.items()},
            )
            of_one = {name: value.squeeze(0) for name, value in state.items()}
            return functional_call(module, of_one, (alone,)).float()[None]
        every = vmap(lambda of_one, its: functional_call(module, of_one, (its,)))
        return every(dict(state), batch).float()


def _products(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _sum(losses: Sequence[Tensor | None]) -> Tensor:
    total: Tensor = sum(one for one in losses if one is not None)  # type: ignore[assignment]
    return total
