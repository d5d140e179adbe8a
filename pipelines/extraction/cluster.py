"""The same extraction in many processes or on many machines, by Dask.

The client hands out portions of the manifest and sees outcomes; workers decode, compute and commit
to the bank, which all of them see under the same path.  Scheduling, lost workers and workers that
join later are Dask's.
"""

import gc
import os
import platform
import queue
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import torch
from distributed import Future, KilledWorker, Worker, WorkerPlugin, get_worker

from vqbank.extractors.base import Extractor, WeightedExtractor
from vqbank.pipelines.extraction.extract import Extraction, import_for
from vqbank.pipelines.extraction.one_video import Outcome
from vqbank.pipelines.extraction.workers import AT_WORK, LEAVING, LocalWorker, Workers
from vqbank.pipelines.stopping import ASKED
from vqbank.store.bank import FeatureStore, writing
from vqbank.store.errors import BankError, WorkersError
from vqbank.store.ledger import Ledger, begun_with
from vqbank.store.schema import Video

PORTION_VIDEOS = (4, 64)
"""Videos that a worker commits together: at least, unless there are fewer, and at most."""
PORTIONS_PER_WORKER = 8
"""Where there are enough videos, so that the last ones end together."""
DEATHS = 3
"""Of workers that had begun with one video alone, after which it is a failure of this video."""
UNBEGUN = 20
"""Workers that may die in a row before they have begun with anything, before the run ends."""

LOOKING_SECONDS = 1.0
"""After which it is looked whether anybody is there to work."""
TELLING_SECONDS = 60.0
"""Between two lines that say that nobody is."""


@dataclass(frozen=True)
class Order:
    """What a worker has to know; the same for all portions of a run."""

    bank: Path
    extractors: tuple[Extractor, ...]
    decoder: str
    device: str
    batch_clips: tuple[tuple[str, int], ...]
    patience_seconds: float
    threads: int | None
    """Cores of a worker; None means as many as Dask gives it threads."""
    keys: tuple[str, ...]
    """What is made, so that nothing that is not in an extractor's fields is mistaken."""

    @classmethod
    def of(cls, extraction: Extraction, *, threads: int | None = None) -> "Order":
        """What this extraction does, wherever its worker's working directory is."""
        return cls(
            extraction.store.path.absolute(),
            tuple(map(_with_absolute_paths, extraction.extractors)),
            extraction.decoder,
            str(extraction.device),
            tuple(extraction.batch_clips.items()),
            extraction.patience_seconds,
            threads,
            _keys(extraction),
        )


@dataclass(frozen=True)
class _Task:
    """Some videos that were given to a worker together."""

    attempt: str
    """By which the ledger knows it."""
    videos: tuple[Video, ...]


