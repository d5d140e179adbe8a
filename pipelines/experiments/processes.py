"""Fits in processes that end with this one, and at once when they are told to.

What libsvm or a large matrix product has begun no signal ends, so that such work is not done in
this process, where Ctrl-C would wait for it, but in others, which are killed.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from joblib import Parallel, delayed

from vqbank.regressors.relay import relayed

Result = TypeVar("Result")
Watch = Callable[[Any], None]
LOOKS_SECONDS = 0.5
"""Between two looks of a worker whether the process that started it is still there."""


def in_workers(
    work: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    watch: Watch | None = None,
) -> Iterator[Result]:
    """What `work(*task, watch)` gives for each task, in their order.

    Whatever ends the loop over it, an error, Ctrl-C or `SystemExit`, kills all workers.

    Args:
        work: a function that can be pickled.
        tasks: its arguments.
        jobs: processes that work at the same time.
        watch: told here, by a thread, of what `work` tells its own.
    """
    with nullcontext() if watch is None else relayed(watch) as told:
        # joblib starts no process for one job; so the second waits.
        parallel = Parallel(
            n_jobs=max(2, jobs),
            pre_dispatch=jobs,
            batch_size=1,
            return_as="generator",
            initializer=_begin,
            initargs=(os.getpid(),),
        )
        yield from parallel(delayed(work)(*task, told) for task in tasks)


def _begin(parent: int) -> None:
    """In a worker: the process that started it alone decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKS_SECONDS)
    os._exit(1)
