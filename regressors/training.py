"""The one training loop of networks, and their predictions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqbank.regressors.batches import WINDOW_SHARE, Scaling, Series
from vqbank.regressors.checkpoint import Journal
from vqbank.regressors.member import Member, Seen
from vqbank.regressors.metrics import srcc
from vqbank.regressors.plan import Fold, Method, Plan, RowChoice, Trained
from vqbank.regressors.progress import Watch
from vqbank.regressors.stack import Stack, of_one_size, stacked_scores
from vqbank.regressors.standardisation import scalings_of
from vqbank.regressors.tensors import torch_threads
from vqbank.store.errors import HeadError

PREDICTED = 64
"""Videos of a batch that is only predicted, at most."""


def train(
    series: Series,
    folds: Sequence[Fold],
    method: Method,
    *,
    first: int = 0,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
) -> list[Trained]:
    """Train one network per fold, all at the same time as one stack.

    As the plan says, on the rows that are fitted, in shuffled batches of videos of like length.
    The best epoch is the first with the highest SRCC on the held-out rows; training of a fold ends
    `patience` epochs after it, or after the fold's own number of epochs.  A fold's batches, start
    and noise depend on its own rows and seed alone, so that it comes to the same with any company,
    but for the rounding of sums (below 1e-5).

    Rows beyond the budget of `series` are streamed; one fold at a time is then trained, because
    windows follow the rows of a fold.

    Args:
        series: n videos.
        folds: what to train on.
        method: what, and how.
        first: number of the first fold, where these are some of many; the others follow.
        watch: told of every epoch of every fold.
        checkpoint: a file that is written as training goes, and from which it goes on.

    Raises:
        HeadError: if the rows on either side of a fold share one target, a value is not finite,
            training diverges or never ranks anything, or the checkpoint is of another training or
            cannot be written.
    """
    every = np.unique(np.concatenate([rows for fold in folds for rows in (fold.fit, fold.held)]))
    if len(folds) > 1 and not series.hold(every):
        raise HeadError(f"{len(folds)} networks are trained at once only from memory")
    series.hold(every)
    plan = method.plan
    with torch_threads(plan.threads):
        members = [
            Member(number, fold, method.network(generator), plan, generator, series.device)
            for number, fold in enumerate(folds, start=first)
            for generator in [torch.Generator().manual_seed(fold.seed)]
        ]
        for member in members:
            member.refuse_constant()
        if plan.standardise and folds[0].start is None:
            for member, scaling in zip(
                members, scalings_of(series, [fold.fit for fold in folds]), strict=True
            ):
                member.scaling = scaling
        module = method.network(torch.Generator()).to(series.device)
        journal = Journal(checkpoint, members, method)
        while active := [member for member in members if not member.done]:
            stack = Stack(module, active, method)
            while not any(member.done for member in active):
                _epoch(series, stack)
                for member in active:
                    if watch is not None:
                        watch(member.told(plan))
                journal.keep()
        journal.keep(now=True)
        return [member.result(plan) for member in members]


def scores(
    series: Series,
    rows: NDArray[np.int64],
    *,
    module: nn.Module,
    plan: Plan,
    choose: Mapping[str, RowChoice],
    state: Mapping[str, Tensor],
    scalings: Sequence[Scaling | None],
    stacked: bool,
) -> NDArray[np.float64]:
    """[k, n]: what k networks say of n videos.

    Args:
        series: where the videos are.
        rows: of its table.
        module: a network of the right shape; what it would learn is not used.
        plan: by which the networks were trained.
        choose: by role, which rows of a video they see, where these are not all.
        state: what the k networks learnt, [k, ...] each.
        scalings: k.
        stacked: whether the networks run as one, or one after the other.
    """
    members = list(range(len(scalings)))
    groups = [members] if stacked else [[member] for member in members]
    with torch_threads(plan.threads), torch.inference_mode():
        series.hold(rows)
        out = np.empty((len(scalings), len(rows)))
        chosen = Seen(choose) if choose else None
        place = {row: number for number, row in enumerate(rows.tolist())}
        module.eval()
        for window in series.windows(rows, rng=np.random.default_rng(0)):
            wanted = window.among(rows)
            for own in groups:
                learnt = {name: value[own] for name, value in state.items()}
                scaled = [scalings[member] for member in own]
                for batches in by_length(series, [wanted] * len(own), plan):
                    columns = [place[row] for row in batches[0].tolist()]
                    predicted = stacked_scores(
                        module,
                        learnt,
                        window,
                        batches,
                        scaled,
                        chosen=None if chosen is None else [chosen] * len(own),
                        precision=plan.precision,
                    )
                    out[np.ix_(own, columns)] = predicted.double().cpu().numpy()
    return out


def _epoch(series: Series, stack: Stack) -> None:
    members = stack.members
    losses: list[list[float]] = [[] for _ in members]
    stack.module.train()
    # A window of many is the whole of one member's rows; of one member, whatever is streamed.
    fitted = np.unique(np.concatenate([member.fold.fit for member in members]))
    for window in series.windows(fitted, rng=members[0].order, at_least=stack.plan.batch_size):
        batches = [
            member.batches(window.among(member.fold.fit), series.lengths) for member in members
        ]
        for member, own in zip(members, batches, strict=True):
            member.expect(own)
        for step in range(max(map(len, batches))):
            some = [own[step] if step < len(own) else None for own in batches]
            for found, value in zip(losses, stack.step(window, some), strict=True):
                if value is not None:
                    found.append(value)
    stack.module.eval()
    with torch.inference_mode():
        predicted = _held_out(series, stack)
    for member, found, values in zip(members, losses, predicted, strict=True):
        if not (np.isfinite(values).all() and np.isfinite(found).all()):
            raise HeadError(
                f"training diverged in epoch {member.epoch + 1}; lower the learning rate"
            )
        held = member.fold.targets[member.fold.held].double().numpy()
        judged = srcc(held, values) if member.fold.epochs is None else None
        member.judge(float(np.mean(found)), judged)


def _held_out(series: Series, stack: Stack) -> list[NDArray[np.float64]]:
    """Scores of each member's held-out rows."""
    members = stack.members
    out = [np.empty(len(member.fold.held)) for member in members]
    places = [
        {row: number for number, row in enumerate(member.fold.held.tolist())} for member in members
    ]
    every = np.unique(np.concatenate([member.fold.held for member in members]))
    if len(every) == 0:
        return out
    for window in series.windows(every, rng=np.random.default_rng(0)):
        wanted = [window.among(member.fold.held) for member in members]
        for some in by_length(series, wanted, stack.plan):
            predicted = stack.judged(window, of_one_size(some)).double().cpu().numpy()
            for values, place, rows, own in zip(predicted, places, some, out, strict=True):
                own[[place[row] for row in rows.tolist()]] = values[: len(rows)]
    return out


def by_length(
    series: Series, rows: Sequence[NDArray[np.int64]], plan: Plan
) -> Iterator[list[NDArray[np.int64]]]:
    """Batches to be predicted, one for each member at a time, which share memory for one window.

    A member whose rows are all done gets its last one again.
    """
    ordered = [own[np.argsort(series.lengths(own), kind="stable")] for own in rows]
    count = max(map(len, ordered))
    filled = [np.pad(own, (0, count - len(own)), mode="edge") for own in ordered]
    longest = np.max([series.lengths(own) for own in filled], axis=0)
    sizes = series.batch_bytes(longest, np.concatenate(filled))
    most = series.budget_bytes // WINDOW_SHARE // len(rows)
    start = 0
    while start < count:
        reach = sizes[start : start + (plan.forward_videos or PREDICTED)]
        fitting = int((np.arange(1, len(reach) + 1) * reach <= most).sum())  # reach ascends
        stop = start + max(1, fitting)
        yield [own[start:stop] if start < len(own) else own[-1:] for own in ordered]
        start = stop