def distribute(
    workers: Workers,
    order: Order,
    videos: Sequence[Video],
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> Generator[Outcome, None, None]:
    """Run an order over videos; yields every video once, a portion at a time, in any order.

    What a worker that died had not begun with is given out again.  What it had begun with, as its
    marks in the ledger say, is given out again video by video; one that DEATHS workers died with
    when they had no other is a failure of this video.

    Args:
        workers: Who works.
        order: What is done.
        videos: With which.
        tell: Takes a line, now and then, while there is nobody to work.

    Raises:
        WorkersError: if there is no worker for too long, or workers die before they begin.
        VqbankError: as `Extraction.run` in a worker; what was committed is safe.
    """
    videos = [replace(video, path=video.path.absolute()) for video in videos]
    size = min(
        max(len(videos) // (PORTIONS_PER_WORKER * workers.expected), PORTION_VIDEOS[0]),
        PORTION_VIDEOS[1],
    )
    preparation = _Preparation(order)
    workers.client.register_plugin(preparation, name=preparation.name)
    done: queue.SimpleQueue[Future] = queue.SimpleQueue()
    given: dict[Future, _Task] = {}

    def give(*some: Video) -> None:
        task = _Task(secrets.token_hex(8), some)
        future = workers.client.submit(run_portion, order, some, task.attempt, pure=False)
        given[future] = task
        future.add_done_callback(done.put)

    for start in range(0, len(videos), size):
        give(*videos[start : start + size])
    alone: dict[str, set[str]] = {}  # attempts by video that had no other and whose worker died
    in_vain = 0
    try:
        while given:
            future = _next(done, workers, tell)
            task = given.pop(future)
            if future.status == "cancelled" or future.status == "lost":
                raise WorkersError("the scheduler has gone; the same command goes on from there")
            if not (future.status == "error" and isinstance(future.exception(), KilledWorker)):
                yield from future.result()
                future.release()
                in_vain = 0
                continue
            begun = set(begun_with(order.bank, {task.attempt}))
            in_vain = 0 if begun else in_vain + 1
            if in_vain > UNBEGUN:
                raise WorkersError(
                    f"{in_vain} workers in a row died before they began with a video; what was "
                    "finished is banked"
                )
            if len(task.videos) > 1:
                if rest := [video for video in task.videos if video.id not in begun]:
                    give(*rest)
                for video in task.videos:
                    if video.id in begun:
                        give(video)
                continue
            (video,) = task.videos
            attempts = alone.setdefault(video.id, set())
            attempts.add(task.attempt)
            deaths = begun_with(order.bank, attempts)[video.id]
            if deaths < DEATHS:
                give(video)
            else:
                yield _killer(order, video, deaths)
    finally:
        with suppress(OSError, CancelledError):  # the scheduler may have gone
            workers.client.unregister_worker_plugin(preparation.name)


def _next(
    done: "queue.SimpleQueue[Future]", workers: Workers, tell: Callable[[str], None]
) -> Future:
    """The next task that has ended.

    Raises:
        KeyboardInterrupt: if the run is to stop.
        WorkersError: if there was no worker for too long.
    """
    alone_since = told = time.monotonic()
    while True:
        if ASKED.is_set():
            raise KeyboardInterrupt
        with suppress(queue.Empty):
            return done.get(timeout=LOOKING_SECONDS)
        if workers.failures:
            raise workers.failures[0]
        now = time.monotonic()
        if workers.here:
            alone_since = told = now
        elif now - alone_since > workers.wait_seconds:
            raise WorkersError(
                f"no worker for {timedelta(seconds=round(now - alone_since))}; what was finished "
                "is banked, the same command goes on from there"
            )
        elif now - told > TELLING_SECONDS:
            told = now
            gone, limit = (
                timedelta(seconds=round(one)) for one in (now - alone_since, workers.wait_seconds)
            )
            tell(f"no worker for {gone}; given up after {limit}")


class _Preparation(WorkerPlugin):  # type: ignore[misc]
    """Lets a worker import what its tasks need before it takes any: threads do not import."""

    def __init__(self, order: Order) -> None:
        self.name = f"vqbank-{secrets.token_hex(8)}"
        self._order = order

    def setup(self, worker: Worker) -> None:
        """Called in the main thread of each worker, before it begins, or joins."""
        del worker
        import_for(self._order.extractors)


def _with_absolute_paths(extractor: Extractor) -> Extractor:
    if not isinstance(extractor, WeightedExtractor) or not Path(extractor.weights).exists():
        return extractor
    return replace(extractor, weights=str(Path(extractor.weights).absolute()))


def _killer(order: Order, video: Video, deaths: int) -> Outcome:
    reason = f"{video.path}: its worker died each time, {deaths} times (out of memory?)"
    ledger = Ledger(order.bank)
    failures = {}
    for key in order.keys:
        with writing(order.bank):
            ledger.append(video=video.id, key=key, status="failed", reason=reason)
        failures[key] = reason
    return Outcome(video, failures, cached=False)


def run_portion(order: Order, videos: Sequence[Video], attempt: str) -> list[Outcome]:
    """What a worker does: extract some videos and commit them.

    Args:
        order: What is done.
        videos: With which.
        attempt: Goes into the mark that the ledger gets before each video is begun.

    Raises:
        VqbankError: as `Extraction.run`.
    """
    with AT_WORK:  # a worker may have several threads
        worker = get_worker()
        if order.device == "cuda" and isinstance(worker, LocalWorker):
            order = replace(order, device=f"cuda:{worker.place % torch.cuda.device_count()}")
        try:
            extraction = _extraction(order)
            extraction.take(videos, attempt=attempt)
            return list(extraction.run())
        except KeyboardInterrupt:  # this worker is told to stop, and has committed what is finished
            os._exit(0)  # an answer without the other videos would be taken for a whole one
        except BaseException:  # one that broke off is not used again
            _extraction.cache_clear()
            raise


@lru_cache(maxsize=1)
def _extraction(order: Order) -> Extraction:
    """Kept, so that a worker loads every network once.

    Raises:
        BankError: if this machine would make something else, because its weights differ.
    """
    gc.collect()  # of one that broke off, what tracebacks and tasks hold of each other
    extraction = Extraction(
        (),
        order.extractors,
        FeatureStore.create(order.bank),
        decoder=order.decoder,
        device=torch.device(order.device),
        batch_clips=dict(order.batch_clips),
        patience_seconds=order.patience_seconds,
        threads=order.threads or get_worker().state.nthreads,
        leaving=LEAVING,
    )
    if _keys(extraction) != order.keys:
        raise BankError(
            f"{platform.node()} would make {', '.join(_keys(extraction))}, but "
            f"{', '.join(order.keys)} are asked for: its weights or its vqbank are others"
        )
    return extraction


def _keys(extraction: Extraction) -> tuple[str, ...]:
    texts = (extractor.text_spec() for extractor in extraction.extractors)
    return tuple(spec.key for spec in [*extraction.specs, *filter(None, texts)])
