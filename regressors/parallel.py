"""Many networks at the same time: as stacks, in processes, or one after the other."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import joblib
import numpy as np
from joblib.parallel import get_active_backend
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vqbank.regressors.batches import Packed, Series
from vqbank.regressors.plan import Fold, Method, Trained
from vqbank.regressors.progress import Watch
from vqbank.regressors.relay import relayed
from vqbank.regressors.training import train

STACK = 16
"""Networks trained at once, at most; gradients and moments of all of them are in memory."""
STACK_BYTES = 2**25
"""Of the batches of a stack: with more, steps wait for memory, and more networks gain nothing."""


def train_all(
    series: Series,
    folds: Sequence[Fold],
    method: Method,
    *,
    stacks: bool,
    watch: Watch | None,
    checkpoint: Path | None,
    processes: int | None,
) -> list[Trained]:
    """Train one network per fold, as many at a time as gains something.

    Args:
        series: n videos.
        folds: what to train on.
        method: what, and how.
        stacks: whether the networks may be trained as one.
        watch: told of every epoch of every fold; of other processes, by a thread of this one.
        checkpoint: a file from which this goes on, one for each stack or process if there are
            several; they stay, and `checkpoint.remove` takes them away.
        processes: that are started at most; None for one per core.

    Raises:
        HeadError: as `train`.
    """
    every = np.unique(np.concatenate([rows for fold in folds for rows in (fold.fit, fold.held)]))
    fits = series.fits(every)
    size = _stack_size(series, every, method.plan.batch_size) if stacks and fits else 1
    starts = range(0, len(folds), size)
    paths = [checkpoint] * len(starts)
    if checkpoint is not None and len(starts) > 1:
        paths = [checkpoint.with_name(f"{checkpoint.name}.{start}") for start in starts]
    # In a process of somebody's joblib, whose others are at work.
    nested = get_active_backend()[0].nesting_level
    cores = 1 if nested else min(len(folds), processes or joblib.cpu_count())
    if fits and not stacks and cores > 1:
        trained = _in_processes(series.packed(every), folds, method, watch, paths, cores)
    else:
        if stacks:
            series.hold(every)  # once for all stacks
        trained = [
            one
            for start, path in zip(starts, paths, strict=True)
            for one in train(
                series,
                folds[start : start + size],
                method,
                first=start,
                watch=watch,
                checkpoint=path,
            )
        ]
    return trained


def _stack_size(series: Series, rows: NDArray[np.int64], batch_size: int) -> int:
    """As many networks as have batches, each its own, that are together of STACK_BYTES."""
    (video_bytes,) = series.batch_bytes(series.lengths(rows).max(keepdims=True), rows).tolist()
    return max(1, min(STACK, STACK_BYTES // (batch_size * video_bytes)))


def _in_processes(
    packed: Packed,
    folds: Sequence[Fold],
    method: Method,
    watch: Watch | None,
    paths: Sequence[Path | None],
    cores: int,
) -> list[Trained]:
    """One fold per core at a time."""
    with nullcontext() if watch is None else relayed(watch) as told:
        # "c", of each process its own where it writes: torch has no read-only tensors.
        trained: list[Trained] = joblib.Parallel(n_jobs=cores, mmap_mode="c")(
            joblib.delayed(_alone)(packed, fold, method, number, told, path)
            for number, (fold, path) in enumerate(zip(folds, paths, strict=True))
        )
    return trained


def _alone(
    packed: Packed,
    fold: Fold,
    method: Method,
    number: int,
    watch: Watch | None,
    checkpoint: Path | None,
) -> Trained:
    """In a process of its own."""
    with threadpool_limits(limits=1):  # as in `Head.fit`
        (trained,) = train(
            packed.unpacked(), [fold], method, first=number, watch=watch, checkpoint=checkpoint
        )
    return trained
